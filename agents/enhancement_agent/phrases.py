"""Tables of words and phrases that the rules of style work with."""

WORDY = {
    "in order to": "to",
    "so as to": "to",
    "due to the fact that": "because",
    "owing to the fact that": "because",
    "in light of the fact that": "because",
    "in view of the fact that": "because",
    "on account of the fact that": "because",
    "on the grounds that": "because",
    "for the reason that": "because",
    "in spite of the fact that": "although",
    "despite the fact that": "although",
    "regardless of the fact that": "although",
    "notwithstanding the fact that": "although",
    "at this point in time": "now",
    "at the present time": "now",
    "at the present moment": "now",
    "at that point in time": "then",
    "in the event that": "if",
    "in the case that": "if",
    "under circumstances in which": "when",
    "until such time as": "until",
    "during the course of": "during",
    "for the duration of": "during",
    "in the absence of": "without",
    "in the vicinity of": "near",
    "in close proximity to": "near",
    "in conjunction with": "with",
    "with the exception of": "except",
    "as a consequence of": "because of",
    "with regard to": "about",
    "with regards to": "about",
    "in regard to": "about",
    "in regards to": "about",
    "with respect to the question of": "about",
    "prior to": "before",
    "subsequent to": "after",
    "a large number of": "many",
    "a great number of": "many",
    "a great many": "many",
    "a large amount of": "much",
    "is able to": "can",
    "are able to": "can",
    "has the ability to": "can",
    "have the ability to": "can",
    "has the capability to": "can",
    "have the capability to": "can",
    "is capable of being": "can be",
    "are capable of being": "can be",
    "make use of": "use",
    "makes use of": "uses",
    "made use of": "used",
    "making use of": "using",
    "utilize": "use",
    "utilizes": "uses",
    "utilized": "used",
    "utilizing": "using",
    "utilise": "use",
    "utilises": "uses",
    "utilised": "used",
    "utilising": "using",
    "take into consideration": "consider",
    "takes into consideration": "considers",
    "taking into consideration": "considering",
    "give consideration to": "consider",
    "has a tendency to": "tends to",
    "have a tendency to": "tend to",
    "on a daily basis": "daily",
    "on a weekly basis": "weekly",
    "on a monthly basis": "monthly",
    "on a regular basis": "regularly",
    "on a continuous basis": "continuously",
    "in a timely manner": "promptly",
    "in an efficient manner": "efficiently",
    "each and every": "every",
    "first and foremost": "first",
    "past history": "history",
    "future plans": "plans",
    "advance planning": "planning",
    "basic fundamentals": "fundamentals",
    "completely eliminate": "eliminate",
    "completely eliminates": "eliminates",
    "absolutely essential": "essential",
    "final outcome": "outcome",
    "collaborate together": "collaborate",
    "combine together": "combine",
    "reason why is that": "reason is that",
    "whether or not it is": "whether it is",
}
"""Phrases, and what says the same in fewer words."""

FORMAL = {
    **{
        word: word.removesuffix("n't") + " not"
        for word in "don't doesn't didn't isn't aren't wasn't weren't haven't hasn't hadn't couldn't wouldn't shouldn't"
        " mustn't".split()
    },
    "can't": "cannot",
    "won't": "will not",
    **{f"{who}'re": f"{who} are" for who in ("we", "they", "you")},
    **{f"{who}'ve": f"{who} have" for who in ("we", "they", "you")},
    **{f"{who}'ll": f"{who} will" for who in ("we", "they", "you", "it")},
    "i'm": "I am",
    "i've": "I have",
    "i'll": "I will",
}
"""Contractions and what they stand for; "it's" and "he'd" can stand for two things and are not here."""

NEVER_TWICE = frozenset(
    "the a an of and or with from be been this we they their your our its into because which than but would"
    " should must these those when where for at by to as your my his".split()
)
"""Small words that never follow themselves; "that that" and "had had" may, so they are not here."""

STARTERS = frozenset(
    "the this these those that it its they their we our you your he she his her there here in on at for from"
    " with without within when while where if as although because since unless after before once however"
    " therefore moreover furthermore finally first second then thus also but and so yet a an each every some"
    " many most all both no not what why how who such both instead meanwhile".split()
)
"""Words that begin sentences and are no names of programs ("npm") when in lower case."""

ABBREVIATED = frozenset(
    "etc approx resp est fig figs sec min max avg vol incl excl dept prof univ inc ltd corp assoc ref refs eqn"
    " jan feb mar apr jun jul aug sept oct nov dec mon tue wed thu fri sat sun vers misc tel ext art chap ver"
    " viz ibid".split()
)
"""Abbreviations whose full stop does not end a sentence."""

CLAUSE_STARTERS = frozenset(
    "the this these it they we he she there its their our however therefore thus moreover instead you".split()
)
"""First words of a clause that stands on its own after a semicolon."""

NEEDS_COMMA = frozenset(("however", "therefore", "thus", "moreover", "instead"))

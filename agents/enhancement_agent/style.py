"""Rules of style whose corrections never change what a sentence says."""

import re
from collections import Counter
from collections.abc import Iterator

from agents.enhancement_agent.edit import Edit
from agents.enhancement_agent.phrases import (
    ABBREVIATED,
    CLAUSE_STARTERS,
    FORMAL,
    NEEDS_COMMA,
    NEVER_TWICE,
    STARTERS,
    WORDY,
)
from agents.enhancement_agent.prose import Block

LONG_SENTENCE_WORDS = 36
"""A sentence above this is split where that is safe; plain-language guides ask for 20 to 25 on average."""
SHORTEST_HALF_WORDS = 6

_FILLERS = re.compile(
    r"(?i)\bit (?:is important to note|is worth noting|should be noted|is interesting to note"
    r"|is worth mentioning) that (?=(\w))"
)
_WORDY_PHRASE = re.compile(
    r"(?i)(?<![\w\ue000'\u2019\-])(?:(?P<article>an?) )?(?P<phrase>"
    + "|".join(re.escape(phrase) for phrase in sorted(WORDY, key=len, reverse=True))
    + r")(?![\w\ue000'\u2019\-])"
)
_SENTENCE_BEGINS = re.compile(r"(?:^|[.!?\u2026:]\)?\s)[\s*_~(]*$")
_DOUBLED = re.compile(
    rf"(?i)(?<![\w\ue000'\u2019\-])({'|'.join(sorted(NEVER_TWICE))})"
    r"(?P<gap>[ \n]+)(?P<again>\1)(?![\w\ue000'\u2019\-])"
)
_SPACES = re.compile(r"(?<=[^\s\ue000|])  +(?=[^\s|])|(?<=[^\s|])  +(?=[^\s\ue000|])")
_SPACE_BEFORE = re.compile(r"(?<=[A-Za-z0-9)\]\ue000])(?P<gap> +)(?=[,;.!?](?:\s|$))")
_CONTRACTION = re.compile(r"(?<=[A-Za-z])['\u2019](?=(?:s|t|re|ve|ll|d|m)\b)")
_PRONOUN_I = re.compile(
    r"(?<![\w\ue000.\-])i(?=(?:['\u2019](?:m|ve|ll|d)\b)| (?:am|have|was|think|believe|hope|know)\b)"
)
_SENTENCE_START = re.compile(r"(?P<last>[A-Za-z]{3,})(?P<stop>[.!?]) (?P<word>[a-z]+)(?=[ ,'\u2019])")
_SEMICOLON = re.compile(r"(?<=[A-Za-z)\ue000])(?P<mark>; )(?P<word>[a-z]+)(?= [a-z]+)")
_COMMA_AND = re.compile(
    r"(?<=[a-z])(?P<mark>, and )(?P<word>it|they|we|this|these|he|she|there) (?=(?:is|are|was|were|has|have|had"
    r"|can|cannot|could|will|would"
    r"|must|should|may|might|does|do|did)\b)"
)
_SUBORDINATE = re.compile(
    r"(?i)\b(?:if|when|whenever|while|although|though|because|since|unless|until|as|after|before|whether|that"
    r"|which|who|whom|whose|where"
    r"|what|how|why|once|so|than|both|either|neither|not only|given|provided|let|suppose|imagine|said|says|say)\b"
    r"|:|\u2014|\u2013| - "
)
_WORD = re.compile(r"[^\s\ue000]*[\w\ue000][^\s]*")
_SHORT_FORM = re.compile(r"(?i)(?<![\w\ue000\-])[a-z]+['\u2019](?:t|re|ve|ll|m)(?![\w'\u2019\ue000\-])")
_QUESTION_WITH_NOT = re.compile(r" (?:i|we|you|he|she|it|they|this|that|these|those|the|there|a|an)\b", re.IGNORECASE)


def whitespace(block: Block) -> Iterator[Edit]:
    """Several spaces in a row, and a space before a comma or a full stop."""
    for match in _SPACES.finditer(block.masked):
        lead, trail = _neighbours(block, match.start(), match.end())
        yield Edit(match.start(), match.end(), " ", "whitespace", "one space is enough", lead, trail)
    for match in _SPACE_BEFORE.finditer(block.masked):
        lead, _ = _neighbours(block, match.start(), match.end())
        yield Edit(match.start(), match.end(), "", "punctuation", "no space before this mark", lead, 1)


def _neighbours(block: Block, start: int, end: int) -> tuple[int, int]:
    before = re.search(r"[^\s\ue000]*$", block.masked[:start])
    after = re.match(r"[^\s\ue000]*", block.masked[end:])
    return len(before[0]) if before else 0, len(after[0]) if after else 0


def doubled_words(block: Block) -> Iterator[Edit]:
    """A small word typed twice, also across a line break."""
    for match in _DOUBLED.finditer(block.masked):
        if not match["again"].islower():
            continue  # "The the" is a slip, "the The" may be a band.
        gap = match["gap"]
        if "\n" not in gap:
            start, end = match.start("gap"), match.end("again")
        elif match.end() < len(block.masked) and block.masked[match.end()] == " ":
            start, end = match.start("again"), match.end() + 1
        else:
            continue
        lead = match.start("gap") - match.start() if "\n" not in gap else 0
        yield Edit(start, end, "", "style", f'"{match["again"]}" stands twice', lead)


def wordy_phrases(block: Block) -> Iterator[Edit]:
    """Phrases that a shorter one says as well."""
    for match in _FILLERS.finditer(block.masked):
        first, start = match[1], match.start()
        capital = match[0][0].isupper()
        after = first.upper() if capital else first
        yield Edit(start, match.end() + 1, after, "style", "the sentence says it without the announcement")
    for match in _WORDY_PHRASE.finditer(block.masked):
        phrase = match["phrase"]
        if phrase.isupper() or any(word[:1].isupper() for word in phrase.split()[1:]):
            continue
        named = phrase[0].isupper() and not match["article"]
        if named and not _SENTENCE_BEGINS.search(block.masked[: match.start()]):
            continue  # "the Utilize platform"
        after = WORDY[phrase.lower()]
        article = match["article"]
        if article:
            if phrase.lower().startswith(("a ", "is ", "are ", "in ", "on ", "prior")):
                continue
            suited = "an" if after[0] in "aeio" else "a"
            after = f"{suited.capitalize() if article[0].isupper() else suited} {after}"
        elif phrase[0].isupper():
            after = after[0].upper() + after[1:]
        yield Edit(
            match.start(), match.end(), after, "style", f'"{WORDY[phrase.lower()]}" says the same in fewer words'
        )


def formal_forms(block: Block) -> Iterator[Edit]:
    """Contractions written out, for a formal style; not "it's" and "he'd", which can mean two things."""
    for match in _SHORT_FORM.finditer(block.masked):
        after = FORMAL.get(match[0].lower().replace("\u2019", "'"))
        inverted = match[0].lower().endswith("t") and _QUESTION_WITH_NOT.match(block.masked, match.end())
        if after is None or inverted or match[0].isupper():
            continue
        after = after[0].upper() + after[1:] if match[0][0].isupper() else after
        yield Edit(match.start(), match.end(), after, "style", "written out in a formal style")


def apostrophes(blocks: list[Block]) -> list[list[Edit]]:
    """Where a document mixes straight and typographic apostrophes, the rarer kind becomes the other."""
    kinds = Counter(match[0] for block in blocks for match in _CONTRACTION.finditer(block.masked))
    if len(kinds) < 2:
        return [[] for _ in blocks]
    majority = "\u2019" if kinds["\u2019"] > kinds["'"] else "'"
    found = []
    for block in blocks:
        edits = []
        for match in _CONTRACTION.finditer(block.masked):
            if match[0] != majority:
                lead, trail = _neighbours(block, match.start(), match.end())
                edits.append(
                    Edit(
                        match.start(),
                        match.end(),
                        majority,
                        "punctuation",
                        "one kind of apostrophe throughout",
                        lead,
                        trail,
                    )
                )
        found.append(edits)
    return found


def capitals(block: Block) -> Iterator[Edit]:
    """Sentences that surely begin get a capital letter, and so does the pronoun "I"."""
    for match in _PRONOUN_I.finditer(block.masked):
        yield Edit(match.start(), match.end(), "I", "capitalization", 'the pronoun "I" has a capital')
    for match in _SENTENCE_START.finditer(block.masked):
        if match["last"].lower() in ABBREVIATED or match["word"] not in STARTERS:
            continue
        at = match.start("word")
        yield Edit(
            at,
            at + 1,
            match["word"][0].upper(),
            "capitalization",
            "a sentence starts with a capital",
            0,
            len(match["word"]) - 1,
        )
    first = re.match(r"[a-z]+(?=[ '\u2019])", block.masked)
    if block.kind == "paragraph" and first and first[0] in STARTERS and re.search(r"[.!?]$", block.masked.rstrip()):
        yield Edit(
            0, 1, first[0][0].upper(), "capitalization", "a sentence starts with a capital", 0, len(first[0]) - 1
        )


def long_sentences(block: Block) -> Iterator[Edit]:
    """Splits a very long sentence between two clauses that surely stand on their own."""
    for start, end in _sentence_spans(block.masked):
        sentence = block.masked[start:end]
        if len(_WORD.findall(sentence)) <= LONG_SENTENCE_WORDS or sentence.count("; ") > 1:
            continue
        for pattern in (_SEMICOLON, _COMMA_AND):
            split = next((match for match in pattern.finditer(sentence) if _splits_well(sentence, match)), None)
            if split:
                at, to = start + split.start("mark"), start + split.end("word")
                yield Edit(
                    at, to, f". {split['word'].capitalize()}", "clarity", "two shorter sentences read more easily"
                )
                break


def _splits_well(sentence: str, match: re.Match[str]) -> bool:
    left, right = sentence[: match.start("mark")], sentence[match.start("word") :]
    if min(len(_WORD.findall(left)), len(_WORD.findall(right))) < SHORTEST_HALF_WORDS:
        return False
    if any(left.count(opening) != left.count(closing) for opening, closing in ("()", "[]", "{}")):
        return False
    if left.count("*") % 2 or left.count("_") % 2 or left.count("~") % 2:
        return False
    if match["mark"].startswith(";"):
        if match["word"] in NEEDS_COMMA and not sentence[match.end("word") :].startswith(","):
            return False
        return match["word"] in CLAUSE_STARTERS and ":" not in left
    return (
        not _SUBORDINATE.search(left)
        and ";" not in left
        and not left.lstrip("*_ ").startswith(("To ", "By ", "For ", "In "))
    )


def _sentence_spans(masked: str) -> Iterator[tuple[int, int]]:
    start = 0
    for stop in re.finditer(r"[.!?](?=\s|$)", masked):
        word = re.search(r"([A-Za-z.]+)$", masked[start : stop.start()])
        if word and (word[1].lower() in ABBREVIATED or "." in word[1] or len(word[1]) == 1):
            continue
        yield start, stop.end()
        start = stop.end()

"""Readability figures of English prose, by the published formulas."""

import re

from agents.enhancement_agent.models import ReadabilityFigures
from agents.enhancement_agent.prose import MASK, Block, blocks

READING_SPEED_WORDS_PER_MINUTE = 238
"""Silent reading of English non-fiction: M. Brysbaert, "How many words do we read per minute?", 2019."""

_WORD = re.compile(r"[^\W_]+(?:['\u2019.,-][^\W_]+)*")
_SENTENCE_END = re.compile(r"[.!?\u2026]+[\"'\u201d\u2019)\]*_\ue000]*(?=\s|$)")
_ABBREVIATION = re.compile(
    r"(?:\b(?:e\.g|i\.e|etc|vs|cf|approx|resp|Dr|Mr|Mrs|Ms|Prof|St|Jr|Sr|Inc|Ltd|Co|Corp|No|Fig|Figs|Eq|Sec|Ch|Vol|pp|ed|eds"
    r"|al|Jan|Feb|Mar|Apr|Aug|Sept?|Oct|Nov|Dec|U\.S|a\.m|p\.m)|\b[A-Z])\.$"
)
_LINK_TEXT = re.compile(r"!?\[([^\[\]]*)\]\([^()]*\)")
_CODE = re.compile(r"(`+)(.+?)\1", re.DOTALL)
_MARK = re.compile(r"\[\^?[\w-]+\]|<[^<>]+>|https?://\S+|[*_~`#]+")

_VOWEL_GROUP = re.compile(r"[aeiouy]+")
_SILENT_ENDING = re.compile(
    r"[^aeiouyl]e$|[aeiouy]le$"  # hope, whole, but not table
    r"|[^aeiouydtrl]ed$|[aeiouy][rl]ed$|lled$|rred$"  # walked, shared, called, but not needed, hundred, settled
    r"|[^aeiouycgsxzlh]es$|[aeiouy]les$|[^cs]hes$"  # makes, files, but not boxes, churches, tables
    r"|[^aeiouy]e(?:less|ly|ments?|ful|fully)$"  # careless, lovely, statement
)
_TWO_VOWELS = re.compile(
    r"i(?:a(?!r?ge|r$|rs$|rly$)|o(?!n|us)|u)|(?<![cgst])ious|eo(?!us)|[^qg]ua(?=[lt])|(?<=[^aeiouyqg])uou"
)
_SOFTENED = re.compile(r"(?:ci|ti|si|gi)(?:al|an|at(?=io))")
_SYLLABLE_EXCEPTIONS = {
    word: count
    for count, words in {
        1: ("are breathe eye eyes fire here hour hours once one our poor queue queues real there were where"),
        2: (
            "being beings business buyer cafe chocolate client clients create creates cruel dial diet doing"
            " dual duel equal evening every fluent fuel giant going higher interest interests iron jewel"
            " layer liar lion naive people poem poet prism programme programmes queueing quiet quota react"
            " really rhythm science sciences seeing several someone something sometimes somewhat somewhere"
            " therefore trial trials value values via wednesday whereas"
        ),
        3: (
            "actual annual another anything area areas audio camera created creating creation creative"
            " creator deity denial diary different everyone everything family genuine gradual idea ideas"
            " influence interested interesting manual museum mutual period piano pioneer pioneers poetry"
            " quietly radio ratio recipe recipes scientist scientists simile studio theories theory usual"
            " valuable vegetable vehicle vehicles video violence violent virtual visual"
        ),
        4: (
            "actually algorithm algorithms anxiety apostrophe biology catastrophe continuous cooperate"
            " coordinate coordinates evaluate evaluates geography geology gradually influences mechanism"
            " mechanisms reality reliable reliably situation situations society temperature usually variety"
            " virtually"
        ),
        5: ("continuously cooperation coordination evaluated evaluation individual"),
        6: ("reliability"),
    }.items()
    for word in words.split()
}
"""Words that the rule below counts wrongly; the counts are those of a dictionary's hyphenation."""


def syllables(word: str) -> int:
    """How many syllables an English word has: groups of vowels, less silent endings; never less than one."""
    letters = re.sub(r"[^a-z]", "", word.lower())
    if not letters:
        return 1
    if letters in _SYLLABLE_EXCEPTIONS:
        return _SYLLABLE_EXCEPTIONS[letters]
    count = len(_VOWEL_GROUP.findall(letters))
    count -= bool(_SILENT_ENDING.search(letters))
    count += len(_TWO_VOWELS.findall(letters)) - len(_SOFTENED.findall(letters))
    count += bool(re.search(r"ying$|(?<!q)uing$", letters)) + letters.endswith(("ism", "isms", "thm"))
    return max(count, 1)


def prose_text(markdown: str) -> list[str]:
    """The document's prose as plain text, one entry a block: link texts kept, code and marks dropped."""
    return [_plain(block) for block in blocks(markdown)]


def _plain(block: Block) -> str:
    text = _LINK_TEXT.sub(r"\1", block.text)
    text = _CODE.sub(r"\2", text)
    return " ".join(_MARK.sub(" ", text).split())


def sentences(text: str) -> list[str]:
    """Splits plain text at sentence ends, not at abbreviations or decimal points."""
    found = []
    start = 0
    for end in _SENTENCE_END.finditer(text):
        if _ABBREVIATION.search(text[start : end.end()].rstrip(MASK)) and end[0].startswith("."):
            continue
        found.append(text[start : end.end()].strip())
        start = end.end()
    found.append(text[start:].strip())
    return [sentence for sentence in found if _WORD.search(sentence)]


def flesch_reading_ease(words_per_sentence: float, syllables_per_word: float) -> float:
    """206.835 - 1.015 W/S - 84.6 Y/W (R. Flesch, "A new readability yardstick", 1948); 60 to 70 is plain English."""
    return 206.835 - 1.015 * words_per_sentence - 84.6 * syllables_per_word


def flesch_kincaid_grade(words_per_sentence: float, syllables_per_word: float) -> float:
    """0.39 W/S + 11.8 Y/W - 15.59 (J. P. Kincaid et al., Research Branch Report 8-75, 1975): a US school grade."""
    return 0.39 * words_per_sentence + 11.8 * syllables_per_word - 15.59


def automated_readability_index(characters_per_word: float, words_per_sentence: float) -> float:
    """4.71 C/W + 0.5 W/S - 21.43 (E. A. Smith and R. J. Senter, AMRL-TR-66-220, 1967): a US school grade."""
    return 4.71 * characters_per_word + 0.5 * words_per_sentence - 21.43


def readability(markdown: str, language: str = "en") -> ReadabilityFigures:
    """The figures of a document's prose; the formulas hold for English, so other languages get null scores."""
    lengths: list[int] = []
    words: list[str] = []
    for text in prose_text(markdown):
        for sentence in sentences(text):
            in_sentence = _WORD.findall(sentence)
            lengths.append(len(in_sentence))
            words += in_sentence
    counts = [syllables(word) for word in words]
    per_sentence = len(words) / len(lengths) if lengths else 0.0
    per_word = sum(counts) / len(words) if words else 0.0
    characters = sum(sum(character.isalnum() for character in word) for word in words) / len(words) if words else 0.0
    scored = bool(words) and language.lower().split("-")[0] == "en"
    return ReadabilityFigures(
        flesch_reading_ease=round(flesch_reading_ease(per_sentence, per_word), 1) if scored else None,
        flesch_kincaid_grade=round(flesch_kincaid_grade(per_sentence, per_word), 1) if scored else None,
        automated_readability_index=round(automated_readability_index(characters, per_sentence), 1) if scored else None,
        words=len(words),
        sentences=len(lengths),
        syllables=sum(counts),
        words_per_sentence=round(per_sentence, 1),
        syllables_per_word=round(per_word, 2),
        longest_sentence_words=max(lengths, default=0),
        complex_words=sum(count >= 3 for count in counts),
        reading_time_minutes=round(len(words) / READING_SPEED_WORDS_PER_MINUTE, 1),
    )

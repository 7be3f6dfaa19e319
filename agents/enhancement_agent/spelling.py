"""Corrects only typing errors that can mean one word; whatever could be a name or a term stays as it is."""

import re
from collections import Counter
from functools import cache

from spellchecker import SpellChecker

from agents.enhancement_agent.edit import Edit
from agents.enhancement_agent.misspellings import corrections
from agents.enhancement_agent.prose import Block

_WORD = re.compile(r"(?<![\w'\u2019.\-\ue000$@#])[A-Za-z]+(?:['\u2019][a-z]+)?(?![\w\-\ue000]|['\u2019.]\w)")
_SENTENCE_START = re.compile(r"(?:^|[.!?\u2026:]\)?\s)[\s*_~(]*$")
_TITLE = re.compile(r"\b(?:Mr|Mrs|Ms|Dr|Prof|St|Sr|Sra|Mme|Fr)\.\s+$")
_NAME_GOES_ON = re.compile(r"\s+(?:(?:de|la|van|von|der|of|&)\s+)?[A-Z]")
_ANY_WORD = re.compile(r"[a-z]+(?:['\u2019][a-z]+)?")

SHORTEST_GUESSED_WORD = 6
"""Shorter unknown words are too often abbreviations and names."""
RARE_COUNT = 5_000
"""Occurrences in the dictionary's corpus (1.6 billion words) that a word needs to be the likely intention."""
CLEAR_LEAD = 50
"""How many times as frequent the best guess must be as the next one."""
PART_COUNT = 8_000
"""Occurrences that make a word common enough to be a part of a compound ("hostname", "datastore")."""

_TERMS = frozenset(
    "upsert upserts upserted upserting alloc allocs malloc calloc dealloc regex regexes config configs param"
    " params async mutex"
    " mutexes daemon daemons kernel kubectl nginx redis valkey postgres sqlite mongo kafka pydantic asyncio"
    " uvicorn fastapi"
    " numpy pandas pytorch keras sklearn jupyter pytest linter linters chatbot chatbots dataset datasets ingest ingests"
    " lemma lemmas perplexity logits logit softmax relu epoch epochs token tokens embedding embeddings finetune"
    " hashmap".split()
)
"""Technical words that are a single typing error away from an everyday word."""

_PREFIXES = (
    "anti auto back bi by co counter cross cyber de dis down e extra fore geo hyper im in inter intra ir macro"
    " mega meta micro mid"
    " mini mis mono multi nano neo non off on out over para photo poly post pre pro proto pseudo quasi re semi"
    " side sub super tele"
    " trans tri ultra un under uni up"
).split()
_SUFFIXES = (
    "s es ed d ing er ers r rs or ors ly y able ible ability ness less like ful wise ish ize izes ized izing izer"
    " izers ization ise"
    " ises ised ising iser isers isation ist ists ism ity ities al ally ment ments ship hood fy fies fied fying"
    " ification ic ical"
    " ically ous est ation ations ative ator ators ated ates ate ating ance ence ant ent"
).split()


@cache
def _dictionary() -> SpellChecker:
    return SpellChecker(language="en")


@cache
def _corrections() -> dict[str, str]:
    return corrections()


def is_word(word: str) -> bool:
    """Whether the English dictionary knows a word as it is written."""
    return word.lower().replace("\u2019", "'") in _dictionary()


def _count(word: str) -> int:
    return int(_dictionary()[word])


@cache
def _could_be_a_word(word: str) -> bool:
    """Whether an unlisted word is made of known parts, by affixes or as a compound: then it is no typing error."""
    if word in _dictionary():
        return True
    for suffix in _SUFFIXES:
        stem = word.removesuffix(suffix)
        doubled = len(stem) > 3 and stem[-1] == stem[-2]
        stems = (stem, stem + "e", stem + "y" if suffix.startswith("i") else stem, stem[:-1] if doubled else stem)
        if stem != word and len(stem) >= 3 and any(_count(candidate) >= RARE_COUNT // 10 for candidate in stems):
            return True
    for prefix in _PREFIXES:
        rest = word.removeprefix(prefix)
        if rest != word and len(rest) >= 4 and _count(rest) >= RARE_COUNT // 10:
            return True
    return any(_is_part(word[:cut]) and _is_part(word[cut:]) for cut in range(3, len(word) - 2))


def _is_part(part: str) -> bool:
    return _count(part) >= PART_COUNT or (part.endswith("s") and len(part) > 3 and _count(part[:-1]) >= PART_COUNT)


@cache
def guess(word: str) -> str | None:
    """The common word that an unknown lower-case word surely is with a single typing error, or None."""
    if (
        len(word) < SHORTEST_GUESSED_WORD
        or not word.isascii()
        or not word.isalpha()
        or word in _TERMS
        or _could_be_a_word(word)
    ):
        return None
    counts = Counter({near: _count(near) for near in _dictionary().edit_distance_1(word) if near in _dictionary()})
    ranked = [(near, count) for near, count in counts.most_common() if near.isalpha()]
    if not ranked or ranked[0][1] < RARE_COUNT or (len(ranked) > 1 and ranked[0][1] < CLEAR_LEAD * ranked[1][1]):
        return None
    best = ranked[0][0]
    same_ends = best[0] == word[0] and best[-1] == word[-1]
    return best if same_ends and _is_slip(word, best) else None


_VOWELS_MISTAKEN = frozenset("ae ea ei ie ai ia io oi iu ui ou uo".split())
"""Vowels that sound alike or are neighbours on the keyboard; others make another word ("smushed", not "smashed")."""


def _common_prefix_length(word: str, other: str) -> int:
    return next(
        (index for index, (a, b) in enumerate(zip(word, other, strict=False)) if a != b), min(len(word), len(other))
    )


def _is_slip(word: str, best: str) -> bool:
    """Whether fingers slip so: a letter too many, too few, two swapped, or a vowel for another; no land's spelling."""
    head = _common_prefix_length(word, best)
    tail = min(_common_prefix_length(word[::-1], best[::-1]), len(word) - head, len(best) - head)
    typed, meant = word[head : len(word) - tail], best[head : len(best) - tail]
    if {typed, meant} & {"re", "er"} or (typed == "u" and word[head - 1] == "o"):
        return False  # centre, colour
    if len(typed) == len(meant) == 1:
        return f"{typed}{meant}" in _VOWELS_MISTAKEN
    if meant == "" and typed not in word[max(0, head - 2) : head] + word[head + len(typed) : head + len(typed) + 2]:
        return False  # a letter of its own makes another word ("terroir"); fingers stutter ("chararcters")
    doubled = typed != "" and meant == "" and typed == word[head - 1]
    return not (doubled and re.match(r"(?:ed|ing|ers?|ation)$", word[head + 1 :])) and word[0] != word[1]


def _begins(block: Block, match: re.Match[str]) -> bool:
    """Whether a word with a capital has it because it begins a sentence, and not because it begins a name."""
    before = block.masked[: match.start()]
    if _SENTENCE_START.search(before) is None or _TITLE.search(before):
        return False
    return _NAME_GOES_ON.match(block.masked, match.end()) is None


def misspelled(blocks: list[Block], document: str) -> list[list[Edit]]:
    """The spelling corrections of each block.

    A word is guessed only where it occurs once in the whole `document`, code, links and quotations included: what
    stands there too is an identifier or a name. One with a capital is corrected only where a sentence begins, or
    where the document has the same slip in lower case too: in any other position it is a name.
    """
    occurrences = Counter(_ANY_WORD.findall(document.lower()))
    in_lower_case = {match[0] for block in blocks for match in _WORD.finditer(block.masked) if match[0].islower()}
    titled = {word.lower() for word in re.findall(r"(?<=[a-z,] )[A-Z][a-z]+", document)}
    found = []
    for block in blocks:
        edits = []
        for match in _WORD.finditer(block.masked):
            word = match[0].replace("\u2019", "'")
            lower = word.lower()
            if word != lower and word != lower.capitalize():
                continue
            if word != lower and lower not in in_lower_case and not _begins(block, match):
                continue
            right = _corrections().get(lower)
            if right is None and word == lower and occurrences[lower] == 1 and lower not in titled:
                right = guess(lower)
            if right is None:
                continue
            if "\u2019" in match[0]:
                right = right.replace("'", "\u2019")
            after = right.capitalize() if word != lower else right
            edits.append(Edit(match.start(), match.end(), after, "spelling", f'"{match[0]}" is a misspelling'))
        found.append(edits)
    return found

"""Words reduced to comparable terms: stop words out, endings off."""

import re

from pantheon.text.words import UNDIVIDED, plain

_WORD = re.compile(r"[^\W_]+(?:['\u2019\-][^\W_]+)*")
STOP_WORDS = frozenset(
    "a about above across after again against ago all almost alone along already also although always am among an and"
    " another any anybody anyone anything anywhere are aren't around as at away back be became because become becomes"
    " been before being below between both but by came can can't cannot come comes could couldn't did didn't do does"
    " doesn't doing don't done down during each either else enough even ever every everybody everyone everything"
    " everywhere few first for from further get gets give given gives go goes going gone got had hadn't has hasn't have"
    " haven't having he her here hers herself him himself his how however i if in indeed instead into is isn't it it's"
    " its itself just keep kept know known knows last least less let let's like likely long look looks made make makes"
    " making many may maybe me might mine more moreover most mostly much must my myself near nearly need needs neither"
    " never next no nobody none nor not nothing now nowhere of off often on once one ones only onto or other others our"
    " ours ourselves out over own part per perhaps put quite rather really said same say says see seem seems seen"
    " several shall she should shouldn't since so some somebody someone something sometimes somewhere still such take"
    " taken takes than that that's the their theirs them themselves then there there's therefore these they thing"
    " things this those though three through thus to together too toward towards two under until up upon us use used"
    " uses using usually very want wants was wasn't way ways we well went were weren't what whatever when whenever"
    " where wherever whether which while who whoever whole whom whose why will with within without won't would"
    " wouldn't yes yet you your yours yourself yourselves".split()
)
_SUFFIXES = ("ations", "ation", "ities", "ings", "ions", "ing", "ion", "ity", "ies", "ers", "ed", "er", "es", "ly", "s")
_MIN_STEM_CHARACTERS = 3


def stem(word: str) -> str:
    """A crude stem, good enough to make "retries", "retried" and "retry" meet."""
    word = word.lower().replace("\u2019", "'").removesuffix("'s")
    if not word.isascii() or any(character.isdigit() for character in word):
        return word
    for suffix in _SUFFIXES:
        if word.endswith(suffix) and len(word) - len(suffix) >= _MIN_STEM_CHARACTERS:
            if suffix == "s" and word.endswith(("ss", "us", "is")):
                return word
            word = word[: -len(suffix)] + ("y" if suffix == "ies" else "")
            break
    if len(word) > _MIN_STEM_CHARACTERS and word[-1] == word[-2] and word[-1] not in "aeiouls":
        word = word[:-1]  # stopped, stop
    return word[:-1] + "y" if word.endswith("i") else word.removesuffix("e") if len(word) > 4 else word


def words(text: str) -> list[str]:
    return _WORD.findall(plain(text))


def terms(text: str) -> list[str]:
    """The comparable terms of a text, in order, repeated as they are."""
    found: list[str] = []
    for word in words(text):
        if UNDIVIDED.search(word):
            # No space marks where its words end; pairs of characters find the same matter well enough.
            found += [word[at : at + 2] for at in range(max(1, len(word) - 1))]
            continue
        lower = word.lower().replace("\u2019", "'")
        if lower in STOP_WORDS or (len(lower) < 2 and not lower.isdigit()):
            continue
        found.append(stem(lower))
    return found

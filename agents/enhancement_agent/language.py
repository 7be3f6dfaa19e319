"""Detects whether prose is English, by its small words: rules of English do harm to any other language."""

import re
from collections.abc import Iterable

ENGLISH, UNKNOWN = "en", "und"
"""BCP 47 tags; `und` is undetermined: some language, but not English."""

FEWEST_WORDS = 20
"""Shorter prose says too little of its language, and counts as English."""
SMALLEST_SHARE = 0.07
"""Of small words among all. English prose has 20 to 45 in a hundred, terse notes 10; other languages hardly any."""
_SMALL_WORDS = frozenset(
    "the and to of that with for it are this be from by not have has they which when but its you your as on can or at"
    " if their than then there these those were will would we our into no".split()
)
_WORD = re.compile(r"[^\W\d_]+(?:['\u2019][^\W\d_]+)?")


def language_of(prose: Iterable[str]) -> str:
    """`en`, or `und` for prose that is not English."""
    words = [word.lower() for text in prose for word in _WORD.findall(text)]
    letters = sum(len(word) for word in words)
    if letters and sum(len(word) for word in words if not word.isascii()) > letters / 2:
        return UNKNOWN  # another script, which may not even divide its words
    if len(words) < FEWEST_WORDS:
        return ENGLISH
    share = sum(word in _SMALL_WORDS for word in words) / len(words)
    return ENGLISH if share >= SMALLEST_SHARE else UNKNOWN

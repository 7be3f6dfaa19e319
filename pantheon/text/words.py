"""Words of inline Markdown: the text that a reader sees of it, how many words that is, and the bare words alone."""

import re

_LINK = re.compile(r"\[([^\]]*)\]\([^)]*\)")
_MARKUP = re.compile(r"\\([\\`*<])|(?<!\w)[*_]{1,3}(?=\S)|(?<=\S)[*_]{1,3}(?!\w)|`+")


def plain(inline: str) -> str:
    """The text a reader sees of one line of inline Markdown."""
    text = _LINK.sub(r"\1", inline)
    return _MARKUP.sub(lambda match: match.group(1) or "", text)


_WORD = re.compile(r"[^\W_]+(?:['\u2019.\-/][^\W_]+)*")

UNDIVIDED = re.compile("[\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\u0e00-\u0e7f]")
"""Characters of scripts that put no space between words: Chinese, Japanese, Thai."""


def count_words(text: str) -> int:
    """Two characters of a script without spaces count as a word, which is what translators reckon with."""
    bare = plain(text)
    undivided = len(UNDIVIDED.findall(bare))
    if undivided:
        bare = UNDIVIDED.sub(" ", bare)
    return len(_WORD.findall(bare)) + (undivided + 1) // 2


def folded(text: str) -> str:
    """Words alone, in lower case, one space between: for finding a wording whatever its punctuation."""
    return " ".join(re.findall(r"\w+", plain(text).casefold()))

"""Prose cut into sentences, with abbreviations, initials, decimals, addresses and code left whole."""

import re

_MASKED = re.compile(
    r"`+[^`]*`+"  # code
    r"|\]\([^)]*\)"  # a link's target
    r"|(?:https?://|www\.)\S+?(?=[.,;:!?]*(?:\s|$|\)))"  # an address, without the sentence's own punctuation
    r"|\b[\w.+-]+@[\w-]+(?:\.[\w-]+)+"
)
_BOUNDARY = re.compile(
    r"""([.!?\u2026]+)(["'\u201d\u2019)\]*_]*)(\s+)(?=["'\u201c\u2018(\[*_`]*[^\W_])|[\u3002\uff01\uff1f]"""
)
_LAST_WORD = re.compile(r"(\S+)$")
_ABBREVIATIONS = frozenset(
    "mr mrs ms dr prof st sr jr vs cf al approx est dept inc ltd co corp fig figs eq sec ch vol pp ed eds rev gen col"
    " e.g i.e a.m p.m u.s u.k jan feb mar apr jun jul aug sep sept oct nov dec z.b u.a bzw no nos".split()
)
_NEVER_END = frozenset("e.g i.e vs cf mr mrs ms dr prof approx fig figs eq z.b bzw no nos st".split())
_COUNTRIES = frozenset(("u.s", "u.k", "u.n", "e.u"))
_STARTER = re.compile(r"(?:The|It|In|But|And|A|An|This|That|They|He|She|We|Its|For|At|When|If|On)\b")
_MAX_PARENTHESIS_CHARACTERS = 400


def split_sentences(text: str) -> list[str]:
    """The sentences of one paragraph, in order, each stripped. Nothing of the text is lost but white space."""
    text = " ".join(text.split())
    # Same length, so that positions found in the mask are positions in the text.
    mask = _MASKED.sub(lambda match: "x" * len(match.group()), text)
    sentences: list[str] = []
    start = 0
    for match in _BOUNDARY.finditer(mask):
        if not match.group(1):  # an East Asian full stop needs no space behind it
            end = match.end()
        elif _is_inner_stop(mask, start, match):
            continue
        else:
            end = match.start(3)
        if sentence := text[start:end].strip():
            sentences.append(sentence)
        start = match.end()
    if rest := text[start:].strip():
        sentences.append(rest)
    return sentences


def _is_inner_stop(mask: str, start: int, match: re.Match[str]) -> bool:
    """Whether the punctuation at `match` stands inside a sentence."""
    before = mask[start : match.start()]
    following = mask[match.end() :].lstrip("\"'\u201c\u2018([*_`")[:1]
    if following.islower():
        return True
    if _inside_parenthesis(before + match.group(1) + match.group(2)):
        return True
    if match.group(1) != ".":
        return False
    word = _LAST_WORD.search(before)
    if word is None:
        return False
    last = word.group(1).strip("\"'\u201c\u2018([*_").lower()
    if last in _NEVER_END:
        return last not in {"no", "st"} or following.isdigit() or (last == "st" and following.isupper())
    if last in _COUNTRIES:
        return _STARTER.match(mask[match.end() :]) is None
    if last in _ABBREVIATIONS:
        # "Inc." and "a.m." may end a sentence; a word with a capital after a month or "Fig." more often goes on.
        return following.isdigit()
    return len(last) == 1 and last.isalpha() and last != "i" and following.isupper()  # initials: J. R. Smith


def _inside_parenthesis(before: str) -> bool:
    opening = before.rfind("(")
    return opening > before.rfind(")") and len(before) - opening < _MAX_PARENTHESIS_CHARACTERS

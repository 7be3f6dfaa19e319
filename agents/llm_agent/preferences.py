"""What a style and guidelines ask of an extractive writer, which can choose sentences but not reword them."""

import re
from collections.abc import Iterable
from dataclasses import dataclass

from pantheon.text.words import plain

from .corpus import Sentence

_AVOID = re.compile(
    r"\b(?:avoid(?: using)?|do not use|don't use|never use|banned|forbidden|not allowed|without)(?: the)?"
    r"(?: words?| phrases?| terms?)?\s*:?\s*([^.;\n]+)",
    re.IGNORECASE,
)
_QUOTED = re.compile(r"[\"\u201c'\u2018`]([^\"\u201d'\u2019`]{2,40})[\"\u201d'\u2019`]")
_FIRST_PERSON = re.compile(r"\b(?:I|me|my|mine|we|us|our|ours)\b")
_MAX_PHRASE_WORDS = 3
_UNWELCOME = -0.6
_CONCISE_WORDS = 18


@dataclass(frozen=True, slots=True)
class Preferences:
    """Wishes an offline writer can honour."""

    avoided: tuple[str, ...] = ()
    no_exclamations: bool = False
    no_questions: bool = False
    no_first_person: bool = False
    concise: bool = False
    technical: bool = False
    bullets: bool = False

    def bias(self, sentences: Iterable[Sentence]) -> dict[int, float]:
        """How much each sentence gains or loses by the preferences."""
        return {sentence.index: amount for sentence in sentences if (amount := self._wish(sentence))}

    def _wish(self, sentence: Sentence) -> float:
        text = plain(sentence.text)
        amount = 0.0
        if self.breaks(text):
            amount += _UNWELCOME
        if self.concise:
            amount += 0.06 if sentence.words <= _CONCISE_WORDS else -0.06
        if self.technical and "`" in sentence.text:
            amount += 0.1
        return amount

    def breaks(self, text: str) -> bool:
        """Whether a sentence is against what was asked for."""
        lower = text.casefold()
        return (
            any(re.search(rf"\b{re.escape(phrase)}\b", lower) is not None for phrase in self.avoided)
            or (self.no_exclamations and "!" in text)
            or (self.no_questions and text.endswith("?"))
            or (self.no_first_person and _FIRST_PERSON.search(text) is not None)
        )


def read_preferences(style: str, guidelines: str) -> Preferences:
    text = f"{style}\n{guidelines}"
    lower = text.casefold()
    formal = re.search(r"\bformal\b", lower) is not None and re.search(r"\b(?:in|not |less )formal\b", lower) is None
    return Preferences(
        avoided=avoided_phrases(guidelines),
        no_exclamations=formal
        or re.search(r"\bno exclamation|without exclamation|avoid exclamation", lower) is not None,
        no_questions=re.search(r"\bno (?:rhetorical )?questions?\b", lower) is not None,
        no_first_person=formal
        or re.search(r"\bno first person\b|\bthird person\b|avoid(?: the)? first person", lower) is not None,
        concise=re.search(r"\b(?:concise|brief|terse|plain|short sentences)\b", lower) is not None,
        bullets=re.search(r"\bbullet(?:s|ed| points?| lists?)?\b", lower) is not None
        and re.search(r"\b(?:no|avoid|without) bullet", lower) is None,
        technical=re.search(r"\b(?:technical|developers?|engineers?|programmers?)\b", lower) is not None,
    )


def avoided_phrases(guidelines: str) -> tuple[str, ...]:
    """The words that lines such as `Avoid: leverage, "game changer"` name; nothing of a line that describes instead."""
    found: dict[str, None] = {}
    for match in _AVOID.finditer(guidelines):
        listing = match.group(1)
        quoted = _QUOTED.findall(listing)
        pieces = quoted or re.split(r",|\bor\b|\band\b|/", listing)
        if not quoted and ":" not in match.group() and "word" not in match.group().casefold():
            continue
        for piece in pieces:
            phrase = piece.strip(" \t\"'`\u201c\u201d*_-").casefold()
            if phrase and len(phrase.split()) <= _MAX_PHRASE_WORDS:
                found[phrase] = None
    return tuple(found)

"""Tone against the guidelines, whose rules are read from their text, and against hype, shouting and clickbait."""

import re
from collections.abc import Sequence
from dataclasses import dataclass

from .document import Document
from .language import plain
from .models import Issue, Severity

_EXCERPT_CHARACTERS = 240
_MAX_PHRASE_WORDS = 4
HYPE = (
    "revolutionary", "revolutionize", "game changer", "game changing", "game-changer", "game-changing", "cutting-edge",
    "cutting edge", "best-in-class", "world-class", "next-generation", "next-level", "mind-blowing", "jaw-dropping",
    "unparalleled", "unprecedented", "groundbreaking", "ground-breaking", "paradigm shift", "supercharge", "skyrocket",
    "turbocharge", "unleash", "seamlessly", "seamless", "effortlessly", "magical", "insanely", "incredibly", "amazing",
    "awesome", "epic", "ultimate guide", "must-have", "ninja", "guru", "rockstar", "synergy", "disruptive",
)  # fmt: skip
_CLICKBAIT = re.compile(
    r"you won['\u2019]?t believe|will (?:shock|blow|surprise|amaze) you|one (?:weird|simple) trick|"
    r"what happen(?:s|ed) next|\b\d+ (?:\w+ ){0,3}(?:reasons|ways|tricks|secrets|hacks|things)\b.*\b(?:you|"
    r"your|shock|never|must)\b|"
    r"doctors hate|the truth about|nobody (?:tells|talks)|this changes everything",
    re.IGNORECASE,
)
_SHOUTING = re.compile(r"(?:\b[A-Z]{4,}\b[\s,!]*){2,}|\b[A-Z]{9,}\b")
_EMOJI = re.compile("[\U0001f300-\U0001faff\u2600-\u27bf\U0001f1e6-\U0001f1ff]")
_FIRST_PERSON = re.compile(
    r"(?<![\w.])(?:I|I['\u2019]\w+|[Mm]e|[Mm]y|[Ww]e|[Ww]e['\u2019]\w+|[Oo]urs?|[Uu]s)(?![\w.-])"
)
_SECOND_PERSON = re.compile(r"\b(?:you|your|yours|yourself|yourselves|you['\u2019]\w+)\b", re.IGNORECASE)
_CONTRACTION = re.compile(
    r"\b\w+(?:n['\u2019]t|['\u2019](?:re|ve|ll|d|m))\b|\b(?:it|that|there|what|let)['\u2019]s\b", re.IGNORECASE
)
_NEGATION = r"(?:no|not|never|avoid|without|don['\u2019]t(?: use)?|do not(?: use)?|refrain from)"


@dataclass(frozen=True, slots=True)
class Rules:
    """What guidelines ask for, as far as it can be checked without judgement."""

    avoided: tuple[str, ...] = ()
    required: tuple[str, ...] = ()
    no_exclamations: bool = False
    no_questions: bool = False
    no_heading_questions: bool = False
    no_emoji: bool = False
    no_first_person: bool = False
    no_second_person: bool = False
    no_contractions: bool = False
    wants_first_person: bool = False
    wants_second_person: bool = False
    max_sentence_words: int | None = None


def read_rules(guidelines: str, style: str = "") -> Rules:
    """The rules in guidelines written for people: a line each, a list, or prose."""
    text = guidelines.casefold().replace("\u2019", "'")
    formal = re.search(r"\bformal\b", f"{text}\n{style.casefold()}") is not None
    formal = formal and re.search(r"\b(?:informal|not (?:too |overly )?formal|less formal)\b", text) is None

    def forbids(what: str) -> bool:
        return re.search(rf"\b{_NEGATION}\b[^.;\n]{{0,40}}\b(?:{what})", text) is not None

    def asks(what: str) -> bool:
        return re.search(rf"\b(?:{what})\b", text) is not None and not forbids(what)

    limit = re.search(
        r"sentences?\b[^.\n]{0,40}?\b(?:under|below|than|most|exceed|of|to|over|max(?:imum)?)\D{0,12}(\d+) words", text
    )
    heading_questions = re.search(
        rf"\b{_NEGATION}\b[^.;\n]*\bquestions?\b[^.;\n]*\b(?:headings?|titles?|headlines?)\b", text
    )
    return Rules(
        avoided=_phrases(guidelines, r"(?:avoid|do not use|don['\u2019]t use|never use|banned|forbidden|no)"),
        required=_phrases(guidelines, r"(?:must mention|always mention|must include|required)"),
        no_exclamations=forbids("exclamation"),
        no_questions=forbids(r"(?:rhetorical )?questions?\b") and heading_questions is None,
        no_heading_questions=heading_questions is not None,
        no_emoji=forbids("emojis?\\b"),
        no_first_person=forbids("first[- ]person") or asks("third[- ]person"),
        no_second_person=forbids("second[- ]person") or forbids("address(?:ing)? the reader"),
        no_contractions=forbids("contractions?\\b") or formal,
        wants_first_person=asks("first[- ]person"),
        wants_second_person=asks("second[- ]person") or asks("address the reader"),
        max_sentence_words=int(limit.group(1)) if limit else None,
    )


def _phrases(guidelines: str, verb: str) -> tuple[str, ...]:
    """The phrases behind `Avoid:` or `Never use the words`; a rule that describes instead of naming has none."""
    found: dict[str, None] = {}
    named = r"(?P<named>(?: the)?(?: following)?(?: words?| phrases?| terms?| expressions?))?"
    pattern = rf"\b{verb}{named}\s*(?P<colon>:)?\s*(?P<list>[^.;\n]+)"
    for match in re.finditer(pattern, guidelines, re.IGNORECASE):
        listing = match.group("list")
        quoted = re.findall(
            r"[\"\u201c`]([^\"\u201d`]{2,40})[\"\u201d`]|(?<!\w)['\u2018]([^'\u2019]{2,40})['\u2019](?!\w)", listing
        )
        if quoted:
            pieces = [double or single for double, single in quoted]
        elif match.group("colon") or match.group("named"):
            pieces = re.split(r",|\bor\b|\band\b|/", listing)
        else:
            continue
        for piece in pieces:
            phrase = piece.strip(" \t\"'`*_-\u201c\u201d()").casefold()
            if phrase and len(phrase.split()) <= _MAX_PHRASE_WORDS:
                found[phrase] = None
    return tuple(found)


def _has(phrase: str, text: str) -> bool:
    return re.search(rf"(?<!\w){re.escape(phrase)}(?!\w)", text) is not None


def check_tone(document: Document, rules: Rules) -> list[Issue]:
    issues: list[Issue] = []
    for heading in document.headings:
        issues += _check_heading(heading.text, heading.line, rules)
    for sentence in document.sentences:
        issues += _check_sentence(sentence.text, sentence.line, rules)
    return issues + _check_whole(document, rules)


def _issue(severity: Severity, line: int | None, text: str, message: str, suggestion: str) -> Issue:
    return Issue(
        kind="tone",
        severity=severity,
        line=line,
        excerpt=text[:_EXCERPT_CHARACTERS],
        message=message,
        suggestion=suggestion,
    )


def _check_heading(text: str, line: int, rules: Rules) -> list[Issue]:
    issues = _check_words(text, line, rules)
    if _CLICKBAIT.search(text):
        issues.append(_issue("medium", line, text, "the heading baits instead of saying", "Say what the section says."))
    if text.endswith("?") and (rules.no_heading_questions or rules.no_questions):
        issues.append(_issue("medium", line, text, "the guidelines want no question as a heading", "State it."))
    if "!" in text:
        severity: Severity = "medium" if rules.no_exclamations else "low"
        issues.append(_issue(severity, line, text, "an exclamation mark in a heading", "Take it out."))
    return issues


def _check_sentence(text: str, line: int, rules: Rules) -> list[Issue]:
    bare = plain(text)
    issues = _check_words(text, line, rules)
    if "!!" in bare or "?!" in bare:
        issues.append(_issue("medium", line, text, "several marks in a row shout", "End it with a full stop."))
    elif bare.rstrip("\"'\u201d\u2019)").endswith("!") or "! " in bare:
        if rules.no_exclamations:
            issues.append(_issue("medium", line, text, "the guidelines want no exclamation marks", "Use a full stop."))
        else:
            issues.append(_issue("low", line, text, "an exclamation mark", "Use a full stop."))
    if rules.no_questions and bare.endswith("?"):
        issues.append(_issue("medium", line, text, "the guidelines want no questions", "State it."))
    quoteless = re.sub(r"[\"\u201c][^\"\u201d]*[\"\u201d]", "", bare)
    if rules.no_first_person and _FIRST_PERSON.search(quoteless):
        issues.append(_issue("medium", line, text, "the guidelines want no first person", "Say it without I or we."))
    if rules.no_second_person and _SECOND_PERSON.search(quoteless):
        issues.append(_issue("medium", line, text, "the guidelines want no second person", "Say it without you."))
    if rules.no_contractions and _CONTRACTION.search(quoteless):
        issues.append(_issue("low", line, text, "a contraction, where the guidelines want none", "Write it out."))
    size = len(bare.split())
    if rules.max_sentence_words is not None and size > rules.max_sentence_words:
        message = f"a sentence of {size} words, where the guidelines allow {rules.max_sentence_words}"
        issues.append(_issue("low", line, text, message, "Make two sentences of it."))
    return issues


def _check_words(text: str, line: int, rules: Rules) -> list[Issue]:
    bare = plain(text)
    lower = bare.casefold().replace("\u2019", "'")
    issues: list[Issue] = []
    avoided = [phrase for phrase in rules.avoided if _has(phrase, lower)]
    if avoided:
        message = f"the guidelines avoid {', '.join(repr(phrase) for phrase in avoided)}"
        issues.append(_issue("medium", line, text, message, "Use a plain word, or none."))
    hype = [phrase for phrase in HYPE if _has(phrase, lower) and phrase not in avoided]
    if hype:
        verb = "praises" if len(hype) == 1 else "praise"
        message = f"{', '.join(repr(phrase) for phrase in hype)} {verb} instead of saying"
        issues.append(_issue("low", line, text, message, "Say what it does."))
    if _SHOUTING.search(bare):
        issues.append(_issue("medium", line, text, "words in capitals shout", "Write them in small letters."))
    if rules.no_emoji and _EMOJI.search(bare):
        issues.append(_issue("medium", line, text, "the guidelines want no emoji", "Take it out."))
    return issues


def _check_whole(document: Document, rules: Rules) -> list[Issue]:
    text = " ".join(plain(sentence.text) for sentence in document.sentences)
    if not text:
        return []
    issues: list[Issue] = []
    lower = f"{document.title.text if document.title else ''} {text}".casefold()
    issues += [
        _issue("medium", None, "", f"the guidelines require {phrase!r}, which does not occur", f"Mention {phrase}.")
        for phrase in rules.required
        if not _has(phrase, lower)
    ]
    if rules.wants_second_person and not _SECOND_PERSON.search(text):
        issues.append(
            _issue("medium", None, "", "the guidelines ask for the second person", "Address the reader as you.")
        )
    if rules.wants_first_person and not _FIRST_PERSON.search(text):
        issues.append(_issue("medium", None, "", "the guidelines ask for the first person", "Write as I or we."))
    return issues


def distinct(issues: Sequence[Issue]) -> list[Issue]:
    """Each issue once, in the order of the text."""
    seen: dict[tuple[str, int | None, str, str], Issue] = {}
    for issue in issues:
        seen.setdefault((issue.kind, issue.line, issue.excerpt, issue.message), issue)
    return sorted(
        seen.values(), key=lambda issue: (issue.line if issue.line is not None else 0, issue.kind, issue.message)
    )

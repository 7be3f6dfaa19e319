"""Claims checked against the sources: numbers, names and quotations must be in them, and the matter must be theirs."""

import math
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Protocol

from .document import Document, Sentence
from .language import (
    all_numbers,
    folded,
    has_capital_nouns,
    names,
    numbers,
    plain,
    quotations,
    split_sentences,
    stem,
    terms,
)
from .models import Issue, Severity

_MIN_CLAIM_TERMS = 4
UNSUPPORTED_BELOW = 0.35
DOUBTFUL_BELOW = 0.5
"""Shares of a sentence's weight that its best passage covers: a paraphrase keeps well above, an invention below."""
_EXCERPT_CHARACTERS = 240
OPPOSED_FROM = 0.6
"""Share of a sentence's other terms that a passage needs to count as its opposite."""
_MIN_OPPOSED_TERMS = 2


_CONTRARIES = (
    (
        "rise rises rose risen increase increased grew grow grown climbed",
        "fall falls fell fallen decrease decreased dropped declined shrank shrunk",
    ),
    ("raise raised", "lower lowered reduce reduced"),
    ("higher", "lower"),
    ("better best", "worse worst"),
    ("uphill upward upwards", "downhill downward downwards"),
    ("faster", "slower"),
    ("larger bigger", "smaller"),
    ("cheaper", "dearer costlier"),
    ("stronger", "weaker"),
    ("warmer hotter", "colder cooler"),
    ("safe", "unsafe dangerous"),
    ("possible", "impossible"),
    ("legal", "illegal"),
    ("accepted", "rejected refused"),
    ("allowed permitted", "forbidden prohibited banned"),
    ("synchronous", "asynchronous"),
    ("mutable", "immutable"),
)


def _opposites() -> dict[str, frozenset[str]]:
    found: dict[str, set[str]] = defaultdict(set)
    for pair in _CONTRARIES:
        left, right = (set(map(stem, words.split())) for words in pair)
        for word in left:
            found[word] |= right - left
        for word in right:
            found[word] |= left - right
    return {word: frozenset(others) for word, others in found.items() if others}


_SHOWN = {stem(word): word for pair in reversed(_CONTRARIES) for words in pair for word in reversed(words.split())}
"""The word that a reader is shown for a stem."""
OPPOSITES = _opposites()
"""Words by their stems, and those that say the contrary."""


class SourceText(Protocol):
    @property
    def title(self) -> str: ...
    @property
    def text(self) -> str: ...


@dataclass(frozen=True, slots=True)
class Passage:
    """Two consecutive sentences of a source: a paraphrase often joins two sentences, or splits a sentence in two."""

    source: int
    terms: frozenset[str]


class Evidence:
    """All sources of an article, indexed."""

    def __init__(self, sources: Sequence[SourceText]) -> None:
        self.texts = [f"{source.title}\n{source.text}" for source in sources]
        self.numbers = [all_numbers(text) for text in self.texts]
        self.folded = [f" {folded(text)} " for text in self.texts]
        self.stems = [set(map(stem, text.split())) for text in self.folded]
        self.passages: list[Passage] = []
        self.holders: dict[str, list[int]] = defaultdict(list)
        counts: Counter[str] = Counter()
        for number, source in enumerate(sources, start=1):
            sets = [frozenset(terms(sentence)) for sentence in _sentences(source.text)]
            for position, own in enumerate(sets):
                following = sets[position + 1] if position + 1 < len(sets) else frozenset()
                for term in own | following:
                    self.holders[term].append(len(self.passages))
                self.passages.append(Passage(number, own | following))
                counts.update(own)
        total = max(1, len(self.passages))
        self.capital_nouns = has_capital_nouns(" ".join(self.texts))
        self.rarity = {term: math.log(1 + total / count) for term, count in counts.items()}
        # A word no source has weighs as much as the rarest, not more: paraphrases bring new words.
        self.unknown_rarity = max(self.rarity.values(), default=1.0)

    def support(self, sentence: str) -> tuple[float, int | None]:
        """How much of a sentence its best passage covers, and the source that passage is in."""
        own = set(terms(sentence))
        weights = {term: self.rarity.get(term, self.unknown_rarity) for term in own}
        whole = sum(weights.values())
        covered: dict[int, float] = defaultdict(float)
        for term in sorted(own):
            for passage in self.holders.get(term, ()):
                covered[passage] += weights[term]
        if not covered or not whole:
            return 0.0, None
        best = min(covered, key=lambda passage: (-covered[passage], passage))
        return covered[best] / whole, self.passages[best].source

    def opposed(self, sentence: str) -> tuple[str, str] | None:
        """A word of the sentence, and its opposite in the passage that says the same otherwise; None where all agree.

        Only where no passage that comes as near has the word itself: sources may report a rise and a fall.
        """
        own = set(terms(sentence))
        for term in sorted(own & OPPOSITES.keys()):
            others = OPPOSITES[term]
            rest = own - {term}
            if others & own or len(rest) < _MIN_OPPOSED_TERMS:
                continue
            against, most = None, 0.0
            agrees = 0.0
            for passage in {passage for other in rest for passage in self.holders.get(other, ())}:
                held = self.passages[passage].terms
                share = len(rest & held) / len(rest)
                if term in held:
                    agrees = max(agrees, share)
                elif others & held and share > most:
                    against, most = min(others & held), share
            if against is not None and most >= OPPOSED_FROM and agrees < most:
                return term, against
        return None

    def with_number(self, number: str) -> list[int]:
        return [source for source, held in enumerate(self.numbers, start=1) if number in held]

    def with_wording(self, wording: str) -> list[int]:
        words = f" {folded(wording)} "
        return [source for source, text in enumerate(self.folded, start=1) if words in text]

    def with_name(self, name: str) -> list[int]:
        """Sources that hold the name, or every word of it in some form."""
        words = [stem(word) for word in folded(name).split() if len(word) > 1]
        return [source for source, held in enumerate(self.stems, start=1) if all(word in held for word in words)]


def _sentences(text: str) -> Iterable[str]:
    for paragraph in text.replace("\r\n", "\n").split("\n\n"):
        yield from split_sentences(paragraph)


def check_claims(document: Document, sources: Sequence[SourceText], topic: str = "") -> tuple[list[Issue], int]:
    """The issues, and how many claims were checked. Without sources no claim can be checked."""
    if not any(source.text.strip() for source in sources):
        return [], 0
    evidence = Evidence(sources)
    topic_words = f" {folded(topic)} "
    issues: list[Issue] = []
    claims = 0
    for sentence in document.sentences:
        bare = plain(sentence.text)
        telling = len(terms(bare)) >= _MIN_CLAIM_TERMS or numbers(bare) or quotations(bare)
        if bare.endswith("?") or not telling:
            continue
        claims += 1
        if issue := _check(sentence, bare, evidence, topic_words):
            issues.append(issue)
    return issues, claims


def _check(sentence: Sentence, bare: str, evidence: Evidence, topic_words: str) -> Issue | None:
    cited = {number for number in sentence.cites if 1 <= number <= len(evidence.texts)}
    missing: list[str] = []
    uncited: dict[str, list[int]] = {}
    severity: Severity = "medium"

    def require(what: str, holders: list[int], weight: Severity) -> None:
        nonlocal severity
        if not holders:
            missing.append(what)
            severity = "high" if weight == "high" else severity
        elif cited and not cited & set(holders):
            uncited[what] = holders

    def issue(message: str, suggestion: str, severity: Severity = "medium", kind: str = "unsupported_claim") -> Issue:
        return Issue(
            kind=kind,
            severity=severity,
            line=sentence.line,
            excerpt=sentence.text[:_EXCERPT_CHARACTERS],
            message=message,
            suggestion=suggestion,
        )

    for number in numbers(bare):
        if f" {number} " not in topic_words:
            require(f"the number {number}", evidence.with_number(number), "high")
    for quotation in quotations(bare):
        require(f'the quotation "{quotation}"', evidence.with_wording(quotation), "high")
    for name in [] if evidence.capital_nouns else names(bare):
        if f" {folded(name)} " not in topic_words:
            require(f'the name "{name}"', evidence.with_name(name), "high" if " " in name else "medium")
    if missing:
        return issue(f"no source contains {_listed(missing)}", "Take it out, or say what a source says.", severity)
    if opposed := evidence.opposed(bare):
        word, opposite = (_SHOWN[term] for term in opposed)
        return issue(f"this says '{word}' where the source says '{opposite}'", "Say what the source says.")
    share, best = evidence.support(bare)
    if share < UNSUPPORTED_BELOW:
        return issue(
            f"no passage of the sources says this: the nearest shares {share:.0%} of its matter",
            "Take the sentence out, or say what a source says.",
        )
    if uncited:
        what, holders = next(iter(uncited.items()))
        marks = ", ".join(f"[{number}]" for number in sorted(cited))
        return issue(
            f"{what} is not in the source cited ({marks}) but in [{holders[0]}]",
            f"Cite [{holders[0]}].",
            kind="citation",
        )
    if share < DOUBTFUL_BELOW:
        where = f"; nearest is [{best}]" if best is not None else ""
        return issue(
            f"the sources say this only in part: the nearest passage shares {share:.0%} of its matter{where}",
            "Keep closer to the source.",
            "low",
        )
    return None


def _listed(items: Sequence[str]) -> str:
    return items[0] if len(items) == 1 else f"{', '.join(items[:-1])} and {items[-1]}"

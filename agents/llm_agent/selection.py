"""Which sentences are taken: the best for a number of words, none twice, none without what it leans on."""

from collections.abc import Iterable
from dataclasses import dataclass, field

from .corpus import Corpus, Sentence, strip_connective
from .ranking import Ranking

_REPETITION_WEIGHT = 0.55
_TOO_ALIKE = 0.62
"""Above this likeness to a sentence already taken, another sentence repeats it."""
_NEIGHBOUR_BONUS = 0.12
_LONGEST_CHAIN = 4


@dataclass(slots=True)
class Selection:
    """The sentences taken so far, and what that makes of the others."""

    corpus: Corpus
    ranking: Ranking
    bias: dict[int, float] = field(default_factory=dict)
    banned: set[int] = field(default_factory=set)
    taken: set[int] = field(default_factory=set)
    words: int = 0
    nearest: dict[int, float] = field(default_factory=dict)
    part: dict[int, int] = field(default_factory=dict)

    def score(self, index: int) -> float:
        return self.ranking.scores[index] + self.bias.get(index, 0.0)

    def may_take(self, sentence: Sentence) -> bool:
        return (
            sentence.usable
            and sentence.index not in self.banned
            and sentence.index not in self.taken
            and self.nearest.get(sentence.index, 0.0) < _TOO_ALIKE
        )

    def unit(self, sentence: Sentence, part: int) -> list[Sentence] | None:
        """The sentence with those before it that it leans on; None when they cannot stand in the same part."""
        chain = [sentence]
        while chain[0].leans:
            before = self.corpus.predecessor(chain[0])
            if before is None:
                return None
            if before.index in self.taken:
                if self.part[before.index] != part:
                    return None
                break
            if not before.usable or before.index in self.banned or len(chain) == _LONGEST_CHAIN:
                return None
            chain.insert(0, before)
        return chain

    def take(self, sentences: Iterable[Sentence], part: int) -> None:
        """Take them for one part of the article, numbered `part`."""
        for sentence in sentences:
            if sentence.index in self.taken:
                continue
            self.taken.add(sentence.index)
            self.part[sentence.index] = part
            self.words += sentence.words
            for other, likeness in self.ranking.likeness[sentence.index].items():
                if likeness > self.nearest.get(other, 0.0):
                    self.nearest[other] = likeness

    def drop(self, sentence: Sentence) -> None:
        self.taken.discard(sentence.index)
        self.words -= sentence.words

    def fill(self, candidates: list[Sentence], words: int, part: int) -> list[Sentence]:
        """Take the best units of `candidates` until about `words` words are taken; returned in text order."""
        gained: list[Sentence] = []
        count = 0
        open_candidates = [sentence for sentence in candidates if self.may_take(sentence)]
        while open_candidates and count < words:
            best: tuple[float, list[Sentence]] | None = None
            remaining: list[Sentence] = []
            for sentence in open_candidates:
                if not self.may_take(sentence):
                    continue
                remaining.append(sentence)
                unit = self.unit(sentence, part)
                if unit is None:
                    continue
                size = sum(member.words for member in unit)
                # Half over is as far from the mark as half under: the last unit may go over by half of itself.
                if count and count + size / 2 > words:
                    continue
                gain = self._gain(unit)
                if best is None or gain > best[0]:
                    best = (gain, unit)
            if best is None:
                break
            self.take(best[1], part)
            gained.extend(best[1])
            count += sum(member.words for member in best[1])
            open_candidates = remaining
        return sorted(gained, key=lambda sentence: sentence.index)

    def _gain(self, unit: list[Sentence]) -> float:
        total = 0.0
        for member in unit:
            total += self.score(member.index) - _REPETITION_WEIGHT * self.nearest.get(member.index, 0.0)
        if unit[0].index - 1 in self.taken and self.corpus.predecessor(unit[0]) is not None:
            total += _NEIGHBOUR_BONUS
        return total / len(unit)

    def passage(self, sentences: list[Sentence], words: int, part: int) -> list[Sentence]:
        """The opening run of `sentences`, as they follow one another, of about `words` words."""
        run: list[Sentence] = []
        count = 0
        for sentence in sentences:
            if not self.may_take(sentence) or (sentence.leans and not run):
                if run:
                    break
                continue
            if run and (count + sentence.words / 2 > words or sentence.index != run[-1].index + 1):
                break
            run.append(sentence)
            count += sentence.words
        self.take(run, part)
        return run


def standing(sentence: Sentence, before: Sentence | None) -> str:
    """The sentence's text as it stands after `before`: tied to it, or freed of the word that tied it to another."""
    if before is not None and before.index == sentence.index - 1 and before.section == sentence.section:
        return sentence.text
    return strip_connective(sentence.text)

"""How much each sentence matters: centrality in a graph of likeness, closeness to the topic, position in its text."""

import math
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence

from pantheon.text.terms import terms

from .corpus import Corpus, Sentence

Vector = dict[str, float]

_DAMPING = 0.85
_ROUNDS = 40
_TOLERANCE = 1e-6
_MIN_LIKENESS = 0.08
_COMMON_TERM_SHARE = 0.12
"""A term in more sentences than this says nothing of their likeness, and costs most of the time of finding it."""
_COMMON_TERM_FLOOR = 40
_CENTRALITY_WEIGHT, _TOPIC_WEIGHT, _POSITION_WEIGHT = 0.45, 0.35, 0.20
_SHORT_WORDS, _LONG_WORDS = 8, 38


class Ranking:
    """Scores in 0..1 of the sentences of a corpus, and their likeness to one another."""

    def __init__(self, corpus: Corpus, topic: str) -> None:
        self.sentences = corpus.sentences
        counts = Counter(term for sentence in corpus.sentences for term in set(sentence.terms))
        total = max(1, len(corpus.sentences))
        self.rarity = {term: math.log(1 + total / count) for term, count in counts.items()}
        self.vectors = [self.vector(sentence.terms) for sentence in corpus.sentences]
        self.likeness = _graph(self.vectors, counts, total)
        self.topic = self.vector(terms(topic))
        self.relevance = _scaled([self._relevance(vector) for vector in self.vectors])
        centrality = _scaled(_power_iteration(self.likeness))
        self.scores = [
            (
                _CENTRALITY_WEIGHT * centrality[sentence.index]
                + _TOPIC_WEIGHT * self.relevance[sentence.index]
                + _POSITION_WEIGHT * _position_weight(sentence)
            )
            * _length_factor(sentence.words)
            for sentence in corpus.sentences
        ]

    def vector(self, of: Iterable[str]) -> Vector:
        """The terms as a unit vector, rare ones heavier."""
        unknown = max(self.rarity.values(), default=1.0)
        weights = {term: (1 + math.log(count)) * self.rarity.get(term, unknown) for term, count in Counter(of).items()}
        norm = math.sqrt(sum(weight * weight for weight in weights.values()))
        return {term: weight / norm for term, weight in weights.items()} if norm else {}

    def _relevance(self, vector: Vector) -> float:
        """Half likeness to the topic, half the share of the topic that is named: likeness alone favours scraps."""
        total = sum(self.topic.values())
        named = sum(weight for term, weight in self.topic.items() if term in vector)
        return 0.5 * cosine(vector, self.topic) + (0.5 * named / total if total else 0.0)

    def keywords(self, sentences: Iterable[Sentence]) -> list[str]:
        """The terms that mark these sentences, the strongest first; ties in alphabetical order."""
        counts = Counter(term for sentence in sentences for term in sentence.terms)
        return sorted(counts, key=lambda term: (-counts[term] * self.rarity.get(term, 1.0), term))


def cosine(left: Mapping[str, float], right: Mapping[str, float]) -> float:
    if len(left) > len(right):
        left, right = right, left
    return sum(weight * right.get(term, 0.0) for term, weight in left.items())


def _graph(vectors: Sequence[Vector], counts: Mapping[str, int], total: int) -> list[dict[int, float]]:
    common = max(_COMMON_TERM_FLOOR, int(_COMMON_TERM_SHARE * total))
    holders: dict[str, list[int]] = defaultdict(list)
    for index, vector in enumerate(vectors):
        for term in vector:
            if counts[term] <= common:
                holders[term].append(index)
    graph: list[dict[int, float]] = [{} for _ in vectors]
    for index, vector in enumerate(vectors):
        met: dict[int, float] = defaultdict(float)
        for term, weight in vector.items():
            for other in holders.get(term, ()):
                if other > index:
                    met[other] += weight * vectors[other][term]
        for other, likeness in met.items():
            if likeness >= _MIN_LIKENESS:
                graph[index][other] = graph[other][index] = likeness
    return graph


def _power_iteration(graph: Sequence[Mapping[int, float]]) -> list[float]:
    size = len(graph)
    if not size:
        return []
    totals = [sum(edges.values()) for edges in graph]
    ranks = [1.0 / size] * size
    for _ in range(_ROUNDS):
        following = [(1 - _DAMPING) / size] * size
        for index, edges in enumerate(graph):
            if totals[index]:
                share = _DAMPING * ranks[index] / totals[index]
                for other, likeness in edges.items():
                    following[other] += share * likeness
        moved = sum(abs(new - old) for new, old in zip(following, ranks, strict=True))
        ranks = following
        if moved < _TOLERANCE:
            break
    return ranks


def _scaled(values: list[float]) -> list[float]:
    low, high = min(values, default=0.0), max(values, default=0.0)
    return [(value - low) / (high - low) if high > low else 0.0 for value in values]


def _position_weight(sentence: Sentence) -> float:
    """Writers put what matters first: of the paragraph above all."""
    return 1.0 / (1 + sentence.position)


def _length_factor(size: int) -> float:
    if size < _SHORT_WORDS:
        return 0.6
    return 1.0 if size <= _LONG_WORDS else 0.75

"""An article composed from a corpus: an opening, sections under the sources' own headings, an end."""

import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from itertools import pairwise

from pantheon.text.terms import STOP_WORDS, stem, terms, words
from pantheon.text.words import UNDIVIDED

from .article import Article, Line, Paragraph, Part
from .corpus import OPENING, Corpus, Section, Sentence, is_usable
from .ranking import Ranking, cosine
from .selection import Selection, standing

SHORT_ARTICLE_WORDS = 200
"""Below this an article is one run of paragraphs: headings would outweigh what they head."""
_SECTION_WORDS = 160
_MAX_SECTIONS = 14
_MIN_SECTION_WORDS = 40
_OPENING_SHARE, _CLOSING_SHARE = 0.13, 0.08
_MIN_UNNAMED_CLOSING_SENTENCES = 2
_MAX_END_WORDS = 220
_SAME_MATTER = 0.42
_NEW_SOURCE_BONUS = 0.15
_TOLERANCE = 0.08
_WITHOUT_GAPS_CLOSED, _WITH_GAPS_CLOSED = 0.93, 1.06
"""Shares of the length that are filled by worth, and up to which gaps inside paragraphs are closed after that."""
_GAP_SENTENCES = 3
_PARAGRAPH_SENTENCES, _PARAGRAPH_MIN_SENTENCES, _PARAGRAPH_WORDS = 5, 3, 130
_GENERIC_HEADING = re.compile(
    r"^(?:introduction|overview|background|details?|usage|examples?|how it works|description|discussion|general|"
    r"motivation|basics|notes?|more|other|results?|analysis|why|what|how)$",
    re.IGNORECASE,
)
OPENING_PART, CLOSING_PART, FIRST_BODY_PART = 0, 1, 2


@dataclass(slots=True)
class Group:
    """Sections of one or several sources that speak of the same matter."""

    sections: list[Section]
    value: float = 0.0
    vector: dict[str, float] = field(default_factory=dict)
    heading: str = ""

    @property
    def sentences(self) -> list[Sentence]:
        return [sentence for section in self.sections for sentence in section.sentences]


def compose(selection: Selection, title: str, target_words: int) -> Article:
    """An article of about `target_words` words, as far as the sources reach."""
    corpus = selection.corpus
    if target_words < SHORT_ARTICLE_WORDS or corpus.words < SHORT_ARTICLE_WORDS:
        chosen = selection.fill(corpus.sentences, target_words, OPENING_PART)
        return Article(title, [Part("", paragraphs_of(chosen))])

    opening = take_opening(selection, target_words)
    closing = take_closing(selection, target_words)
    bodies = _bodies(selection, title, target_words - selection.words)
    parts = [Part("", paragraphs_of(opening))] if opening else []
    parts += [Part(group.heading, paragraphs_of(chosen)) for group, chosen in bodies]
    if not opening and parts:
        parts.insert(0, Part("", []))
    if closing:
        parts.append(Part("Conclusion", paragraphs_of(closing)))
    return Article(title, parts)


def take_opening(selection: Selection, target_words: int) -> list[Sentence]:
    """The opening passage of the source that comes nearest to the topic, helped by the next where it is short."""
    budget = min(_MAX_END_WORDS, round(_OPENING_SHARE * target_words))
    candidates = [section for section in selection.corpus.sections if section.role == "opening"]
    candidates = candidates or [section for section in selection.corpus.sections if section.role == "body"]
    chosen: list[Sentence] = []
    for section in sorted(candidates, key=lambda section: (-_lead_value(selection, section), section.index)):
        missing = budget - sum(sentence.words for sentence in chosen)
        if missing < budget / 3:
            break
        chosen += selection.passage(section.sentences, missing, OPENING_PART)
    return chosen


def take_closing(selection: Selection, target_words: int) -> list[Sentence]:
    """The passage with which a source itself concludes, or the last paragraph of one."""
    budget = min(_MAX_END_WORDS, round(_CLOSING_SHARE * target_words))
    sections = selection.corpus.sections
    named = [section.sentences for section in sections if section.role == "closing"]
    last = {section.source: section for section in sections if section.role != "opening"}
    ends = [
        [sentence for sentence in section.sentences if sentence.paragraph == section.sentences[-1].paragraph]
        for section in last.values()
    ]
    for sentences in _by_worth(selection, named):
        if chosen := selection.passage(sentences, budget, CLOSING_PART):
            return chosen
    for sentences in _by_worth(selection, ends):
        chosen = selection.passage(sentences, budget, CLOSING_PART)
        if len(chosen) >= _MIN_UNNAMED_CLOSING_SENTENCES:
            return chosen
        for sentence in chosen:  # one sentence out of a paragraph concludes nothing
            selection.drop(sentence)
    return []


def _by_worth(selection: Selection, passages: list[list[Sentence]]) -> list[list[Sentence]]:
    def worth(passage: list[Sentence]) -> float:
        return sum(selection.score(sentence.index) for sentence in passage) / len(passage)

    return sorted(passages, key=lambda passage: (-worth(passage), passage[0].index))


def _lead_value(selection: Selection, section: Section) -> float:
    lead = section.sentences[:4]
    return sum(
        selection.score(sentence.index) + selection.ranking.relevance[sentence.index] for sentence in lead
    ) / len(lead)


def _bodies(selection: Selection, title: str, budget: int) -> list[tuple[Group, list[Sentence]]]:
    groups = _groups(selection)
    count = max(1, min(_MAX_SECTIONS, round(budget / _SECTION_WORDS)))
    ordered = _ordered_by_value(selection, groups)
    chosen, spare = ordered[:count], [*ordered[count:], *_gathered(selection)]
    # More sections where those chosen cannot hold the length.
    while spare and sum(_available(selection, group) for group in chosen) < 1.15 * budget:
        chosen.append(spare.pop(0))
    chosen.sort(key=lambda group: group.sections[0].index)
    shares = _shares(selection, chosen, round(_WITHOUT_GAPS_CLOSED * budget))
    filled = [
        (group, selection.fill(group.sentences, share, FIRST_BODY_PART + number))
        for number, (group, share) in enumerate(zip(chosen, shares, strict=True))
    ]
    filled = _gaps_closed(selection, _topped_up(selection, filled, budget), round(_WITH_GAPS_CLOSED * budget))
    kept: list[tuple[Group, list[Sentence]]] = []
    for group, sentences in filled:
        if sum(sentence.words for sentence in sentences) >= _MIN_SECTION_WORDS or len(filled) == 1:
            kept.append((group, sentences))
        else:
            for sentence in sentences:
                selection.drop(sentence)
    kept = _topped_up(selection, kept, budget)
    name_groups([group for group, _ in kept], selection.corpus, selection.ranking, title)
    return [(group, sentences) for group, sentences in kept if sentences]


def _gaps_closed(
    selection: Selection, filled: list[tuple[Group, list[Sentence]]], limit: int
) -> list[tuple[Group, list[Sentence]]]:
    """Sentences left out between two of one paragraph, put back while there is room: it reads as it was written."""
    corpus = selection.corpus
    gaps: list[tuple[int, int, int, list[Sentence]]] = []
    for number, (_, sentences) in enumerate(filled):
        for before, after in pairwise(sentences):
            missing = corpus.sentences[before.index + 1 : after.index]
            if missing and len(missing) <= _GAP_SENTENCES and before.paragraph == after.paragraph:
                size = sum(sentence.words for sentence in missing)
                if all(_may_close(selection, sentence) for sentence in missing):
                    gaps.append((size, before.index, number, missing))
    room = limit - sum(sentence.words for _, sentences in filled for sentence in sentences)
    for size, index, number, missing in sorted(gaps, key=lambda gap: gap[:2]):
        if size > room:
            break
        selection.take(missing, selection.part[index])
        room -= size
        filled[number][1].extend(missing)
        filled[number][1].sort(key=lambda sentence: sentence.index)
    return filled


def _may_close(selection: Selection, sentence: Sentence) -> bool:
    # A sentence of two words means something where it stood, though not in another position.
    fits = selection.may_take(sentence) or is_usable(sentence.text, min_words=2)
    return fits and sentence.index not in selection.banned and sentence.index not in selection.taken


def _topped_up(
    selection: Selection, filled: list[tuple[Group, list[Sentence]]], budget: int
) -> list[tuple[Group, list[Sentence]]]:
    """What is still missing of the length, taken where there is most to take."""
    result = list(filled)
    for _ in range(len(result) + 1):
        missing = budget - sum(sentence.words for _, sentences in result for sentence in sentences)
        if missing < _TOLERANCE * budget or not result:
            break
        order = sorted(range(len(result)), key=lambda number: -_available(selection, result[number][0]))
        gained: list[Sentence] = []
        for number in order:
            group, sentences = result[number]
            part = selection.part[sentences[0].index] if sentences else FIRST_BODY_PART + len(result) + number
            gained = selection.fill(group.sentences, missing, part)
            if gained:
                result[number] = (group, sorted(sentences + gained, key=lambda sentence: sentence.index))
                break
        if not gained:
            break
    return result


def _groups(selection: Selection) -> list[Group]:
    groups: list[Group] = []
    for section in selection.corpus.sections:
        if section.role == "closing" or _available(selection, Group([section])) < _MIN_SECTION_WORDS:
            continue
        vector = selection.ranking.vector([term for sentence in section.sentences for term in sentence.terms])
        for group in groups:
            other_source = all(member.source != section.source for member in group.sections)
            if other_source and cosine(group.vector, vector) >= _SAME_MATTER:
                group.sections.append(section)
                break
        else:
            groups.append(Group([section], vector=vector))
    return groups


def _gathered(selection: Selection) -> list[Group]:
    """For each source its sections that are too small to stand alone, together: short sources are made of them."""
    groups: dict[int, Group] = {}
    for section in selection.corpus.sections:
        if section.role != "closing" and _available(selection, Group([section])) < _MIN_SECTION_WORDS:
            groups.setdefault(section.source, Group([])).sections.append(section)
    for group in groups.values():
        group.vector = selection.ranking.vector([term for sentence in group.sentences for term in sentence.terms])
    return [group for group in groups.values() if _available(selection, group) >= _MIN_SECTION_WORDS]


def _available(selection: Selection, group: Group) -> int:
    return sum(sentence.words for sentence in group.sentences if selection.may_take(sentence))


def _ordered_by_value(selection: Selection, groups: list[Group]) -> list[Group]:
    """The groups worth most first, new matter and unused sources preferred."""
    for group in groups:
        scores = sorted((selection.score(s.index) for s in group.sentences if selection.may_take(s)), reverse=True)[:5]
        heading = " ".join(section.heading for section in group.sections)
        group.value = sum(scores) / max(1, len(scores))
        group.value += 0.3 * cosine(selection.ranking.vector(terms(heading)), selection.ranking.topic)
    ordered: list[Group] = []
    used_sources: set[int] = set()
    left = list(groups)
    # How much each repeats of what is ordered already. Kept, because a long source has hundreds of sections.
    repeats = {id(group): 0.0 for group in groups}
    while left:

        def worth(group: Group) -> float:
            new = any(section.source not in used_sources for section in group.sections)
            return group.value - 0.3 * repeats[id(group)] + (_NEW_SOURCE_BONUS if new else 0.0)

        best = max(left, key=lambda group: (worth(group), -group.sections[0].index))
        left = [group for group in left if group is not best]
        ordered.append(best)
        used_sources.update(section.source for section in best.sections)
        for group in left:
            repeats[id(group)] = max(repeats[id(group)], cosine(group.vector, best.vector))
    return ordered


def _shares(selection: Selection, groups: list[Group], budget: int) -> list[int]:
    """The budget over the groups by their value, none more than its sentences fill; what one leaves
    goes to the others."""
    limits = [float(_available(selection, group)) for group in groups]
    shares = [0.0] * len(groups)
    left = float(budget)
    for _ in range(len(groups)):
        open_groups = [number for number in range(len(groups)) if shares[number] < limits[number]]
        if left < 1 or not open_groups:
            break
        total = sum(0.2 + groups[number].value for number in open_groups)
        granted = 0.0
        for number in open_groups:
            amount = min(limits[number] - shares[number], left * (0.2 + groups[number].value) / total)
            shares[number] += amount
            granted += amount
        left -= granted
    return [round(share) for share in shares]


def name_groups(groups: list[Group], corpus: Corpus, ranking: Ranking, title: str, taken: Iterable[str] = ()) -> None:
    """A heading each: the source's own where it says something here, else its title, else its matter."""
    used = {title.casefold(), "conclusion", "sources", *(heading.casefold() for heading in taken)}
    for group in groups:
        first = group.sections[0]
        gathered = len(group.sections) > 1 and len({section.source for section in group.sections}) == 1
        # No heading of one small section heads them all.
        candidates = [s.heading for s in group.sections if _is_specific(s.heading) and not gathered]
        candidates += [corpus.titles[section.source - 1] for section in group.sections if _is_short(corpus, section)]
        candidates.append(keyword_heading(ranking, group.sentences))
        free = [candidate for candidate in candidates if candidate and candidate.casefold() not in used]
        group.heading = free[0] if free else f"{corpus.titles[first.source - 1]} ({len(used)})"
        used.add(group.heading.casefold())


def _is_specific(heading: str) -> bool:
    return bool(heading) and not _GENERIC_HEADING.match(heading) and not OPENING.match(heading)


def _is_short(corpus: Corpus, section: Section) -> bool:
    # A title that was made of the text's first words is no heading.
    title = corpus.titles[section.source - 1]
    return len(title.split()) <= 8 and not title.endswith("\u2026") and not re.fullmatch(r"Source \d+", title)


def keyword_heading(ranking: Ranking, sentences: list[Sentence]) -> str:
    """A heading of the two words that mark a passage, in the form in which it uses them most."""
    forms: dict[str, dict[str, int]] = {}
    for sentence in sentences:
        for word in words(sentence.text):
            if word.casefold() not in STOP_WORDS and not UNDIVIDED.search(word):
                form = word if word.isupper() else word.lower()
                seen = forms.setdefault(stem(word), {})
                seen[form] = seen.get(form, 0) + 1
    best = [term for term in ranking.keywords(sentences) if term in forms and not term.isdigit()][:2]
    named = [min(forms[term], key=lambda form: (-forms[term][form], form)) for term in best]
    heading = " and ".join(named)
    return heading[:1].upper() + heading[1:]


def paragraphs_of(sentences: list[Sentence]) -> list[Paragraph]:
    """Sentences in the order of their text as paragraphs of three to five, broken where the sources break."""
    drafts: list[list[Sentence]] = []
    for chunk in _chunks(sentences):
        if drafts and _may_join(drafts[-1], chunk):
            drafts[-1].extend(chunk)
        else:
            drafts.append(list(chunk))
    if len(drafts) > 1 and len(drafts[-1]) == 1 and len(drafts[-2]) <= _PARAGRAPH_SENTENCES:
        drafts[-2].extend(drafts.pop())
    paragraphs = []
    for draft in drafts:
        lines = []
        for position, sentence in enumerate(draft):
            text = standing(sentence, draft[position - 1] if position else None)
            lines.append(Line(text, (sentence.source,), origin=sentence.index))
        paragraphs.append(Paragraph(lines))
    return paragraphs


def _chunks(sentences: list[Sentence]) -> list[list[Sentence]]:
    """Sentences that must stay together: each with those that lean on it."""
    chunks: list[list[Sentence]] = []
    for sentence in sentences:
        before = chunks[-1][-1] if chunks else None
        follows = before is not None and before.index == sentence.index - 1 and before.paragraph == sentence.paragraph
        if follows and (sentence.leans or standing(sentence, None) != sentence.text):
            chunks[-1].append(sentence)
        else:
            chunks.append([sentence])
    return chunks


def _may_join(draft: list[Sentence], chunk: list[Sentence]) -> bool:
    if len(draft) + len(chunk) > _PARAGRAPH_SENTENCES:
        return False
    size = sum(sentence.words for sentence in draft)
    same_paragraph = draft[-1].paragraph == chunk[0].paragraph
    if same_paragraph:
        return size < _PARAGRAPH_WORDS
    return len(draft) < _PARAGRAPH_MIN_SENTENCES and draft[-1].source == chunk[0].source

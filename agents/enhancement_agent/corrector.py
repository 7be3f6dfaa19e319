"""Applies all rules to a document until none finds anything more, so that correcting twice changes nothing."""

from dataclasses import dataclass

from agents.enhancement_agent import spelling, style
from agents.enhancement_agent.edit import Edit, choose
from agents.enhancement_agent.models import Change
from agents.enhancement_agent.preservation import lost_parts
from agents.enhancement_agent.prose import Block, blocks

MAX_PASSES = 12
"""Each pass removes what an earlier one uncovered; real documents settle within three."""


@dataclass(frozen=True, slots=True)
class Corrected:
    """A document after its corrections, and each of them in order."""

    markdown: str
    changes: list[Change]


def correct(markdown: str, *, requested_style: str = "", language: str = "en") -> Corrected:
    """The document with spelling, style and whitespace corrected; everything but prose stays byte for byte.

    English gets all rules, other languages only the whitespace ones. No newline is added or removed, so line numbers
    of changes hold for the document as it came. A document on which the rules would not settle is returned as it came.
    """
    text = markdown
    changes: list[Change] = []
    refused: set[tuple[str, str]] = set()
    for _ in range(MAX_PASSES):
        found = blocks(text)
        per_block = _edits(found, text, requested_style.lower(), language.lower().split("-")[0])
        edited, made = _apply(text, found, per_block, refused)
        if not made:
            return Corrected(text, changes)
        text = edited
        changes += made
    return Corrected(markdown, [])


def _edits(found: list[Block], text: str, requested_style: str, language: str) -> list[list[Edit]]:
    per_block: list[list[Edit]] = [list(style.whitespace(block)) if block.kind != "heading" else [] for block in found]
    if language != "en":
        return [[edit for edit in edits if edit.kind == "whitespace"] for edits in per_block]
    linked_headings = "](#" in text
    spelled = spelling.misspelled(found, text)
    marks = style.apostrophes(found)
    for index, block in enumerate(found):
        if block.kind == "heading":
            per_block[index] += [] if linked_headings else spelled[index]
            continue
        per_block[index] += spelled[index]
        per_block[index] += style.doubled_words(block)
        per_block[index] += style.wordy_phrases(block)
        per_block[index] += marks[index]
        per_block[index] += style.capitals(block)
        if "formal" in requested_style and "informal" not in requested_style:
            per_block[index] += style.formal_forms(block)
        if block.kind == "paragraph":
            per_block[index] += style.long_sentences(block)
    return per_block


def _apply(
    text: str, found: list[Block], per_block: list[list[Edit]], refused: set[tuple[str, str]]
) -> tuple[str, list[Change]]:
    """Makes the edits; those that would cost the document something protected are refused, for good."""
    pieces: list[tuple[int, int, str, Change]] = []
    for block, edits in zip(found, per_block, strict=True):
        for edit in choose(edits, block):
            start, line = block.locate(edit.start)
            before, after = edit.shown(block)
            end = start + edit.end - edit.start
            if before == after or text[start:end] != block.text[edit.start : edit.end] or (before, after) in refused:
                continue
            change = Change(kind=edit.kind, line=line, before=before, after=after, reason=edit.reason)
            pieces.append((start, end, edit.after, change))
    if not pieces:
        return text, []
    edited = _replace(text, pieces)
    if lost_parts(text, edited):
        safe: list[tuple[int, int, str, Change]] = []
        for piece in pieces:
            if lost_parts(text, _replace(text, [piece])):
                refused.add((piece[3].before, piece[3].after))
            else:
                safe.append(piece)
        edited = _replace(text, safe)
        pieces = safe if not lost_parts(text, edited) else []
        edited = edited if pieces else text
    return edited, [piece[3] for piece in pieces]


def _replace(text: str, pieces: list[tuple[int, int, str, Change]]) -> str:
    parts = []
    position = 0
    for start, end, after, _ in sorted(pieces, key=lambda piece: piece[0]):
        parts += [text[position:start], after]
        position = end
    return "".join([*parts, text[position:]])

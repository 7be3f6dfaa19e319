"""Edit: a correction within a block of prose, and the rule that it never touches what is protected."""

from dataclasses import dataclass

from agents.enhancement_agent.models import ChangeKind
from agents.enhancement_agent.prose import MASK, Block


@dataclass(frozen=True, slots=True)
class Edit:
    """Replaces `start:end` of a block's text by `after`; `lead` and `trail` widen what a change list shows."""

    start: int
    end: int
    after: str
    kind: ChangeKind
    reason: str
    lead: int = 0
    trail: int = 0

    def allowed(self, block: Block) -> bool:
        """Whether it stays within one line of prose and changes no protected character and no digit."""
        before = block.masked[self.start : self.end]
        return MASK not in before and "\n" not in before and not any(character.isdigit() for character in before)

    def shown(self, block: Block) -> tuple[str, str]:
        """What a reader is shown of it, before and after."""
        lead = block.text[self.start - self.lead : self.start]
        trail = block.text[self.end : self.end + self.trail]
        return lead + block.text[self.start : self.end] + trail, lead + self.after + trail


def choose(edits: list[Edit], block: Block) -> list[Edit]:
    """Those of `edits` that are allowed and do not overlap, earlier and longer edits first."""
    chosen: list[Edit] = []
    for edit in sorted(edits, key=lambda edit: (edit.start, -edit.end)):
        if edit.allowed(block) and (not chosen or edit.start >= chosen[-1].end):
            chosen.append(edit)
    return chosen

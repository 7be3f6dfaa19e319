"""Why each step's agent was chosen, from the routing decisions in the rows, and why a ready step has none yet."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from rich.text import Text

from pantheon.cli.progress.task_rows import paths_of
from pantheon.runtime.settings import one_line


def waits_of(rows: Sequence[Mapping[str, Any]], waiting: Sequence[Mapping[str, Any]]) -> Iterator[Text]:
    """The reasons for which ready steps wait: a line for all steps of the same reason."""
    paths = paths_of(rows)
    for wait in waiting:
        task_ids = wait.get("task_ids") or ()
        if not task_ids:
            continue
        first = paths.get(str(task_ids[0])) or str(wait.get("task_type"))
        more = f" and {len(task_ids) - 1} more" if len(task_ids) > 1 else ""
        reason = one_line(str(wait.get("reason")))
        yield Text.assemble(("○ ", "yellow"), (first + more, "bold"), ": ", (reason, "yellow"))


def lines_of(rows: Sequence[Mapping[str, Any]]) -> Iterator[Text]:
    """For each task that an agent got: the agents that serve its type, best first, with the score or exclusion of each.

    A row carries a decision where there was a choice: several agents, or requirements of the step.
    """
    paths = paths_of(rows)
    any_agent = False
    for row in rows:
        if not isinstance(row.get("agent"), str):
            continue
        any_agent = True
        routing = row.get("routing")
        head = Text.assemble((paths[str(row["task_id"])] or str(row.get("task_type")), "bold"), f": {row['agent']}")
        if not isinstance(routing, Mapping):
            pinned = row.get("pinned_agent")
            reason = "the step names it" if pinned else f"the only one that served '{row.get('task_type')}'"
            yield head.append(f", {reason}", style="bright_black")
            continue
        yield head.append(_circumstances(routing), style="bright_black")
        yield from _candidates(routing)
    if not any_agent:
        yield Text("no agent has had a part of it", style="bright_black")


def _circumstances(routing: Mapping[str, Any]) -> str:
    parts = []
    if routing.get("sticky") is not None:
        parts.append(f"always the same for '{routing['sticky']}'")
    if routing.get("avoided") is not None:
        parts.append(f"rather not {routing['avoided']}, where the attempt before failed")
    if routing.get("met") is False:
        parts.append(f"no agent with a slot meets what it requires: {routing.get('unmet')}")
    if isinstance(serving := routing.get("serving"), int):
        parts.append(f"of {serving} agents, some were weighed")
    return f" ({'; '.join(parts)})" if parts else ""


def _rank(candidate: Mapping[str, Any]) -> tuple[bool, float]:
    return candidate.get("excluded") is not None, float(candidate.get("score") or 0)


def _candidates(routing: Mapping[str, Any]) -> Iterator[Text]:
    listed = routing.get("candidates")
    candidates = [item for item in listed if isinstance(item, Mapping)] if isinstance(listed, Sequence) else []
    width = max((len(str(candidate.get("agent"))) for candidate in candidates), default=0)
    for candidate in sorted(candidates, key=_rank):
        chosen = candidate.get("agent") == routing.get("chosen")
        line = Text("  ").append("→ " if chosen else "  ", style="green")
        line.append(f"{candidate.get('agent')!s:<{width}}", style="bold" if chosen else "")
        if candidate.get("excluded") is not None:
            yield line.append(f"  excluded: {candidate['excluded']}", style="yellow")
            continue
        line.append(f"  score {float(candidate.get('score') or 0):.3f}")
        line.append(f"  {candidate.get('outstanding', '?')} of {candidate.get('capacity', '?')} at work")
        if isinstance(candidate.get("response_ms"), int | float):
            line.append(f"  {candidate['response_ms']:.0f} ms")
        yield line.append(f"  {float(candidate.get('failure_rate') or 0) * 100:.0f}% failures")

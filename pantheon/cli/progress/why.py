"""Why each step's agent was chosen, by the routing decisions that rows carry, and why a step has none yet; as lines."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from rich.text import Text

from pantheon.cli.progress.task_rows import paths_of
from pantheon.runtime.settings import one_line


def waits_of(rows: Sequence[Mapping[str, Any]], waiting: Sequence[Mapping[str, Any]]) -> Iterator[Text]:
    """What the steps that are ready wait for: a line for all that wait for the same."""
    paths = paths_of(rows)
    for one in waiting:
        task_ids = one.get("task_ids") or ()
        if not task_ids:
            continue
        first = paths.get(str(task_ids[0])) or str(one.get("task_type"))
        more = f" and {len(task_ids) - 1} more" if len(task_ids) > 1 else ""
        reason = one_line(str(one.get("reason")))
        yield Text.assemble(("○ ", "yellow"), (first + more, "bold"), ": ", (reason, "yellow"))


def lines_of(rows: Sequence[Mapping[str, Any]]) -> Iterator[Text]:
    """For each task that an agent got: the agents that serve its type, best first, and what spoke for or against each.

    A decision is kept where there was something to decide: several agents, or something that the step requires.
    """
    paths = paths_of(rows)
    any_said = False
    for row in rows:
        if not isinstance(row.get("agent"), str):
            continue
        any_said = True
        routing = row.get("routing")
        head = Text.assemble((paths[str(row["task_id"])] or str(row.get("task_type")), "bold"), f": {row['agent']}")
        if not isinstance(routing, Mapping):
            pinned = row.get("pinned_agent")
            reason = "the step names it" if pinned else f"the only one that served '{row.get('task_type')}'"
            yield head.append(f", {reason}", style="bright_black")
            continue
        yield head.append(_circumstances(routing), style="bright_black")
        yield from _candidates(routing)
    if not any_said:
        yield Text("no agent has had a part of it", style="bright_black")


def _circumstances(routing: Mapping[str, Any]) -> str:
    said = []
    if routing.get("sticky") is not None:
        said.append(f"always the same for '{routing['sticky']}'")
    if routing.get("avoided") is not None:
        said.append(f"rather not {routing['avoided']}, where the attempt before failed")
    return f" ({'; '.join(said)})" if said else ""


def _candidates(routing: Mapping[str, Any]) -> Iterator[Text]:
    given = routing.get("candidates")
    candidates = [one for one in given if isinstance(one, Mapping)] if isinstance(given, Sequence) else []
    width = max((len(str(one.get("agent"))) for one in candidates), default=0)
    for one in sorted(candidates, key=lambda one: (one.get("excluded") is not None, float(one.get("score") or 0))):
        chosen = one.get("agent") == routing.get("chosen")
        line = Text("  ").append("→ " if chosen else "  ", style="green")
        line.append(f"{one.get('agent')!s:<{width}}", style="bold" if chosen else "")
        if one.get("excluded") is not None:
            yield line.append(f"  excluded: {one['excluded']}", style="yellow")
            continue
        line.append(f"  score {float(one.get('score') or 0):.3f}")
        line.append(f"  {one.get('outstanding', '?')} of {one.get('capacity', '?')} at work")
        if isinstance(one.get("response_ms"), int | float):
            line.append(f"  {one['response_ms']:.0f} ms")
        yield line.append(f"  {float(one.get('failure_rate') or 0) * 100:.0f}% failures")

"""An orchestrator that also counts: batch sizes, round trips and how long each took; written when it ends.

python -m benchmarks.probed_orchestrator FILE      (JSON is written there at SIGTERM)
"""

import json
import sys
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

from benchmarks.figures import percentile

Async = Callable[..., Awaitable[Any]]


class Probe:
    """Wraps methods of the running classes: how often, how long, how large."""

    def __init__(self) -> None:
        self.took_ms: dict[str, list[float]] = {}
        self.sizes: dict[str, Counter[int]] = {}

    def measure(self, owner: type, method: str, size: Callable[..., int] | None = None) -> None:
        inner: Async = getattr(owner, method)
        name = f"{owner.__name__}.{method}"
        took, sizes = self.took_ms.setdefault(name, []), self.sizes.setdefault(name, Counter())

        async def wrapped(*arguments: Any, **named: Any) -> Any:
            if size is not None:
                sizes[size(*arguments)] += 1
            began = time.perf_counter()
            try:
                return await inner(*arguments, **named)
            finally:
                took.append((time.perf_counter() - began) * 1e3)

        setattr(owner, method, wrapped)

    def as_json(self) -> dict[str, Any]:
        made: dict[str, Any] = {}
        for name, took in self.took_ms.items():
            if not took:
                continue
            figures: dict[str, Any] = {
                "calls": len(took),
                "total_ms": round(sum(took), 1),
                "p50_ms": round(percentile(took, 0.5), 3),
                "p99_ms": round(percentile(took, 0.99), 3),
            }
            if self.sizes[name]:
                flat = list(self.sizes[name].elements())
                figures |= {"items": sum(flat), "size_mean": round(sum(flat) / len(flat), 1)}
                figures |= {f"size_p{share}": percentile(flat, share / 100) for share in (10, 50, 90, 99)}
            made[name] = figures
        return made


def main() -> int:
    from orchestrator_agent.__main__ import main as orchestrate
    from orchestrator_agent.intake.acceptance import Acceptance
    from orchestrator_agent.maintenance.reconciler import Reconciler
    from orchestrator_agent.runtime.outbox import Outbox
    from orchestrator_agent.runtime.responses import ResponseSettler
    from orchestrator_agent.runtime.run_cache import RunCache
    from orchestrator_agent.runtime.transitions import Transitions
    from orchestrator_agent.store.pool import Database
    from orchestrator_agent.store.task_reader import TaskReader
    from orchestrator_agent.store.tasks import TaskStore

    probe = Probe()
    probe.measure(TaskStore, "apply", lambda _, batch: len(batch))
    probe.measure(TaskStore, "accept", lambda _, batch: len(batch))
    probe.measure(TaskStore, "mark_responded", lambda _, ids: len(ids))
    probe.measure(TaskReader, "trees", lambda _, ids: len(ids))
    probe.measure(ResponseSettler, "settle", lambda _, deliveries, entries: len(deliveries))
    probe.measure(Transitions, "apply", lambda _, happened, outcomes: len(happened))
    probe.measure(RunCache, "drop_outdated", lambda _, runs: len(runs))
    probe.measure(Acceptance, "accept", lambda _, deliveries: len(deliveries))
    probe.measure(Outbox, "deliver")
    probe.measure(Database, "fetch")
    probe.measure(Reconciler, "_sweep")
    code = 1
    try:
        code = orchestrate()
    finally:
        Path(sys.argv[1]).write_text(json.dumps(probe.as_json(), indent=1))
    return code


if __name__ == "__main__":
    raise SystemExit(main())

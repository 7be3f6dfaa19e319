"""Rounds: bare loop and mesh one after the other, on the same servers, so that both meet the same noise."""

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Any

from benchmarks.figures import Series
from benchmarks.rig import ECHO, ORCHESTRATOR, Process, Rig, spent
from benchmarks.shapes import CHAIN_STEPS, SHAPES, Shape

BARE = "bare"


@dataclass(frozen=True)
class Amounts:
    """How much is measured. A load round is of so many steps, whatever the shape."""

    rounds: int
    load_workflows: int
    idle_workflows: int
    warm_up_workflows: int = 200

    def workflows(self, shape: Shape) -> int:
        return max(4, self.load_workflows * CHAIN_STEPS // shape.steps)

    def one_at_a_time(self, shape: Shape) -> int:
        return max(3, self.idle_workflows * CHAIN_STEPS // max(CHAIN_STEPS, shape.steps))


QUICK = Amounts(rounds=3, load_workflows=2000, idle_workflows=150)
FULL = Amounts(rounds=7, load_workflows=5000, idle_workflows=400)


class Bench:
    """The subjects of a run and what they measured so far."""

    def __init__(self, rig: Rig, amounts: Amounts, log: Callable[[str], None]) -> None:
        self.rig = rig
        self.amounts = amounts
        self.log = log
        self.series: dict[str, Series] = {}
        self.generator: Process
        self._bare: Process | None = None

    async def start_mesh(self, orchestrators: int = 1, settings: dict[str, str] | None = None) -> None:
        await self.rig.start_orchestrators(orchestrators, settings)
        await self.rig.start_echo_agent()
        self.generator = await self.rig.spawn(
            "load_generator", "-m", "benchmarks.load_generator", "--nats", self.rig.nats.url, converses=True
        )

    async def start_bare(self) -> None:
        url = await self.rig.database("bare")
        module = ("-m", "benchmarks.bare_loop")
        self._bare = await self.rig.spawn(
            "bare_loops", *module, "loops", "--nats", self.rig.nats.url, "--postgres", url, converses=True
        )
        await self.rig.spawn("bare_agent", *module, "agent", "--nats", self.rig.nats.url)

    async def warm_up(self, shapes: Sequence[str]) -> None:
        """Connections, prepared statements, caches of code and plans: once, unmeasured, for both."""
        if self._bare is not None:
            await self._bare.ask(what="load", workflows=self.amounts.warm_up_workflows)
        for name in shapes:
            workflows = max(2, self.amounts.warm_up_workflows * CHAIN_STEPS // SHAPES[name]().steps)
            await self.generator.ask(what="load", shape=name, workflows=workflows)

    async def run(self, shapes: Sequence[str], others: Callable[[], Awaitable[None]] | None = None) -> None:
        """Each round measures every subject; `others` measures those that are no part of this mesh."""
        for number in range(self.amounts.rounds):
            if self._bare is not None:
                await self.bare_round()
            for name in shapes:
                await self.mesh_round(SHAPES[name]())
            if others is not None:
                await others()
            self.log(f"round {number + 1} of {self.amounts.rounds}: {self._round_in_words(number)}")

    async def bare_round(self) -> None:
        assert self._bare is not None
        series = self.series.setdefault(BARE, Series.empty(BARE, "bare loop", CHAIN_STEPS))
        await self._measure(series, self._bare, self.amounts.load_workflows, self.amounts.idle_workflows, {})

    async def mesh_round(self, shape: Shape, name: str | None = None, title: str | None = None) -> None:
        key = name or shape.name
        series = self.series.setdefault(key, Series.empty(key, title or shape.title, shape.steps))
        load, idle = self.amounts.workflows(shape), self.amounts.one_at_a_time(shape)
        await self._measure(series, self.generator, load, idle, {"shape": shape.name})

    async def _measure(self, series: Series, process: Process, load: int, idle: int, order: dict[str, Any]) -> None:
        before = self.rig.usage()
        reply = await process.ask(what="load", workflows=load, **order)
        used = spent(before, self.rig.usage())
        series.add_load(load, reply["seconds"], relevant(used, bare=series.name == BARE))
        reply = await process.ask(what="idle", workflows=idle, **order)
        series.add_idle(reply["took_ms"])

    def _round_in_words(self, number: int) -> str:
        """Of those that were measured in this round: one that is left out has no figure to show again."""
        return ", ".join(
            f"{series.title} {series.steps_per_s[number]:,.0f} steps/s, p50 {series.p50_ms[number]:.1f} ms"
            for series in self.series.values()
            if len(series.steps_per_s) > number
        )


def relevant(used: dict[str, float], *, bare: bool) -> dict[str, float]:
    """Of all processes, those at work in this round."""
    ours = {"load_generator", ECHO}
    return {
        name: seconds
        for name, seconds in used.items()
        if name in ("nats", "postgres")
        or (name.startswith("bare_") if bare else name in ours or name.startswith(ORCHESTRATOR))
    }

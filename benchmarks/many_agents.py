"""Many agents: a fan-out to one name and to very many that serve the same type, and what choosing among them takes."""

import time
from collections.abc import Callable, Sequence
from statistics import median
from typing import Any

from benchmarks.figures import Spread, pair_ratios, percentile
from benchmarks.rig import spent
from benchmarks.rounds import Bench
from orchestrator_agent.dispatch.agent_health import AgentHealth
from orchestrator_agent.dispatch.capacity import Capacity
from orchestrator_agent.dispatch.router import AdmitAll, Router
from orchestrator_agent.dispatch.window import Window
from orchestrator_agent.engine.decisions import RouteRequest
from orchestrator_agent.workflows.library import Library
from pantheon.discovery.registry import Registry
from protocol.discovery import InstanceRecord

# Steps of one fan-out, as the goal has it.
ITEMS = 2000
FAN_OUTS = 4
# Of the steps a second of one name, so much with so many; and how long a choice may take, in microseconds.
GOALS = {200: 0.8, 1000: 0.7}
CHOICE_MICROSECONDS = 50.0
CHOSEN_AMONG = (1, 6, 200, 1000, 10_000)
CHOICES = 5000
LEAST_SHOWN_MS = 0.005


async def names(bench: Bench, counts: Sequence[int], log: Callable[[str], None]) -> dict[str, Any]:
    """The same fan-out to so many names each, one after the other in each round; the first count is what the others are
    compared with."""
    for count in counts:
        await bench.rig.spawn(
            f"named-{count}",
            *("-m", "benchmarks.named_agents", "--nats", bench.rig.nats.url),
            *("--type", _type_of(count), "--names", str(count)),
            converses=True,
        )
    speeds: dict[int, list[float]] = {count: [] for count in counts}
    used: dict[int, list[dict[str, float]]] = {count: [] for count in counts}
    for number in range(bench.amounts.rounds + 1):
        for count in counts:
            before = bench.rig.usage()
            reply = await bench.generator.ask(
                what="fan_out", task_type=_type_of(count), items=ITEMS, workflows=FAN_OUTS
            )
            # The first round warms up.
            if number:
                steps = ITEMS * FAN_OUTS
                speeds[count].append(steps / reply["seconds"])
                used[count].append({name: s * 1e3 / steps for name, s in spent(before, bench.rig.usage()).items()})
    made: dict[str, Any] = {}
    for count in counts:
        ratio = median(pair_ratios(speeds[count], speeds[counts[0]]))
        goal = GOALS.get(count)
        cpu = {name: round(median(each.get(name, 0.0) for each in used[count]), 4) for name in used[count][0]}
        cpu = {name: milliseconds for name, milliseconds in cpu.items() if milliseconds >= LEAST_SHOWN_MS}
        steps_per_s = vars(Spread.of(speeds[count]))
        made[str(count)] = {"steps_per_s": steps_per_s, "ratio": ratio, "goal": goal, "cpu_ms_per_step": cpu}
        verdict = "" if goal is None else f" ({'met' if ratio >= goal else 'MISSED'}: at least {goal:g})"
        speed = f"{count:,} names: {median(speeds[count]):,.0f} steps/s, {ratio:.2f} of {counts[0]:,} name's{verdict}"
        log(f"{speed}; ms a step: {cpu}")
    return made


def _type_of(count: int) -> str:
    return f"named_{count}"


def choosing(log: Callable[[str], None]) -> dict[str, Any]:
    """How long one choice takes in this process, among so many names that have slots; in microseconds."""
    made: dict[str, Any] = {}
    for count in CHOSEN_AMONG:
        took = _choices(count)
        p50, p99 = percentile(took, 0.5), percentile(took, 0.99)
        met = p50 <= CHOICE_MICROSECONDS
        made[str(count)] = {"p50_us": p50, "p99_us": p99, "goal_us": CHOICE_MICROSECONDS, "met": met}
        verdict = "met" if met else "MISSED"
        log(
            f"choosing among {count:,}: p50 {p50:.1f} µs, p99 {p99:.1f} µs ({verdict}: {CHOICE_MICROSECONDS:g} at most)"
        )
    return made


def _choices(count: int) -> list[float]:
    registry = Registry()
    registry.apply(
        InstanceRecord(name=f"agent_{number}", instance_id="one", task_types=("echo",), max_concurrency=8)
        for number in range(count)
    )
    capacity = Capacity(registry)
    window = Window(capacity, waiting=capacity.waiting)
    router = Router(registry, Library(), AgentHealth(), admission=_Windowed(window))
    request, took = RouteRequest("echo"), []
    for _ in range(CHOICES):
        began = time.perf_counter()
        placement = router.choose(request)
        took.append((time.perf_counter() - began) * 1e6)
        assert placement is not None
        window.sent(placement.agent)
        window.responded(placement.agent)
    return took


class _Windowed(AdmitAll):
    """The windows of an orchestrator's admission, without its queues."""

    def __init__(self, window: Window) -> None:
        self._window = window

    def room(self, agent: str) -> int:
        return self._window.room(agent)

    def at_work(self, agent: str) -> int:
        return self._window.at_work(agent)

    def assigned(self, request: RouteRequest, agent: str) -> None:
        self._window.take(agent)

"""Growth: the 5-step chain with a full database, many waiting, many instances, several orchestrators, over time."""

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass
from typing import Any

import nats
import psutil
from nats.aio.client import Client

from benchmarks import many_agents
from benchmarks.figures import Series, pair_ratios
from benchmarks.rig import ORCHESTRATOR, BenchError, Rig, rig, spent
from benchmarks.rounds import Amounts, Bench
from benchmarks.shapes import CHAIN_STEPS, SHAPES
from protocol.discovery import KV_BUCKET, REFRESH_SECONDS, InstanceRecord

GROWTH = ("finished", "waiting", "backlog", "wide", "instances", "names", "choosing", "orchestrators", "compensated")
INSTANCES_WATCH_SECONDS = 30.0
# Goals: an orchestrator's memory with so many waiting, of its idle memory; above it with a wide fan-out, in MB; of a
# core with so many instances; several orchestrators, of one's steps a second; milliseconds a compensation with two.
WAITING_MEMORY_GOAL = 1.3
WIDE_MEMORY_GOAL_MB = 300.0
INSTANCES_GOAL = 0.10
ORCHESTRATORS_GOAL = 0.95
COMPENSATED_GOAL_MS = 3.0
COMPENSATED_ITEMS = 1000
MEMORY_SAMPLE_SECONDS = 0.1
SOAK_SAMPLE_SECONDS = 5.0
SOAK_AT_ONCE = 500


@dataclass(frozen=True)
class Sizes:
    """How far everything grows; orchestrators from one to so many."""

    finished: int
    waiting: int
    backlog: int
    wide: int
    instances: int
    names: int
    orchestrators: int


FULL_SIZES = Sizes(
    finished=1_000_000, waiting=100_000, backlog=100_000, wide=100_000, instances=10_000, names=1000, orchestrators=3
)
QUICK_SIZES = Sizes(
    finished=50_000, waiting=10_000, backlog=20_000, wide=20_000, instances=1000, names=200, orchestrators=2
)
# As rows of a finished 5-step chain are: the columns, the sizes, an hour's worth of creation times behind one another.
FINISHED = """
with roots as (
    select gen_random_uuid() as id, now() - interval '30 days' + g * interval '2 seconds' as at
    from generate_series(1, {roots}) g
), made as (
    insert into tasks (root_task_id, task_id, task_type, status, payload, result, timeout_seconds, created_at,
                       dispatched_by, completed_at, answered_at, version)
    select id, id, 'execute_dag', 'completed', '{payload}', '{result}', 300, at, $1, at + interval '20 ms',
           at + interval '25 ms', 6
    from roots
)
insert into tasks (root_task_id, task_id, parent_task_id, step, task_type, agent, instance_id, status, payload, result,
                   timeout_seconds, created_at, dispatched_at, dispatched_by, completed_at)
select id, gen_random_uuid(), id, 's' || n, 'echo', 'echo_agent', 'echo_agent', 'completed', '{result}', '{result}',
       300, at + n * interval '4 ms', at + n * interval '4 ms', $1, at + (n + 1) * interval '4 ms'
from roots, generate_series(0, 4) n
"""
FINISHED_PART = 50_000
ABSENT = "absent"
# Waits for an agent outlast the run; ended trees stay in `tasks`, beside those at work, which costs the most.
SETTINGS = {"NO_AGENT_WAIT_SECONDS": "86400", "HISTORY_AFTER_SECONDS": "86400000", "RETENTION_DAYS": "3650"}
ENDED = "select count(*) from tasks where task_id = root_task_id and answered_at is not null"
STANDING = "select count(*) from tasks where status = 'ready' and position is not null"
# Of the newest root that was compensated: milliseconds from its first compensation to the last one's end.
COMPENSATING = """
select extract(epoch from max(completed_at) - min(dispatched_at)) * 1000 from tasks
where role = 'compensation' and root_task_id = (
    select root_task_id from tasks where role = 'compensation' order by created_at desc limit 1)
"""
STANDING_SECONDS = 600.0
POLL_SECONDS = 0.5


async def measure(
    selected: Sequence[str],
    amounts: Amounts,
    sizes: Sizes,
    soak: float | None,
    log: Callable[[str], None],
    *,
    keep: bool,
) -> dict[str, Any]:
    """Each of `selected` on servers of its own, beside the same mesh without it."""
    made: dict[str, Any] = {}
    if "finished" in selected:
        async with _two(amounts, log, keep=keep) as (plain, full):
            began = time.perf_counter()
            for first in range(0, sizes.finished, FINISHED_PART):
                await _fill(full.rig, FINISHED, min(FINISHED_PART, sizes.finished - first))
            await full.rig.execute("vacuum (analyze) tasks")
            log(f"{sizes.finished:,} finished roots written in {time.perf_counter() - began:.0f} s")
            compared = await _compare(plain, full, log, f"{sizes.finished:,} finished")
            if (kept := int(await full.rig.value(ENDED))) < sizes.finished:
                raise BenchError(f"of {sizes.finished:,} finished roots, {kept:,} were kept")
            made["finished"] = {"roots": sizes.finished, **compared}
    if "waiting" in selected:
        async with _two(amounts, log, keep=keep) as (plain, full):
            began, before = time.perf_counter(), _memory(full)
            await _let_wait(full, sizes.waiting)
            log(f"{sizes.waiting:,} tasks wait after {time.perf_counter() - began:.0f} s")
            grown = _memory(full) / before
            verdict = _verdict(grown <= WAITING_MEMORY_GOAL)
            log(f"an orchestrator with them has {grown:.2f} of its memory before ({verdict} {WAITING_MEMORY_GOAL:g})")
            compared = await _compare(plain, full, log, f"{sizes.waiting:,} waiting")
            # Rows that have left the queue meanwhile were not measured with.
            await _until_waiting(full.rig, sizes.waiting, within_seconds=0)
            made["waiting"] = {"tasks": sizes.waiting, "memory_ratio": grown, **compared}
    if "backlog" in selected:
        async with _mesh(amounts, log, keep=keep) as bench:
            made["backlog"] = await _behind(bench, sizes.backlog, log)
    if "wide" in selected:
        async with _mesh(amounts, log, keep=keep) as bench:
            made["wide"] = await _wide(bench, sizes.wide, log)
    if "instances" in selected:
        async with _mesh(amounts, log, keep=keep) as bench:
            made["instances"] = await _instances(bench, sizes.instances, log)
    if "names" in selected:
        async with _mesh(amounts, log, keep=keep) as bench:
            counts = sorted({1, min(200, sizes.names), sizes.names})
            made["names"] = await many_agents.names(bench, counts, log)
    if "choosing" in selected:
        made["choosing"] = await asyncio.to_thread(many_agents.choosing, log)
    if "orchestrators" in selected:
        made["orchestrators"] = await _orchestrators(amounts, sizes.orchestrators, log, keep=keep)
    if "compensated" in selected:
        async with _mesh(amounts, log, 2, keep=keep) as bench:
            made["compensated"] = await _compensated(bench, log)
    if soak:
        async with _mesh(amounts, log, keep=keep) as bench:
            made["soak"] = await _soak(bench, soak * 60, log)
    return made


@contextlib.asynccontextmanager
async def _mesh(
    amounts: Amounts, log: Callable[[str], None], orchestrators: int = 1, *, keep: bool
) -> AsyncIterator[Bench]:
    async with rig(keep=keep) as made:
        bench = Bench(made, amounts, log)
        await bench.start_mesh(orchestrators, SETTINGS)
        await bench.warm_up(["chain"])
        yield bench


@contextlib.asynccontextmanager
async def _two(amounts: Amounts, log: Callable[[str], None], *, keep: bool) -> AsyncIterator[tuple[Bench, Bench]]:
    """Two meshes, of which one is loaded at a time: rounds can alternate."""
    async with _mesh(amounts, log, keep=keep) as first, _mesh(amounts, log, keep=keep) as second:
        yield first, second


async def _fill(made: Rig, statement: str, roots: int) -> None:
    result = '{{"k":"{}"}}'.format("v" * 100)
    text = statement.format(roots=roots, payload='{"input":{"k":1},"steps":{}}', result=result)
    # `execute` of a script takes no parameters; no process holds the lock of this process id, or tries it.
    await made.execute(text.replace("$1", "gen_random_uuid()"))


async def _let_wait(bench: Bench, tasks: int) -> None:
    """So many tasks that wait in the ready queue for an agent, sent and accepted as any other."""
    await bench.generator.ask(what="leave", task_type=ABSENT, tasks=tasks)
    await _until_waiting(bench.rig, tasks, within_seconds=STANDING_SECONDS)


async def _until_waiting(made: Rig, tasks: int, *, within_seconds: float) -> None:
    """Raises BenchError where fewer wait when the time is over."""
    end = time.perf_counter() + within_seconds
    while (standing := int(await made.value(STANDING))) < tasks:
        if time.perf_counter() >= end:
            raise BenchError(f"of {tasks:,} tasks that should wait for an agent, {standing:,} do")
        await asyncio.sleep(POLL_SECONDS)


async def _compare(plain: Bench, other: Bench, log: Callable[[str], None], title: str) -> dict[str, Any]:
    chain = SHAPES["chain"]()
    for _ in range(plain.amounts.rounds):
        await plain.mesh_round(chain)
        await other.mesh_round(chain)
    mine, its = other.series["chain"], plain.series["chain"]
    made = _ratios(mine, its)
    log(f"{title}: {made['steps_per_s_ratio']:.2f} of the steps/s, {made['p50_ratio']:.2f} of the p50 without them")
    return {**made, "with": mine.as_json(None), "without": its.as_json(None)}


def _ratios(mine: Series, its: Series) -> dict[str, float]:
    steps = sorted(pair_ratios(mine.steps_per_s, its.steps_per_s))
    latency = sorted(pair_ratios(mine.p50_ms, its.p50_ms))
    return {"steps_per_s_ratio": steps[len(steps) // 2], "p50_ratio": latency[len(latency) // 2]}


async def _behind(bench: Bench, tasks: int, log: Callable[[str], None]) -> dict[str, Any]:
    """How long a task takes whose request comes behind so many of another requester's."""
    alone = await bench.generator.ask(what="behind", shape="chain", tasks=0)
    behind = await bench.generator.ask(what="behind", shape="chain", tasks=tasks, within_seconds=STANDING_SECONDS)
    first, later = behind["accepted_ms"][0], sorted(behind["accepted_ms"][1:])
    log(
        f"behind {tasks:,} requests of another, the first is accepted after {first / 1e3:.2f} s, the next ones after "
        f"{later[len(later) // 2] / 1e3:.2f} s; alone after {min(alone['accepted_ms']) / 1e3:.3f} s"
    )
    return {"requests": tasks, "alone": alone, "behind": behind}


def _verdict(met: bool) -> str:
    return "met, at most" if met else "MISSED, at most"


def _memory(bench: Bench) -> int:
    """The bytes that the orchestrators have resident."""
    found = [process for process in bench.rig.processes if process.name.startswith(ORCHESTRATOR)]
    return sum(psutil.Process(process.pid).memory_info().rss for process in found)


async def _wide(bench: Bench, items: int, log: Callable[[str], None]) -> dict[str, Any]:
    """The orchestrator's memory during one fan-out of very many items."""
    idle = peak = _memory(bench)
    asked = bench.generator.ask(what="fan_out", task_type="echo", items=items, workflows=1)
    running = asyncio.create_task(asked)
    while not running.done():
        peak = max(peak, _memory(bench))
        await asyncio.wait([running], timeout=MEMORY_SAMPLE_SECONDS)
    seconds = (await running)["seconds"]
    above = (peak - idle) / 1e6
    verdict = f"{_verdict(above <= WIDE_MEMORY_GOAL_MB)} {WIDE_MEMORY_GOAL_MB:g}"
    log(f"a fan-out of {items:,} takes {seconds:.1f} s and {above:.0f} MB above idle ({verdict})")
    return {"items": items, "seconds": seconds, "above_idle_mb": above}


async def _compensated(bench: Bench, log: Callable[[str], None]) -> dict[str, Any]:
    """How long each compensation takes of a fan-out that is compensated item by item, with two orchestrators."""
    took = []
    for _ in range(bench.amounts.rounds):
        await bench.generator.ask(what="compensated", items=COMPENSATED_ITEMS)
        took.append(float(await bench.rig.value(COMPENSATING)) / COMPENSATED_ITEMS)
    middle = sorted(took)[len(took) // 2]
    verdict = _verdict(middle <= COMPENSATED_GOAL_MS)
    verdict = f"{verdict} {COMPENSATED_GOAL_MS:g}"
    log(f"compensating a fan-out of {COMPENSATED_ITEMS:,}: {middle:.2f} ms a compensation ({verdict})")
    return {"items": COMPENSATED_ITEMS, "ms_per_compensation": took}


async def _instances(bench: Bench, instances: int, log: Callable[[str], None]) -> dict[str, Any]:
    """What the orchestrator spends on so many instances that only send heartbeats."""
    before = bench.rig.usage()
    await asyncio.sleep(INSTANCES_WATCH_SECONDS)
    idle = spent(before, bench.rig.usage())
    connection = await nats.connect(bench.rig.nats.url)
    simulator = asyncio.create_task(_simulate(connection, instances))
    try:
        await asyncio.sleep(2 * REFRESH_SECONDS)
        before = bench.rig.usage()
        await asyncio.sleep(INSTANCES_WATCH_SECONDS)
        busy = spent(before, bench.rig.usage())
        load = await bench.generator.ask(what="load", shape="chain", workflows=bench.amounts.load_workflows)
    finally:
        simulator.cancel()
        await asyncio.gather(simulator, return_exceptions=True)
        await connection.close()
    cost = {
        name: (busy[name] - idle.get(name, 0)) / INSTANCES_WATCH_SECONDS
        for name in busy
        if name.startswith(ORCHESTRATOR) or name == "nats"
    }
    orchestrator = sum(share for name, share in cost.items() if name.startswith(ORCHESTRATOR))
    verdict = _verdict(orchestrator <= INSTANCES_GOAL)
    log(f"{instances:,} instances cost the orchestrator {orchestrator:.1%} of a core ({verdict} {INSTANCES_GOAL:.0%})")
    steps_per_s = bench.amounts.load_workflows * CHAIN_STEPS / load["seconds"]
    return {"instances": instances, "cores": cost, "steps_per_s": steps_per_s}


async def _simulate(connection: Client, instances: int) -> None:
    """Puts and heartbeats of so many instances, spread over each interval."""
    # Ten instances of each name.
    names = max(1, instances // 10)
    records = [
        InstanceRecord(name=f"agent_{number % names}", instance_id=f"simulated-{number}", task_types=("simulated",))
        for number in range(instances)
    ]
    bodies = [(f"$KV.{KV_BUCKET}.{record.key}", record.model_dump_json().encode()) for record in records]
    while True:
        for subject, body in bodies:
            await connection.publish(subject, body)
            await asyncio.sleep(REFRESH_SECONDS / instances)


async def _orchestrators(amounts: Amounts, most: int, log: Callable[[str], None], *, keep: bool) -> dict[str, Any]:
    """One, two and more processes on the same cores, one after the other in each round."""
    chain = SHAPES["chain"]()
    made: dict[str, Any] = {}
    async with contextlib.AsyncExitStack() as stack:
        counts = range(1, most + 1)
        benches = [await stack.enter_async_context(_mesh(amounts, log, count, keep=keep)) for count in counts]
        for _ in range(amounts.rounds):
            for bench in benches:
                await bench.mesh_round(chain)
        alone = benches[0].series["chain"]
        for count, bench in zip(counts, benches, strict=True):
            mine = bench.series["chain"]
            made[str(count)] = {**_ratios(mine, alone), **mine.as_json(None)}
            ratio = made[str(count)]["steps_per_s_ratio"]
            verdict = f" ({'met' if ratio >= ORCHESTRATORS_GOAL else 'MISSED'}: at least {ORCHESTRATORS_GOAL:g})"
            log(f"{count} orchestrators: {ratio:.2f} of one's steps/s{verdict if count > 1 else ''}")
    return made


async def _soak(bench: Bench, seconds: float, log: Callable[[str], None]) -> dict[str, Any]:
    """Memory of the orchestrator while a steady load runs."""
    watched = next(process for process in bench.rig.processes if process.name.startswith(ORCHESTRATOR))
    order = {"what": "steady", "shape": "chain", "seconds": seconds, "at_once": SOAK_AT_ONCE}
    load = asyncio.create_task(bench.generator.ask(within_seconds=seconds + 120, **order))
    began, samples = time.perf_counter(), []
    while not load.done():
        samples.append((round(time.perf_counter() - began, 1), psutil.Process(watched.pid).memory_info().rss))
        await asyncio.wait([load], timeout=SOAK_SAMPLE_SECONDS)
    done = await load
    # The first fifth warms up: caches fill, the allocator finds its size.
    later = [rss for _, rss in samples[len(samples) // 5 :]]
    early, late = later[0] / 1e6, later[-1] / 1e6
    log(f"memory over {seconds / 60:g} min: {early:.0f} MB after a fifth of it, {late:.0f} MB at its end")
    return {
        "seconds": seconds,
        "workflows": done["workflows"],
        "rss_bytes": samples,
        "growth": later[-1] / later[0] - 1,
    }

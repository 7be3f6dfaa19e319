"""`python -m benchmarks`: the whole stack on this machine, measured beside the bare loop in one run."""

import argparse
import asyncio
import json
import signal
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from rich.console import Console

from benchmarks import growth, peers, profile, report
from benchmarks.chart import draw
from benchmarks.rig import BenchError, Rig, rig
from benchmarks.rounds import FULL, QUICK, Amounts, Bench
from benchmarks.shapes import SHAPES

BARE = "bare"
# Options of the growth run's sizes.
GROWN = {
    "finished": "finished roots",
    "waiting": "waiting tasks",
    "backlog": "requests at once",
    "wide": "items of one fan-out",
    "instances": "registered instances",
    "names": "most names for one task type",
    "orchestrators": "most orchestrators",
}


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    """The command line. Exits with 2 where it is wrong."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    names = (BARE, *SHAPES, *peers.PEERS, *growth.GROWTH)
    parser.add_argument("--quick", action="store_true", help="fewer and shorter rounds, smaller growth")
    parser.add_argument("--peers", action="store_true", help="also Celery, DBOS, taskiq, procrastinate and Restate")
    parser.add_argument("--growth", action="store_true", help="also with a full database, many waiting, many instances")
    parser.add_argument("--only", nargs="+", choices=names, metavar="NAME", help=f"of {', '.join(names)}")
    parser.add_argument("--rounds", type=int, help="rounds of each subject")
    parser.add_argument("--workflows", type=int, help="5-step workflows of a load round")
    parser.add_argument("--idle", type=int, help="workflows of an idle round")
    for name, what in GROWN.items():
        most, fewer = getattr(growth.FULL_SIZES, name), getattr(growth.QUICK_SIZES, name)
        parser.add_argument(f"--{name}", type=int, help=f"{what} of the growth run (default {most:,}; quick {fewer:,})")
    parser.add_argument("--soak", type=float, metavar="MINUTES", help="also watch an orchestrator's memory for so long")
    parser.add_argument(
        "--profile", action="store_true", help="also profile orchestrator and agent under load (py-spy)"
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all figures there")
    parser.add_argument("--chart", type=Path, metavar="FILE", help="draw a chart there (SVG)")
    parser.add_argument("--keep", action="store_true", help="keep the run's folder with logs and data")
    made = parser.parse_args(arguments)
    for name in ("rounds", "workflows", "idle", *GROWN):
        if (value := getattr(made, name)) is not None and value < 1:
            parser.error(f"--{name} must be 1 or more")
    return made


def amounts_of(arguments: argparse.Namespace) -> Amounts:
    amounts = QUICK if arguments.quick else FULL
    overrides = {
        "rounds": arguments.rounds,
        "load_workflows": arguments.workflows,
        "idle_workflows": arguments.idle,
    }
    return replace(amounts, **{name: value for name, value in overrides.items() if value is not None})


def sizes_of(arguments: argparse.Namespace) -> growth.Sizes:
    sizes = growth.QUICK_SIZES if arguments.quick else growth.FULL_SIZES
    overrides = {name: getattr(arguments, name) for name in GROWN}
    return replace(sizes, **{name: value for name, value in overrides.items() if value is not None})


async def run(arguments: argparse.Namespace, console: Console) -> dict[str, Any]:
    """Everything that the arguments select; returns the figures as JSON has them."""
    amounts = amounts_of(arguments)
    selected: Sequence[str] = arguments.only or (BARE, *SHAPES)
    shapes = [name for name in SHAPES if name in selected]
    more: dict[str, Any] = {"amounts": vars(amounts)}

    def log(text: str) -> None:
        console.print(text, highlight=False, markup=False)

    series = {}
    chosen = [name for name in peers.PEERS if arguments.peers or name in (arguments.only or ())]
    if shapes or BARE in selected or arguments.profile or chosen:
        async with rig(keep=arguments.keep, valkey=bool(chosen)) as mesh:
            bench = Bench(mesh, amounts, log)
            if shapes or arguments.profile:
                await bench.start_mesh()
            if BARE in selected:
                await bench.start_bare()
            contest = peers.Contest(chosen, mesh, amounts, bench.series, log)
            await contest.prepare()
            await bench.warm_up(shapes)
            await bench.run(shapes, contest.round if chosen else None)
            if chosen:
                more["peers"] = contest.as_json()
            series = bench.series
            if arguments.profile:
                more["profile"] = await profiles(mesh, bench, log)
    grown = [name for name in growth.GROWTH if arguments.growth or name in (arguments.only or ())]
    if grown or arguments.soak:
        more["growth"] = await growth.measure(
            grown, amounts, sizes_of(arguments), arguments.soak, log, keep=arguments.keep
        )
    left_out = {name: peer["error"] for name, peer in more.get("peers", {}).items() if peer["error"] is not None}
    report.show(console, series, left_out)
    made = report.as_json(series, more)
    if arguments.json:
        arguments.json.parent.mkdir(parents=True, exist_ok=True)
        arguments.json.write_text(json.dumps(made, indent=1) + "\n")
        log(f"figures: {arguments.json}")
    if arguments.chart and series:
        arguments.chart.parent.mkdir(parents=True, exist_ok=True)
        box = made["machine"]
        foot = (
            f"{box['cores']} cores, everything on them; medians of {amounts.rounds} rounds, "
            "lines from the lowest to the highest."
        )
        arguments.chart.write_text(draw("Pantheon, measured", report.panels(series), foot))
        log(f"chart: {arguments.chart}")
    return made


async def run_until_stopped(arguments: argparse.Namespace, console: Console) -> None:
    """SIGTERM ends it as Ctrl-C does: servers and processes are stopped, nothing stays behind."""
    running = asyncio.current_task()
    assert running is not None
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, running.cancel)
    await run(arguments, console)


async def profiles(mesh: Rig, bench: Bench, log: Any) -> dict[str, Any]:
    """A load that is sampled, then one whose batches are counted."""
    made: dict[str, Any] = {"samples": {}}
    watched = [
        process for process in mesh.processes if process.name.startswith("orchestrator") or process.name == "echo_agent"
    ]
    samplings = [await profile.Sampling.start(process, mesh.folder) for process in watched]
    await asyncio.sleep(2)
    await bench.generator.ask(what="load", shape="chain", workflows=bench.amounts.load_workflows)
    for sampling in samplings:
        seen = await sampling.stop()
        for line in profile.lines_of(sampling.process.name, seen):
            log(line)
        made["samples"][sampling.process.name] = {
            "samples": seen.samples,
            "alone": dict(seen.alone.most_common(profile.TOP)),
            "within": dict(seen.within.most_common(profile.TOP)),
        }
    for process in [process for process in mesh.processes if process.name.startswith("orchestrator")]:
        await mesh.stop(process)
    file = mesh.folder / "probe.json"
    for what, workflows in (("load", bench.amounts.load_workflows), ("idle", bench.amounts.idle_workflows)):
        probed = await mesh.spawn(
            "probed",
            "-m",
            "benchmarks.probed_orchestrator",
            str(file),
            environment={"INSTANCE_ID": f"probed-{what}"},
        )
        await mesh.until_registered([f"probed-{what}"])
        await bench.generator.ask(what=what, shape="chain", workflows=workflows)
        await mesh.stop(probed)
        made[what] = json.loads(file.read_text())
        log(f"orchestrator under {what}: {json.dumps(made[what], indent=1)}")
    return made


def main() -> int:
    arguments = parse(sys.argv[1:])
    console = Console()
    try:
        asyncio.run(run_until_stopped(arguments, console))
    except BenchError as error:
        sys.stderr.write(f"benchmarks: {error}\n")
        return 1
    except KeyboardInterrupt:
        return 130
    except asyncio.CancelledError:
        return 143
    return 0


if __name__ == "__main__":
    raise SystemExit(main())

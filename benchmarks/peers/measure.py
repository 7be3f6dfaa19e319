"""Measuring peers: once in each round, on the same servers, with nothing of theirs running beside another subject."""

import asyncio
from collections.abc import Awaitable, Callable, Mapping, MutableMapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.figures import Series
from benchmarks.peers.environment import python_of
from benchmarks.peers.peer import PEERS, Peer
from benchmarks.rig import REPOSITORY, BenchError, Process, Rig, spent
from benchmarks.rounds import Amounts
from benchmarks.shapes import CHAIN_STEPS
from pantheon.stack.servers.ports import pick_free

SERVERS = ("nats", "postgres", "valkey")
# A load round of fewer is too short for a rate.
LEAST_LOAD_WORKFLOWS = 4
IDLE_DIVISOR = 2
# So many free ports are named to a peer.
PORTS = 4
WARM_UP_DIVISOR = 4


class Contest:
    """The peers of a run. One that cannot be measured is logged once and left out from then on."""

    def __init__(
        self,
        names: Sequence[str],
        rig: Rig,
        amounts: Amounts,
        series: MutableMapping[str, Series],
        log: Callable[[str], None],
        *,
        peers: Mapping[str, Peer] = PEERS,
        find_python: Callable[[Peer], Awaitable[Path]] = python_of,
    ) -> None:
        self._peers = [peers[name] for name in names]
        self._find_python = find_python
        self._pythons: dict[str, Path] = {}
        self._rig = rig
        self._amounts = amounts
        self._series = series
        self._log = log
        self._round = 0
        self.failed: dict[str, str] = {}

    async def prepare(self) -> None:
        """Make the environments, before anything is measured."""
        for peer in self._peers:
            try:
                self._pythons[peer.name] = await self._find_python(peer)
            except BenchError as error:
                self._leave_out(peer, error)

    async def round(self) -> None:
        """Measure each once."""
        self._round += 1
        for peer in self._peers:
            if peer.name not in self.failed:
                try:
                    await self._measure(peer)
                except BenchError as error:
                    self._leave_out(peer, error)

    def as_json(self) -> dict[str, Any]:
        return {
            peer.name: {"requirements": list(peer.requirements), "error": self.failed.get(peer.name)}
            for peer in self._peers
        }

    def _leave_out(self, peer: Peer, error: BenchError) -> None:
        self.failed[peer.name] = str(error)
        self._log(f"{peer.name} is left out: {error}")

    async def _measure(self, peer: Peer) -> None:
        """Start it, warm it up, measure load and idle, stop it."""
        started: list[Process] = []
        try:
            drivers = await self._start(peer, started)
            load = max(LEAST_LOAD_WORKFLOWS, self._amounts.load_workflows // peer.load_divisor)
            await self._load(drivers, max(1, load // WARM_UP_DIVISOR))
            before = self._rig.usage()
            seconds = await self._load(drivers, load)
            used = spent(before, self._rig.usage())
            idle = await drivers[0].ask(what="idle", workflows=max(3, self._amounts.idle_workflows // IDLE_DIVISOR))
        finally:
            for process in reversed(started):
                await self._rig.stop(process)
        # Both or neither: rounds of a series stay paired with those of the others.
        series = self._series.setdefault(peer.name, Series.empty(peer.name, peer.title, CHAIN_STEPS))
        theirs = {name: value for name, value in used.items() if name in SERVERS or name.startswith(peer.name)}
        series.add_load(load, seconds, theirs)
        series.add_idle(idle["took_ms"])

    async def _start(self, peer: Peer, started: list[Process]) -> list[Process]:
        python = str(self._pythons[peer.name])
        environment = {
            "DATABASE_URL": await self._rig.database(f"{peer.name}_{self._round}"),
            # A database of its own for each round, as in Postgres; there are sixteen of them.
            "REDIS_URL": f"{self._rig.valkey.url.removesuffix('/0')}/{self._round % 16}",
            "PYTHONPATH": f"{peer.program.parent}:{REPOSITORY}",
        }
        ports: list[int] = []
        for _ in range(PORTS):
            ports.append(pick_free(ports))
        environment["BENCH_PORTS"] = ",".join(map(str, ports))
        environment["BENCH_FOLDER"] = str(self._rig.folder / f"{peer.name}_{self._round}")
        for arguments in peer.servers:
            server = await self._rig.spawn(
                f"{peer.name}_{arguments[0]}", str(peer.program), *arguments, program=python, environment=environment
            )
            started.append(server)
        drivers = []
        # Drivers first: they make the schema that workers need.
        for number, arguments in enumerate(peer.drivers, start=1):
            driver = await self._rig.spawn(
                f"{peer.name}_driver-{number}",
                str(peer.program),
                *arguments,
                program=python,
                environment=environment,
                converses=True,
            )
            drivers.append(driver)
            started.append(driver)
        for number, arguments in enumerate(peer.workers, start=1):
            worker = await self._rig.spawn(
                f"{peer.name}_worker-{number}", *arguments, program=python, environment=environment
            )
            started.append(worker)
        return drivers

    async def _load(self, drivers: Sequence[Process], workflows: int) -> float:
        """Seconds from the start to the end of the last driver's share."""
        shares = [workflows // len(drivers) + (number < workflows % len(drivers)) for number in range(len(drivers))]
        replies = await asyncio.gather(
            *(driver.ask(what="load", workflows=share) for driver, share in zip(drivers, shares, strict=True))
        )
        return max(float(reply["seconds"]) for reply in replies)

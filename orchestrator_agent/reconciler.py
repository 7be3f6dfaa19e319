"""Reconciler: what no message will wake: time that has passed, processes that died, a broker that lost its store.

The same code recovers at start and all the time after; it looks when a known moment has come, when the registry
changed, and in a slow jittered sweep.
"""

import asyncio
import heapq
import random
from datetime import datetime
from typing import Any
from uuid import UUID

import structlog

from orchestrator_agent.conductor import Conductor
from orchestrator_agent.engine.events import DeadlinePassed, Due, Expired
from orchestrator_agent.engine.state import ENDED, Status
from orchestrator_agent.flow.circuits import Circuits
from orchestrator_agent.flow.line import Waiting
from orchestrator_agent.flow.taker import Taker
from orchestrator_agent.operations import Operations
from orchestrator_agent.routing import Pauses
from orchestrator_agent.runs import Runs
from orchestrator_agent.standing import Standings
from orchestrator_agent.store.pauses import PauseStore
from orchestrator_agent.store.pool import ProcessLock
from orchestrator_agent.store.reads import Reader
from orchestrator_agent.store.tasks import TaskStore
from orchestrator_agent.turns import Schedules, Turns
from pantheon.background import end
from pantheon.bus import OBJECTS_STREAM, Bus, Publisher, ensure_streams, stream_mark
from pantheon.bus.streams import StreamMark
from pantheon.discovery import Registry, ensure_bucket
from protocol.discovery import KV_BUCKET
from protocol.errors import BusError, PantheonError, StoreError
from protocol.messages import now
from protocol.streams import ALL_STREAMS, RESPONSES, TASKS

log = structlog.get_logger()

SWEEP_SECONDS = 2.0
SWEEP_LIMIT = 1000
# A sweep over many open tasks takes its time; it never takes more than a twentieth of it.
SWEEP_REST = 20
# When Postgres or the broker was away.
RETRY_SECONDS = 1.0
WATCH_SECONDS = 2.0
# Messages of these streams are what must be said again when the broker has lost them.
WATCHED = (TASKS.name, RESPONSES.name)
# What these hold can be lost without anybody having to say it again; but they must be there.
NEEDED = (*(spec.name for spec in ALL_STREAMS if spec.name not in WATCHED), OBJECTS_STREAM)
KV_STREAM = f"KV_{KV_BUCKET}"


class Reconciler:
    def __init__(
        self,
        bus: Bus,
        publisher: Publisher,
        *,
        conductor: Conductor,
        store: TaskStore,
        reader: Reader,
        runs: Runs,
        registry: Registry,
        standings: Standings,
        pauses: Pauses,
        pause_store: PauseStore,
        operations: Operations,
        turns: Turns,
        schedules: Schedules,
        taker: Taker,
        circuits: Circuits,
        lock: ProcessLock,
        replicas: int,
        uses_kv: bool,
    ) -> None:
        self._bus = bus
        self._publisher = publisher
        self._conductor = conductor
        self._store = store
        self._reader = reader
        self._runs = runs
        self._registry = registry
        self._standings = standings
        self._pauses = pauses
        self._pause_store = pause_store
        self._operations = operations
        self._turns = turns
        self._schedules = schedules
        self._taker = taker
        self._circuits = circuits
        self._lock = lock
        self._replicas = replicas
        self._uses_kv = uses_kv
        self._poke = asyncio.Event()
        self._look = True
        self._moments: list[float] = []
        self._known_moments: set[float] = set()
        self._marks: dict[str, StreamMark] = {}
        self._tasks: list[asyncio.Task[None]] = []
        self._unhook: list[Any] = []

    async def start(self) -> None:
        self._conductor.outbox.on_wake_at = self.wake_at
        self._unhook = [self._registry.on_change(self.look_now), self._bus.on_reconnect(self.look_now)]
        self._tasks = [
            asyncio.create_task(self._sweep_for_ever(), name="reconcile"),
            asyncio.create_task(self._watch_for_ever(), name="watch-broker"),
        ]

    def wake_at(self, moment: datetime) -> None:
        """Look again at this moment, if nothing makes us look sooner."""
        # To the tenth of a second upwards, and each tenth once: a thousand timeouts are one look.
        stamp = round(moment.timestamp() + 0.06, 1)
        if stamp in self._known_moments:
            return
        self._known_moments.add(stamp)
        heapq.heappush(self._moments, stamp)
        if self._moments[0] == stamp:
            self._poke.set()

    def look_now(self) -> None:
        """Look at once: something has changed that no moment told of."""
        self._look = True
        self._poke.set()

    async def _sweep_for_ever(self) -> None:
        loop = asyncio.get_running_loop()
        rest = 0.0
        while True:
            await self._sleep(rest)
            began = loop.time()
            try:
                await self._sweep()
            except (StoreError, BusError) as error:
                # How long a look at nothing took says nothing of what the next one costs.
                log.warning("sweep.waiting", error=str(error))
                rest = RETRY_SECONDS
            except Exception:
                # A mistake of ours must not end the recovery of everything else.
                log.exception("sweep.failed")
                rest = RETRY_SECONDS
            else:
                rest = min(30.0, (loop.time() - began) * SWEEP_REST)

    async def _sleep(self, least: float) -> None:
        """Until the next known moment, a call to look, or the slow sweep; at least `least` seconds."""
        if least > 0:
            await asyncio.sleep(least)
        loop = asyncio.get_running_loop()
        end = loop.time() + SWEEP_SECONDS * random.uniform(0.75, 1.25)
        while not self._look:
            left = end - loop.time()
            if self._moments:
                left = min(left, self._moments[0] - now().timestamp())
            if left <= 0:
                break
            self._poke.clear()
            try:
                async with asyncio.timeout(left):
                    await self._poke.wait()
            except TimeoutError:
                continue
        self._look = False
        wall = now().timestamp()
        while self._moments and self._moments[0] <= wall:
            self._known_moments.discard(heapq.heappop(self._moments))

    async def _sweep(self) -> None:
        """Post what is due."""
        if not self._lock.held:
            await self._take_lock_again()
        await self._adopt()
        await self._lock.note_unpublished(self._publisher.repeating_since)
        due = await self._reader.due(SWEEP_LIMIT, self._registry.task_types(), self._pauses.workflows)
        duplicates: list[UUID] = []
        back: list[tuple[UUID, UUID, Waiting]] = []
        for row in due:
            root_task_id, task_id = row["root_task_id"], row["task_id"]
            if row["operation"] is not None and row["is_root"]:
                self._operations.again(task_id, row["task_type"], row["operation"].encode(), row["requester"])
            elif row["is_root"] and row["late"]:
                self._conductor.post(DeadlinePassed(root_task_id))
            elif row["duplicate_of"] is not None:
                duplicates.append(task_id)
            elif row["status"] == Status.DISPATCHED:
                self._standings.answered(row["agent"], row["task_type"], None, failed=True)
                self._conductor.post(Expired(root_task_id, task_id, row["attempt"]))
            elif row["status"] == Status.READY and row["queue"] is not None and not row["over"]:
                back.append((root_task_id, task_id, Waiting(row["queue"], row["priority"], row["flow"])))
            else:
                self._conductor.post(Due(root_task_id, task_id))
        if duplicates:
            await self._conductor.acceptance.end_duplicates(duplicates)
        await self._circuits.look()
        await self._taker.back(back)
        await self._taker.look()
        if len(due) >= SWEEP_LIMIT:
            self.look_now()
        await self.learn()
        for key in await self._reader.keys_waiting():
            self._turns.ask(key)
        if (coming := await self._schedules.look()) is not None:
            self.wake_at(coming)

    async def learn(self) -> None:
        """What people have changed meanwhile: pauses, workflows in the database. At start before anything is taken, so
        that nothing is begun that is paused, and no workflow is unknown. Raises StoreError."""
        workflows, agents = await self._pause_store.names()
        if self._pauses.workflows - workflows or self._pauses.agents - agents:
            self.look_now()
        self._pauses.workflows, self._pauses.agents = workflows, agents
        await self._runs.learn_newest()

    async def _take_lock_again(self) -> None:
        await self._lock.release()
        await self._lock.take()
        log.info("process.lock_taken", process_id=str(self._lock.process_id))

    async def _adopt(self) -> None:
        """Take over what processes that died had at work, and publish what they may not have published."""
        for dead in await self._reader.adopt_dead(self._lock.process_id):
            # A root that was at work owes no answer: whoever ends it from now on says so itself.
            unsure = [
                row
                for row in dead.rows
                if Status(row["status"]) in ENDED or (row["status"] == Status.DISPATCHED and dead.may_owe(row))
            ]
            log.info("process.adopted", process_id=str(dead.process_id), rows=len(dead.rows), again=len(unsure))
            await self._say_again(unsure)

    async def _say_again(self, records: Any) -> None:
        """Publish attempts and final responses once more; the same message ids, so the broker drops what it has."""
        wanted: dict[UUID, set[UUID]] = {}
        for record in records:
            wanted.setdefault(record["root_task_id"], set()).add(record["task_id"])
        roots = list(wanted)
        for first in range(0, len(roots), 256):
            part = roots[first : first + 256]
            for root_task_id, tree in (await self._store.trees(part)).items():
                try:
                    run = await self._runs.build(tree)
                except StoreError:
                    raise
                except PantheonError as error:
                    log.error("recovery.broken", task_id=str(root_task_id), error=str(error))
                    self._conductor.post(Due(root_task_id, root_task_id))
                    continue
                for task_id in wanted[root_task_id]:
                    row = run.rows.get(task_id)
                    if row is None:
                        continue
                    if row.status is Status.DISPATCHED:
                        await self._conductor.outbox.dispatch(run, row)
                    elif row is run.root and row.status in ENDED:
                        await self._conductor.outbox.answer(run)

    # -- the broker's store --------------------------------------------------------------------------------------------

    async def _watch_for_ever(self) -> None:
        while True:
            try:
                await self._watch()
            except (BusError, StoreError) as error:
                log.debug("watch.waiting", error=str(error))
            except Exception:
                log.exception("watch.failed")
            await asyncio.sleep(WATCH_SECONDS * random.uniform(0.75, 1.25))

    async def _watch(self) -> None:
        lost = False
        marks: dict[str, StreamMark] = {}
        for name in WATCHED:
            # Before the question: while its answer is on the way, more is acknowledged than the answer knows of.
            acknowledged = self._publisher.highest_sequence.get(name, 0)
            mark = await stream_mark(self._bus, name)
            if mark is None:
                lost = True
                continue
            marks[name] = mark
            before = self._marks.get(name)
            lost = lost or (before is not None and mark.lost_since(before))
            # What this process has seen acknowledged since the last look is known better.
            lost = lost or mark.last_sequence < acknowledged
        needed = (*NEEDED, KV_STREAM) if self._uses_kv else NEEDED
        gone = [name for name in needed if await stream_mark(self._bus, name) is None]
        if gone and not lost:
            log.warning("broker.lost_streams", streams=gone)
        if gone or lost:
            await ensure_streams(self._bus, replicas=self._replicas)
            if self._uses_kv:
                await ensure_bucket(self._bus.js, self._replicas)
        if lost:
            log.warning("broker.lost_messages", streams=list(WATCHED))
            self._publisher.highest_sequence.clear()
            await self._say_all_again(mine_only=True)
            marks = {name: mark for name in WATCHED if (mark := await stream_mark(self._bus, name)) is not None}
        if marks != self._marks:
            await self._reader.note_streams({name: (mark.created, mark.last_sequence) for name, mark in marks.items()})
        self._marks = marks

    async def check_store(self) -> None:
        """Before anything else at start: was the broker's store lost while no orchestrator was there to see it?"""
        noted = await self._reader.noted_streams()
        for name in WATCHED:
            mark = await stream_mark(self._bus, name)
            if name in noted and (mark is None or mark.lost_since(StreamMark(*noted[name]))):
                log.warning("broker.lost_messages", stream=name)
                await self._say_all_again(mine_only=False)
                return

    async def _say_all_again(self, *, mine_only: bool) -> None:
        """Publish everything that is owed, as after a loss of the broker's store; others do theirs."""
        owed = await self._reader.owed(self._lock.process_id if mine_only else None)
        log.info("broker.saying_again", rows=len(owed))
        await self._say_again(owed)

    async def close(self) -> None:
        for unhook in self._unhook:
            unhook()
        await end(self._tasks)

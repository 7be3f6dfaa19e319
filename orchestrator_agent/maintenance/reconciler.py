"""Reconciler: what no message will wake: time that has passed, agents that came, what people have changed.

Processes that died and a broker that lost its store are looked after beside it (`adoption`, `broker_watch`).
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

from orchestrator_agent.dispatch.agent_health import AgentHealth
from orchestrator_agent.dispatch.queue_dispatcher import QueueDispatcher
from orchestrator_agent.dispatch.router import Pauses
from orchestrator_agent.dispatch.shared_circuits import SharedCircuits
from orchestrator_agent.engine.events import DeadlinePassed, Due, Expired
from orchestrator_agent.engine.state import Status
from orchestrator_agent.maintenance.broker_outages import BrokerOutages
from orchestrator_agent.maintenance.concurrency_keys import ConcurrencyKeys, Schedules
from orchestrator_agent.message_loops import MessageLoops
from orchestrator_agent.operations.operations import Operations
from orchestrator_agent.runtime.run_cache import RunCache
from orchestrator_agent.store.pauses import PauseStore
from orchestrator_agent.store.reads import Reader
from orchestrator_agent.store.ready_queue import Waiting
from pantheon.bus import Bus
from pantheon.discovery import Registry
from pantheon.runtime.background import end
from protocol.errors import BusError, StoreError
from protocol.messages import now

log = structlog.get_logger()

SWEEP_SECONDS = 2.0
SWEEP_LIMIT = 1000
# Runs in mind that another process has ended: they cost memory, and count as active.
FORGET_SECONDS = 5.0
# A sweep over many open tasks takes its time; it never takes more than a twentieth of it.
SWEEP_REST = 20
# When Postgres or the broker was away.
RETRY_SECONDS = 1.0


class Reconciler:
    def __init__(
        self,
        bus: Bus,
        *,
        message_loops: MessageLoops,
        reader: Reader,
        runs: RunCache,
        registry: Registry,
        agent_health: AgentHealth,
        pauses: Pauses,
        pause_store: PauseStore,
        operations: Operations,
        turns: ConcurrencyKeys,
        schedules: Schedules,
        queue_dispatcher: QueueDispatcher,
        circuits: SharedCircuits,
        outages: BrokerOutages,
    ) -> None:
        self._bus = bus
        self._message_loops = message_loops
        self._reader = reader
        self._runs = runs
        self._registry = registry
        self._agent_health = agent_health
        self._pauses = pauses
        self._pause_store = pause_store
        self._operations = operations
        self._turns = turns
        self._schedules = schedules
        self._queue_dispatcher = queue_dispatcher
        self._circuits = circuits
        self._outages = outages
        # Attempts that the last look found to be over.
        self._expired: set[tuple[UUID, int]] = set()
        self._poke = asyncio.Event()
        self._look = True
        self._forget_at = 0.0
        self._moments: list[float] = []
        self._known_moments: set[float] = set()
        self._tasks: list[asyncio.Task[None]] = []
        self._unhook: list[Any] = []

    async def start(self) -> None:
        self._message_loops.outbox.on_wake_at = self.wake_at
        self._unhook = [self._registry.on_change(self.look_now), self._bus.on_reconnect(self.look_now)]
        self._tasks = [
            asyncio.create_task(self._sweep_for_ever(), name="reconcile"),
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
        rest = before = 0.0
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
                took = loop.time() - began
                # One that took long for another reason (Postgres stood still) must not make timers late.
                rest, before = min(30.0, min(took, before) * SWEEP_REST), took

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
        settled = self._outages.settled
        due = await self._reader.due(SWEEP_LIMIT, self._registry.task_types(), self._pauses.workflows, expired=settled)
        before, self._expired = self._expired, set()
        duplicates: list[UUID] = []
        back: list[tuple[UUID, UUID, Waiting]] = []
        for row in due:
            root_task_id, task_id = row["root_task_id"], row["task_id"]
            if row["operation"] is not None and row["is_root"]:
                self._operations.again(task_id, row["task_type"], row["operation"].encode(), row["requester"])
            elif row["is_root"] and row["late"]:
                self._message_loops.post(DeadlinePassed(root_task_id))
            elif row["duplicate_of"] is not None:
                duplicates.append(task_id)
            elif row["status"] == Status.DISPATCHED:
                broker_was_down = self._outages.touched(row["dispatched_at"], row["expires_at"])
                self._expired.add((task_id, row["attempt"]))
                if (task_id, row["attempt"]) in before:
                    # Found once more before it was written.
                    pass
                elif broker_was_down:
                    self._agent_health.on_response(row["agent"])
                else:
                    self._agent_health.answered(row["agent"], row["task_type"], None, failed=True)
                self._message_loops.post(Expired(root_task_id, task_id, row["attempt"], broker_was_down))
            elif row["status"] == Status.READY and row["queue"] is not None and not row["over"]:
                back.append((root_task_id, task_id, Waiting(row["queue"], row["priority"], row["flow"])))
            else:
                self._message_loops.post(Due(root_task_id, task_id))
        if duplicates:
            await self._message_loops.acceptance.end_duplicates(duplicates)
        await self._circuits.look()
        await self._queue_dispatcher.back(back)
        await self._queue_dispatcher.look()
        if len(due) >= SWEEP_LIMIT:
            self.look_now()
        await self.learn()
        for key in await self._reader.keys_waiting():
            self._turns.ask(key)
        loop = asyncio.get_running_loop()
        if loop.time() >= self._forget_at:
            self._forget_at = loop.time() + FORGET_SECONDS
            await self._runs.forget_ended()
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

    async def close(self) -> None:
        for unhook in self._unhook:
            unhook()
        await end(self._tasks)

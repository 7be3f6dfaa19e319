"""Reconciler: what no message will wake: time that has passed, agents that came, what people have changed.

Processes that died and a broker that lost its store have parts of their own (`adoption`, `broker_watch`).
The same code recovers at start and all the time after; it sweeps when a known moment has come, when the registry
changed, and every two seconds or so.
"""

import asyncio

import structlog

from orchestrator_agent.dispatch.queue_dispatcher import QueueDispatcher
from orchestrator_agent.dispatch.shared_circuits import SharedCircuits
from orchestrator_agent.maintenance.concurrency_keys import ConcurrencyKeys, Schedules
from orchestrator_agent.maintenance.due_rows import DueRows
from orchestrator_agent.maintenance.operator_changes import OperatorChanges
from orchestrator_agent.runtime.run_cache import RunCache
from orchestrator_agent.runtime.sweep_signal import SweepSignal
from pantheon.runtime.periodic import PeriodicTask
from protocol.errors import BusError, StoreError

log = structlog.get_logger()

SWEEP_SECONDS = 2.0
# Runs in memory that another process has ended: they cost memory, and count as active.
FORGET_SECONDS = 5.0
# A sweep over many open tasks takes its time; it never takes more than a twentieth of it.
SWEEP_REST = 20
MAX_REST_SECONDS = 30.0
# When Postgres or the broker was away.
RETRY_SECONDS = 1.0


class Reconciler:
    def __init__(
        self,
        sweep: SweepSignal,
        due_rows: DueRows,
        *,
        circuits: SharedCircuits,
        queue_dispatcher: QueueDispatcher,
        operator_changes: OperatorChanges,
        concurrency_keys: ConcurrencyKeys,
        schedules: Schedules,
        runs: RunCache,
    ) -> None:
        self._signal = sweep
        self._due_rows = due_rows
        self._circuits = circuits
        self._queue_dispatcher = queue_dispatcher
        self._operator_changes = operator_changes
        self._concurrency_keys = concurrency_keys
        self._schedules = schedules
        self._runs = runs
        self._forget_at = 0.0
        self._took_before = 0.0
        self._sweeping = PeriodicTask("reconcile", self._sweep_and_rest, seconds=SWEEP_SECONDS, woken=sweep.woken)

    async def start(self) -> None:
        self._sweeping.start()

    async def stop(self) -> None:
        self._signal.cancel()
        await self._sweeping.stop()

    async def _sweep_and_rest(self) -> None:
        """A sweep, and the rest that it makes necessary, whatever wakes the next one."""
        loop = asyncio.get_running_loop()
        began = loop.time()
        try:
            await self._sweep()
        except (StoreError, BusError) as error:
            # How long a failed sweep took shows nothing of what the next one costs.
            log.warning("sweep.waiting", error=str(error))
            await asyncio.sleep(RETRY_SECONDS)
        except Exception:
            # A mistake of ours must not end the recovery of everything else.
            log.exception("sweep.failed")
            await asyncio.sleep(RETRY_SECONDS)
        else:
            took = loop.time() - began
            # One that took long for another reason (Postgres stood still) must not make timers late.
            rest, self._took_before = min(took, self._took_before) * SWEEP_REST, took
            await asyncio.sleep(min(MAX_REST_SECONDS, rest))

    async def _sweep(self) -> None:
        found = await self._due_rows.post()
        await self._circuits.sync()
        await self._queue_dispatcher.requeue(found.unparked)
        await self._queue_dispatcher.sweep()
        if found.full:
            self._signal.wake()
        await self._operator_changes.learn()
        await self._concurrency_keys.ask_all()
        loop = asyncio.get_running_loop()
        if loop.time() >= self._forget_at:
            self._forget_at = loop.time() + FORGET_SECONDS
            await self._runs.forget_ended()
        if (coming := await self._schedules.start_due()) is not None:
            self._signal.wake_at(coming)

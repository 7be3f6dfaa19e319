"""LostAgents: an agent is alive if it takes tasks and responds. One that is not is noticed, reported, routed around.

Three cases are kept apart. An instance that is gone: it left the registry by silence, or its heartbeats stopped. An
agent of which no instance is left to take what lies in its queue. And one that is deaf: registered, its queue not
pulled although it has slots. What they have is given to other agents that serve its type, as new attempts; an agent
with live instances that pull keeps its queue, and loses only what its dead instance was working on.

The broker is asked which agents have messages at all; of those that responded just now nothing more is asked.
"""

import asyncio
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from uuid import UUID

import structlog

from orchestrator_agent.dispatch.admission import Admission
from orchestrator_agent.dispatch.router import Router
from orchestrator_agent.engine.decisions import RouteRequest
from orchestrator_agent.maintenance.broker_outages import BrokerOutages
from orchestrator_agent.maintenance.heartbeats import Heartbeats
from orchestrator_agent.maintenance.orphaned_attempts import OrphanedAttempts, Outstanding
from pantheon.bus import Bus, QueueState, queue_lengths, queue_state
from pantheon.discovery import Registry
from pantheon.runtime.periodic import PeriodicTask
from protocol.discovery import InstanceRecord
from protocol.errors import BusError, StoreError
from protocol.events import event
from protocol.names import ORCHESTRATOR

log = structlog.get_logger()

# An instance is waited for as long as so many of its own pauses between heartbeats.
INTERVALS = 2.4
NO_INSTANCE = "no instance of it is left"
BLOCKED = "its event loop is blocked"
DEAF = "it takes nothing from its queue"


@dataclass(frozen=True)
class LivenessTimes:
    """In seconds. A heartbeat comes every 5, and so does a renewal of a registration in NATS: `suspect` is one that is
    late, `silent` two that did not come; an instance with longer pauses is waited for longer. Where the pauses between
    heartbeats are not known yet, `unrenewed` counts."""

    check: float = 2.5
    suspect: float = 6.5
    silent: float = 12.0
    unrenewed: float = 12.5
    # A queue that was not pulled from for so long, though it has messages and its agent slots.
    deaf: float = 9.0
    # What an agent has in hand, and no live instance has listed in heartbeats for so long.
    unlisted: float = 7.0
    # An instance that is gone is remembered for so long: what it was working on is still to be found among the others'.
    remember: float = 90.0


@dataclass
class _Watched:
    """What is known of an agent with messages: since when its queue has stood still, and since when a message has been
    in hand that no instance lists."""

    deliveries: int = -1
    still_since: float = 0.0
    unlisted: dict[int, float] = field(default_factory=dict)
    # Attempts that could not be given to others, and the registry's version then.
    kept: set[tuple[UUID, int]] = field(default_factory=set)
    kept_at: int = -1


class LostAgents:
    def __init__(
        self,
        bus: Bus,
        *,
        registry: Registry,
        router: Router,
        admission: Admission,
        orphans: OrphanedAttempts,
        outages: BrokerOutages,
        source: str,
        times: LivenessTimes,
    ) -> None:
        self._bus = bus
        self._registry = registry
        self._router = router
        self._admission = admission
        self._orphans = orphans
        self._outages = outages
        self._source = source
        self._times = times
        self._clock = time.monotonic
        self._heartbeats = Heartbeats(bus, self._clock)
        self._watched: dict[str, _Watched] = {}
        # Instances that are gone, and when that was noticed; those that were reported.
        self._lost: dict[tuple[str, str], float] = {}
        self._announced: dict[tuple[str, str], float] = {}
        self._checked_at = self._clock()
        self._excused_at = self._checked_at
        self._announcing: set[asyncio.Task[None]] = set()
        self._checking = PeriodicTask("lost-agents", self._check, seconds=times.check, jitter=0.1)
        self._unhook: list[Callable[[], None]] = []

    async def start(self) -> None:
        self._unhook = [self._registry.on_lost(self._left)]
        self._checking.start()

    async def stop(self) -> None:
        while self._unhook:
            self._unhook.pop()()
        await self._checking.stop()
        if self._announcing:
            await asyncio.wait(self._announcing, timeout=1)
        await self._heartbeats.close()

    def _left(self, record: InstanceRecord) -> None:
        """An instance has left the registry because it fell silent."""
        self._note_lost(record, "its registration has expired")
        self._checking.wake()

    def _note_lost(self, record: InstanceRecord, detail: str) -> None:
        key = (record.name, record.instance_id)
        self._lost.setdefault(key, self._clock())
        self._announce(record.name, record.instance_id, detail)

    def _announce(self, agent: str, instance_id: str, detail: str) -> None:
        key = (agent, instance_id)
        if key in self._announced:
            return
        self._announced[key] = self._clock()
        log.warning("agent.lost", agent=agent, instance_id=instance_id, detail=detail)
        data = {"agent": agent, "instance_id": instance_id, "reason": "lost", "detail": detail}
        task = asyncio.create_task(self._bus.publish_quietly(*event("agent", "failed", self._source, data)))
        self._announcing.add(task)
        task.add_done_callback(self._announcing.discard)

    async def _check(self) -> None:
        try:
            await self.check()
        except (BusError, StoreError) as error:
            log.debug("lost_agents.waiting", error=str(error))

    async def check(self) -> None:
        """Raises BusError, StoreError."""
        now, before = self._clock(), self._checked_at
        self._checked_at = now
        lengths = await queue_lengths(self._bus)
        lengths.pop(ORCHESTRATOR, None)
        await self._heartbeats.follow(lengths)
        overslept = now - before > self._times.check + self._times.suspect
        if overslept or not self._outages.settled:
            # That this process, or the broker, was silent makes no instance silent.
            self._heartbeats.excuse_silence()
            self._excused_at = now
            self._watched.clear()
            return
        self._forget(now, lengths)
        for agent in {**lengths, **self._router.unresponsive}:
            await self._check_agent(agent, lengths.get(agent, 0))
        await self._release_suspects()

    def _forget(self, now: float, lengths: Iterable[str]) -> None:
        for noted in (self._lost, self._announced):
            for key in [key for key, at in noted.items() if now - at > self._times.remember]:
                del noted[key]
                self._heartbeats.forget(*key)
        self._watched = {agent: self._watched[agent] for agent in lengths if agent in self._watched}

    # -- one agent -----------------------------------------------------------------------------------------------------

    async def _check_agent(self, agent: str, length: int) -> None:
        times = self._times
        live: list[InstanceRecord] = []
        instances = self._registry.instances(agent)
        if not instances and self._registry.stale:
            # It may have come since the registry was last seen.
            return
        for record in instances:
            if self._silent(record, times.silent):
                self._note_lost(record, "no heartbeat came, nor a renewal of its registration")
            else:
                if self._lost.pop((agent, record.instance_id), None) is not None:
                    self._announced.pop((agent, record.instance_id), None)
                live.append(record)
        if not any(record.status == "ready" for record in live):
            await self._give_queue_away(agent, live)
            return
        blocked = [record for record in live if self._blocked(record)]
        if all(record in blocked for record in live if record.status == "ready"):
            await self._give_away_of_blocked(agent, live, blocked)
            return
        lost = [instance for name, instance in self._lost if name == agent]
        late = any(self._silent(record, times.suspect) for record in live)
        if lost or late:
            await self._check_hands(agent, live, lost)
        await self._check_pulls(agent, live, length)

    def _silent(self, record: InstanceRecord, seconds: float) -> bool:
        sign = self._heartbeats.of(record.name, record.instance_id)
        if sign is not None and sign.interval:
            return self._clock() - sign.received_at > max(seconds, INTERVALS * sign.interval)
        seen_at = self._registry.seen_at(record.name, record.instance_id)
        return seen_at is not None and self._clock() - max(seen_at, self._excused_at) > self._times.unrenewed

    async def _give_queue_away(self, agent: str, live: Sequence[InstanceRecord]) -> None:
        """No instance is left that takes from this queue: those that are draining finish what they have."""
        if self._registry.instances(agent):
            self._router.unresponsive.setdefault(agent, NO_INSTANCE)
        else:
            self._router.unresponsive.pop(agent, None)
        state = await queue_state(self._bus, agent)
        delivered = 0 if state is None else state.delivered
        outstanding = await self._orphans.outstanding(agent)
        in_hand = [each for each in outstanding if each.sequence <= delivered]
        if live:
            outstanding = outstanding[len(in_hand) :]
        lost = any(name == agent for name, _ in self._lost)
        await self._abandon(agent, outstanding, NO_INSTANCE, died=in_hand if lost and not live else ())

    def _blocked(self, record: InstanceRecord) -> bool:
        sign = self._heartbeats.of(record.name, record.instance_id)
        return sign is not None and sign.blocked

    async def _give_away_of_blocked(
        self, agent: str, live: Sequence[InstanceRecord], blocked: Sequence[InstanceRecord]
    ) -> None:
        """All instances live, and none takes anything. They keep what they work on."""
        self._router.unresponsive[agent] = BLOCKED
        for record in blocked:
            self._announce(agent, record.instance_id, BLOCKED)
        signs = [self._heartbeats.of(agent, record.instance_id) for record in live]
        listed = {key for sign in signs if sign is not None for key in sign.running}
        outstanding = await self._orphans.outstanding(agent)
        await self._abandon(agent, [each for each in outstanding if each.key not in listed], BLOCKED)

    async def _check_hands(self, agent: str, live: Sequence[InstanceRecord], lost: Sequence[str]) -> None:
        """Of an agent with live instances: what none of them has in hand, so that one that is gone had it."""
        times, now = self._times, self._clock()
        state = await queue_state(self._bus, agent)
        if state is None:
            return
        signs = [self._heartbeats.of(agent, record.instance_id) for record in live]
        of_lost = [self._heartbeats.of(agent, instance) for instance in lost]
        listed = {key for sign in signs if sign is not None for key in sign.running}
        had = {key for sign in of_lost if sign is not None for key in sign.running}
        watched = self._watched.setdefault(agent, _Watched())
        before, watched.unlisted = watched.unlisted, {}
        orphans: list[Outstanding] = []
        for each in await self._orphans.outstanding(agent, up_to=state.delivered):
            if each.key in listed:
                continue
            since = watched.unlisted[each.sequence] = before.get(each.sequence, now)
            # A live instance that sends no heartbeats may have it; each of those that do would have listed it by now.
            no_other = all(sign is not None and sign.received_at > since for sign in signs)
            if each.key in had or (no_other and now - since >= times.unlisted):
                orphans.append(each)
        if lost and orphans:
            await self._abandon(agent, orphans, "its process is gone", died=orphans)

    async def _check_pulls(self, agent: str, live: Sequence[InstanceRecord], length: int) -> None:
        """Whether an agent that is registered takes from its queue."""
        now = self._clock()
        window = self._admission.window
        if agent not in self._router.unresponsive and window.responded_since(agent, now - self._times.check):
            self._watched.pop(agent, None)
            return
        if agent not in self._router.unresponsive and self._is_busy(live, length):
            # Of a thousand agents whose tasks take long, the broker is not asked about each.
            self._watched.pop(agent, None)
            return
        state = await queue_state(self._bus, agent)
        watched = self._watched.setdefault(agent, _Watched())
        stands = length > 0 and agent not in self._router.pauses.agents
        if stands and (state is None or (state.pulls == 0 and state.in_queue > 0 and self._has_slots(live, state))):
            deliveries = 0 if state is None else state.deliveries
            if watched.deliveries != deliveries:
                watched.deliveries, watched.still_since = deliveries, now
            if now - watched.still_since < self._times.deaf and agent not in self._router.unresponsive:
                return
            if self._router.unresponsive.get(agent) != DEAF:
                self._router.unresponsive[agent] = DEAF
                for record in live:
                    self._announce(agent, record.instance_id, DEAF)
            outstanding = await self._orphans.outstanding(agent)
            delivered = 0 if state is None else state.delivered
            await self._abandon(agent, [each for each in outstanding if each.sequence > delivered], DEAF)
            return
        watched.deliveries = -1
        if state is not None and (state.pulls > 0 or state.in_hand > 0):
            self._mark_responsive(agent)

    def _is_busy(self, live: Sequence[InstanceRecord], length: int) -> bool:
        """Whether instances work on all that there is of their agent's, or on as much as they can."""
        signs = [self._heartbeats.of(record.name, record.instance_id) for record in live]
        if any(sign is None for sign in signs):
            return False
        active = sum(sign.active for sign in signs if sign)
        return active >= length or active >= sum(sign.max_concurrency for sign in signs if sign)

    def _has_slots(self, live: Sequence[InstanceRecord], state: QueueState) -> bool:
        """Whether instances could work on more than they have. One that sends no heartbeats, and has something, may be
        slow; only its attempt's own time ends that."""
        if state.in_hand == 0:
            return True
        signs = [self._heartbeats.of(record.name, record.instance_id) for record in live]
        if any(sign is None for sign in signs):
            return False
        return sum(sign.active for sign in signs if sign) < sum(sign.max_concurrency for sign in signs if sign)

    def _mark_responsive(self, agent: str) -> None:
        if self._router.unresponsive.pop(agent, None) is not None:
            log.info("agent.responsive", agent=agent)
            for key in [key for key in self._announced if key[0] == agent]:
                del self._announced[key]
            self._admission.wake()

    async def _abandon(
        self, agent: str, attempts: Sequence[Outstanding], reason: str, *, died: Sequence[Outstanding] = ()
    ) -> None:
        """Give away what others serve; what could not be is tried again when the registry has changed."""
        watched = self._watched.setdefault(agent, _Watched())
        if watched.kept_at != self._registry.version:
            watched.kept, watched.kept_at = set(), self._registry.version
        served = {kind: self._router.responsive(RouteRequest(kind)) for kind in {each.task_type for each in attempts}}
        movable = [each for each in attempts if served[each.task_type] and each.key not in watched.kept]
        if movable:
            watched.kept |= await self._orphans.abandon(agent, movable, reason, died=died)

    async def _release_suspects(self) -> None:
        """Tasks that processes died on, and that have ended where another orchestrator saw it."""
        suspects = self._admission.suspects
        if suspects:
            for agent in await self._orphans.ended(suspects):
                suspects.pop(agent, None)

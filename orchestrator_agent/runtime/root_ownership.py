"""Peers: the orchestrators that share the work, and which of them has a root's tree in mind.

The broker gives any message to any of them, and whoever has one must have read the tree that it is about. So a root has
an owner, by its id. Who is given a message about another's root passes it on, on core NATS, with what the owner needs
to acknowledge it in the other's place. Nothing depends on that (ADR 0022): what is lost on the way is not acknowledged,
and given out again; who is given a message for the second time keeps it; and the version in the root's row decides,
whoever writes.
"""

import asyncio
import json
import re
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import dataclass, field
from typing import Any
from uuid import UUID

import structlog

from pantheon.bus import Bus, Delivery, Subscription, is_first_delivery, nak
from pantheon.runtime.background import end
from protocol import subjects
from protocol.names import ORCHESTRATOR

log = structlog.get_logger()

BEAT_SECONDS = 0.25
# Who has said nothing for so long may be frozen, or cut off. Longer than a batch of large values keeps a process busy.
ALIVE_SECONDS = 1.5
# Others hear that one leaves within milliseconds; busy ones later.
LEAVE_SECONDS = 0.3

# The server lets nobody but itself name a reply below `$JS.ACK.`: the first token stays behind.
ACK_PREFIX = "$JS."

TASK, FINAL = subjects.task(ORCHESTRATOR), subjects.response(ORCHESTRATOR)
_UUID = rb'"\s*:\s*"([0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12})"'
_ROOT, _TASK = re.compile(rb'"root_task_id' + _UUID), re.compile(rb'"task_id' + _UUID)


def root_of(body: bytes) -> int | None:
    """The number of the root that a message is about; None where it names none.

    Found, not read: what has such a name further inside is passed to another one, which does as well.
    """
    found = _ROOT.search(body) or _TASK.search(body)
    return None if found is None else int(found[1].replace(b"-", b""), 16)


@dataclass(slots=True)
class Peer:
    """`passed` is what it was given since its last beat, and `before` since the one before that: nobody knows whether a
    silent one still got it."""

    heard: float
    crowded: Sequence[str] = ()
    passed: list[Delivery] = field(default_factory=list)
    before: list[Delivery] = field(default_factory=list)


class RootOwnership:
    """`on_forwarded` is told of each message that another one passed on, as the broker had given it out; `crowded` says
    whether there is too much of what comes on a subject already."""

    def __init__(self, bus: Bus, process_id: UUID) -> None:
        self._bus = bus
        self._own = str(process_id)
        self.on_forwarded: Callable[[Delivery], None] = lambda delivery: None
        self.crowded: Callable[[str], bool] = lambda subject: False
        self._others: dict[str, Peer] = {}
        # All that are there, in an order that is the same for all of them; empty where this process is alone.
        self._members: list[str] = []
        self._quiet = False
        self._left: float | None = None
        self._prefix = len(subjects.peer(self._own)) + 1
        self._subscriptions: list[Subscription] = []
        self._beating: asyncio.Task[None] | None = None
        self._giving_back: set[asyncio.Task[None]] = set()

    async def start(self) -> None:
        self._subscriptions = [
            await self._bus.subscribe_direct(f"{subjects.peer(self._own)}.>", self._on_message),
            await self._bus.subscribe_direct(subjects.PEER_BEAT, self._on_beat),
        ]
        self._beating = asyncio.create_task(self._beat(), name="peers")

    # -- whose a root is -----------------------------------------------------------------------------------------------

    @property
    def members(self) -> Sequence[str]:
        return self._members

    def owns(self, root_task_id: UUID) -> bool:
        """Whether others pass on to this process what happens to a root. False where it knows of no others: that
        nothing was heard of them does not mean that they are not there."""
        return bool(self._members) and self._owner(root_task_id.int) == self._own

    def _owner(self, root: int) -> str:
        return self._members[root % len(self._members)]

    def forward(self, delivery: Delivery) -> bool:
        """Pass a message to the owner of its root; False where it is to be kept."""
        # What this mesh answered is nothing that anybody decides on.
        if not self._members or delivery.subject == FINAL:
            return False
        root = root_of(delivery.data)
        if root is None or (owner := self._owner(root)) == self._own or not is_first_delivery(delivery):
            return False
        peer = self._others[owner]
        if _kind(delivery.subject) in peer.crowded:
            return False
        headers = None
        # Of an answer's headers nobody reads any.
        if delivery.subject == TASK and delivery.headers:
            headers = {name: value for name, value in delivery.headers.items() if not name.startswith("Nats-")}
        subject = f"{subjects.peer(owner)}.{delivery.subject}"
        reply = delivery.reply.removeprefix(ACK_PREFIX)
        if not self._bus.client.post(subject, delivery.data, reply=reply, headers=headers):
            return False
        peer.passed.append(delivery)
        return True

    def _on_message(self, delivery: Delivery) -> None:
        delivery.subject = delivery.subject[self._prefix :]
        if delivery.reply:
            delivery.reply = ACK_PREFIX + delivery.reply
        if self._quiet:
            self._go_beside(nak(delivery))
        else:
            self.on_forwarded(delivery)

    def _go_beside(self, giving_back: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(giving_back, name="give-back")
        self._giving_back.add(task)
        task.add_done_callback(self._giving_back.discard)

    # -- who is there --------------------------------------------------------------------------------------------------

    def stop_accepting(self) -> None:
        """Take nothing from the others until `resume_accepting`: what they forward before they hear of it goes back."""
        self._quiet = True
        self._say(there=False)
        self._count()

    def resume_accepting(self) -> None:
        if self._left is None:
            self._quiet = False
            self._say(there=True)
            self._count()

    def leave(self) -> None:
        """Be quiet for good."""
        if self._left is None:
            self._left = asyncio.get_running_loop().time()
            self.stop_accepting()

    async def close(self) -> None:
        """After `leave`. Hears what comes until the others have heard of it."""
        if self._others and self._left is not None:
            await asyncio.sleep(self._left + LEAVE_SECONDS - asyncio.get_running_loop().time())
        if self._beating is not None:
            await end([self._beating])
        for subscription in self._subscriptions:
            await self._bus.unsubscribe(subscription)
        if self._giving_back:
            await asyncio.wait(self._giving_back)

    def _say(self, *, there: bool) -> None:
        crowded = [_kind(subject) for subject in (TASK, FINAL) if self.crowded(subject)]
        beat = {"process_id": self._own, "there": there, "crowded": crowded}
        self._bus.client.post(subjects.PEER_BEAT, json.dumps(beat).encode())

    def _on_beat(self, delivery: Delivery) -> None:
        try:
            said = json.loads(delivery.data)
            process_id, there, crowded = str(UUID(said["process_id"])), bool(said["there"]), list(said["crowded"])
        except (ValueError, KeyError, TypeError, AttributeError):
            return
        if process_id == self._own:
            return
        known = self._others.get(process_id)
        if not there:
            # It hands back itself what it got.
            if self._others.pop(process_id, None) is not None:
                self._count()
            return
        now = asyncio.get_running_loop().time()
        if known is not None:
            known.heard, known.crowded = now, crowded
            known.before, known.passed = known.passed, []
            return
        self._others[process_id] = Peer(now, crowded)
        self._count()
        if not self._quiet:
            # So that it need not wait for the next one.
            self._say(there=True)

    def _count(self) -> None:
        members = sorted([*self._others, *([] if self._quiet else [self._own])]) if self._others else []
        if members != self._members:
            self._members = members
            log.info("peers.changed", orchestrators=max(1, len(members)))

    async def _beat(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            if not self._quiet:
                self._say(there=True)
            before = loop.time()
            await asyncio.sleep(BEAT_SECONDS)
            now = loop.time()
            if now - before > 2 * BEAT_SECONDS:
                # This process was frozen, or busy: what the others said meanwhile is still to be read.
                for peer in self._others.values():
                    peer.heard = now
            silent = [one for one, peer in self._others.items() if now - peer.heard > ALIVE_SECONDS]
            for one in silent:
                peer = self._others.pop(one)
                log.warning("peer.silent", process_id=one, handed_back=len(peer.before) + len(peer.passed))
                self._go_beside(_nak_all([*peer.before, *peer.passed]))
            if silent:
                self._count()


async def _nak_all(deliveries: Sequence[Delivery]) -> None:
    """What was acknowledged is not given out again, whoever hands it back."""
    for delivery in deliveries:
        await nak(delivery)


def _kind(subject: str) -> str:
    return subject.rpartition(".")[2]

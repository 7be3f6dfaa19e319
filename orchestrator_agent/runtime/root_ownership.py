"""Root ownership: which of the orchestrators that share the work has a root's tree in memory.

The broker delivers any message to any of them, and the one that gets it must have read the tree that it is about. So a
root has an owner, by its id. An orchestrator that is not the owner forwards the message on core NATS, with the subject
that it is acknowledged on. Nothing depends on that (ADR 0022): what is lost on the way is not acknowledged, and
delivered again; a message that is delivered for the second time is kept; and the version in the root's row decides,
whichever process writes.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from uuid import UUID

import structlog

from pantheon.bus import Bus, Delivery, is_first_delivery
from protocol import subjects
from protocol.names import ORCHESTRATOR

log = structlog.get_logger()

# An orchestrator that has sent nothing for so long may be frozen, or cut off. Longer than a batch of large values keeps
# a process busy.
ALIVE_SECONDS = 1.5
# The server lets no client name a reply below `$JS.ACK.`: the first token stays behind.
ACK_PREFIX = "$JS."

TASK, FINAL = subjects.task(ORCHESTRATOR), subjects.response(ORCHESTRATOR)
_UUID = rb'"\s*:\s*"([0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12})"'
_ROOT, _TASK = re.compile(rb'"root_task_id' + _UUID), re.compile(rb'"task_id' + _UUID)


def root_of(body: bytes) -> int | None:
    """The number of the root that a message is about; None where it names none.

    Found, not read: what has such a name further inside is forwarded to another orchestrator, which does as well.
    """
    found = _ROOT.search(body) or _TASK.search(body)
    return None if found is None else int(found[1].replace(b"-", b""), 16)


def kind_of(subject: str) -> str:
    """The last token of a subject, by which orchestrators name what they have too much of: `task`, `response`."""
    return subject.rpartition(".")[2]


@dataclass(slots=True)
class Peer:
    """Another orchestrator. `forwarded` is what it was sent since its last beat, and `before` since the one before
    that: what a silent one was sent, it may never have received."""

    received_at: float
    crowded: Sequence[str] = ()
    forwarded: list[Delivery] = field(default_factory=list)
    before: list[Delivery] = field(default_factory=list)


class RootOwnership:
    """The other orchestrators, as `peer_exchange` finds them, and what follows from it for each message."""

    def __init__(self, bus: Bus, process_id: UUID, *, alive_seconds: float = ALIVE_SECONDS) -> None:
        self._bus = bus
        self._alive_seconds = alive_seconds
        self.own = str(process_id)
        self._others: dict[str, Peer] = {}
        # All that are there, in an order that is the same for all of them; empty where this process is alone.
        self._members: list[str] = []
        self._accepting = True

    # -- whose a root is -----------------------------------------------------------------------------------------------

    @property
    def members(self) -> Sequence[str]:
        return self._members

    def owns(self, root_task_id: UUID) -> bool:
        """Whether other orchestrators forward to this one what happens to a root. False where it knows of no others:
        that nothing was received from them does not mean that they are not there."""
        return bool(self._members) and self._owner(root_task_id.int) == self.own

    def _owner(self, root: int) -> str:
        return self._members[root % len(self._members)]

    def forward(self, delivery: Delivery) -> bool:
        """Send a message to the owner of its root; False where this process keeps it."""
        # On a final response of this mesh nothing is decided.
        if not self._members or delivery.subject == FINAL:
            return False
        root = root_of(delivery.data)
        if root is None or (owner := self._owner(root)) == self.own or not is_first_delivery(delivery):
            return False
        peer = self._others[owner]
        if kind_of(delivery.subject) in peer.crowded:
            return False
        headers = None
        # No headers of a response are read.
        if delivery.subject == TASK and delivery.headers:
            headers = {name: value for name, value in delivery.headers.items() if not name.startswith("Nats-")}
        subject = f"{subjects.peer(owner)}.{delivery.subject}"
        reply = delivery.reply.removeprefix(ACK_PREFIX)
        if not self._bus.client.post(subject, delivery.data, reply=reply, headers=headers):
            return False
        peer.forwarded.append(delivery)
        return True

    # -- who is there, as the exchange finds it ------------------------------------------------------------------------

    @property
    def accepting(self) -> bool:
        """Whether others may count this process among the owners."""
        return self._accepting

    @accepting.setter
    def accepting(self, accepting: bool) -> None:
        self._accepting = accepting
        self._count()

    @property
    def has_others(self) -> bool:
        return bool(self._others)

    def crowded(self, process_id: str) -> Sequence[str]:
        """What another orchestrator has too much of already."""
        return self._others[process_id].crowded

    def received_from(self, process_id: str, crowded: Sequence[str], at: float) -> bool:
        """Another orchestrator is there; whether that is new."""
        peer = self._others.get(process_id)
        if peer is not None:
            peer.received_at, peer.crowded = at, crowded
            peer.before, peer.forwarded = peer.forwarded, []
            return False
        self._others[process_id] = Peer(at, crowded)
        self._count()
        return True

    def left(self, process_id: str) -> None:
        """Another orchestrator accepts nothing more. It naks itself what it was sent."""
        if self._others.pop(process_id, None) is not None:
            self._count()

    def received_from_all(self, at: float) -> None:
        """This process was frozen, or busy: what the others sent meanwhile is still to be read."""
        for peer in self._others.values():
            peer.received_at = at

    def drop_silent(self, at: float) -> list[Delivery]:
        """Forget the orchestrators that have been silent for too long; returns what they were sent last."""
        silent = [
            process_id for process_id, peer in self._others.items() if at - peer.received_at > self._alive_seconds
        ]
        unsure: list[Delivery] = []
        for process_id in silent:
            peer = self._others.pop(process_id)
            log.warning("peer.silent", process_id=process_id, handed_back=len(peer.before) + len(peer.forwarded))
            unsure += [*peer.before, *peer.forwarded]
        if silent:
            self._count()
        return unsure

    def _count(self) -> None:
        members = sorted([*self._others, *([self.own] if self._accepting else [])]) if self._others else []
        if members != self._members:
            self._members = members
            log.info("peers.changed", orchestrators=max(1, len(members)))

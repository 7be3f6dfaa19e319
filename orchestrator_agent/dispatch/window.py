"""Window: how many of an agent's tasks are in the broker, and how many more may be. The rest is queued in Postgres.

Counted in memory, by each process for itself, without I/O: a soft bound. What goes astray (a response that another
orchestrator read, a decision that lost its race) is corrected by what the broker holds for the agent.
"""

import math
import time
from collections.abc import Callable
from dataclasses import dataclass

from orchestrator_agent.dispatch.active_processes import ActiveProcesses
from orchestrator_agent.dispatch.signal import DispatchSignal

# Of each attempt that waits for a task which it delegated: it is known late, and more begin to wait until then.
WAITING_SLOTS = 2


@dataclass(frozen=True, slots=True)
class WindowSettings:
    """How large a window is, and for how long what is known of it holds."""

    # An agent that responds fast must not wait for the orchestrator's next batch: what it does in this time is added to
    # what it works on. No more than that: what is in the broker goes before what comes with a higher priority.
    round_trip_seconds: float = 0.02
    # A task that takes longer than this makes the wait for the next one small beside it: then nothing is added.
    slow_seconds: float = 0.1
    # How fast an agent responds is measured over periods of this length.
    period_seconds: float = 0.25
    # A window's size is kept for this time: it is asked for at every single dispatch.
    size_seconds: float = 0.05
    # Decisions are written and published within milliseconds; one that was not after this time never will be.
    unsent_seconds: float = 5.0


@dataclass(slots=True)
class _Slots:
    """`taken` by tasks; `unsent`: those of decisions that are not published yet, so that the broker cannot know
    them."""

    taken: int = 0
    unsent: int = 0
    taken_at: float = 0.0
    rate: float = 0.0
    responses: int = 0
    responded_at: float = 0.0
    since: float = 0.0
    size: int = 0
    size_until: float = 0.0


class Window:
    """`take` a slot, `responded` frees it. `active` are the orchestrators that share the window; `signal` is set when a
    slot is free."""

    def __init__(
        self,
        capacity: Callable[[str], int],
        clock: Callable[[], float] = time.monotonic,
        *,
        waiting: Callable[[str], int] = lambda agent: 0,
        active: ActiveProcesses | None = None,
        signal: DispatchSignal | None = None,
        settings: WindowSettings | None = None,
    ) -> None:
        self._capacity = capacity
        # Tasks of an agent that wait for tasks which they delegated: they are in the broker, and the agent does not
        # work on them. Each makes the window larger.
        self._waiting = waiting
        self._clock = clock
        self._agents: dict[str, _Slots] = {}
        self._active = active or ActiveProcesses()
        self._signal = signal or DispatchSignal()
        self._settings = settings or WindowSettings()

    def _of(self, agent: str) -> _Slots:
        slots = self._agents.get(agent)
        if slots is None:
            slots = self._agents[agent] = _Slots(since=self._clock())
        return slots

    def size(self, agent: str) -> int:
        """This process's share of the window."""
        slots, settings = self._of(agent), self._settings
        share = -(-(self._capacity(agent) + WAITING_SLOTS * self._waiting(agent)) // self._active.count)
        rate = self._rate(slots)
        fast = rate * settings.slow_seconds >= share
        slots.size = share + (math.ceil(rate * settings.round_trip_seconds) if fast else 0)
        slots.size_until = self._clock() + settings.size_seconds
        return slots.size

    def taken(self, agent: str) -> int:
        slots = self._agents.get(agent)
        return 0 if slots is None else slots.taken

    def at_work(self, agent: str) -> int:
        """About how many tasks the agent has of all orchestrators: each has an equal share of them."""
        return max(0, self.taken(agent) * self._active.count - self._waiting(agent))

    def room(self, agent: str) -> int:
        slots = self._agents.get(agent)
        if slots is None or self._clock() >= slots.size_until:
            return self.size(agent) - self._agents[agent].taken
        return slots.size - slots.taken

    def take(self, agent: str) -> None:
        slots = self._of(agent)
        slots.taken += 1
        slots.unsent += 1
        slots.taken_at = self._clock()

    def sent(self, agent: str) -> None:
        """A task that had taken a slot is on its way to the broker."""
        slots = self._of(agent)
        slots.unsent = max(0, slots.unsent - 1)

    def release(self, agent: str) -> None:
        """A decision that took a slot came to nothing."""
        self.sent(agent)
        self._free(agent)

    def responded(self, agent: str) -> None:
        slots = self._of(agent)
        slots.responses += 1
        slots.responded_at = self._clock()
        self._free(agent)

    def responded_since(self, agent: str, moment: float) -> bool:
        """Whether a response of the agent has come since then, by the clock."""
        slots = self._agents.get(agent)
        return slots is not None and slots.responded_at >= moment

    def _free(self, agent: str) -> None:
        slots = self._of(agent)
        slots.taken = max(0, slots.taken - 1)
        self._signal.slot_freed(agent)

    def _rate(self, slots: _Slots) -> float:
        now = self._clock()
        passed, period = now - slots.since, self._settings.period_seconds
        if passed >= period:
            # Half the past for each period: an agent that has become slow is known as slow within a second.
            weight = 0.5 ** (passed / period)
            slots.rate = slots.rate * weight + slots.responses / passed * (1 - weight)
            slots.responses, slots.since = 0, now
        return slots.rate

    def before(self, agent: str) -> tuple[int, int]:
        """For `correct`: slots taken, and unsent, before the broker is asked."""
        slots = self._of(agent)
        if self._clock() - slots.taken_at > self._settings.unsent_seconds:
            slots.unsent = 0
        return slots.taken, slots.unsent

    def correct(self, agent: str, in_broker: int, before: tuple[int, int]) -> None:
        """The broker holds so many tasks of the agent, of all orchestrators; what is free of the window is shared.

        What the broker cannot know yet, and what happened while it was asked, still counts.
        """
        slots = self._of(agent)
        taken, unsent = before
        size = self.size(agent)
        processes = self._active.count
        free = size * processes - in_broker
        # Rounded up: a last slot that no process takes would be worse than one too many.
        share = -(-free // processes)
        counted, slots.taken = slots.taken, max(0, size - share + unsent + slots.taken - taken)
        if slots.taken < counted:
            self._signal.slot_freed(agent)

    @property
    def responses_per_second(self) -> float:
        return sum(self._rate(slots) for slots in self._agents.values())

    def busy(self) -> list[str]:
        """Agents that this process believes to have work."""
        return [agent for agent, slots in self._agents.items() if slots.taken > 0]

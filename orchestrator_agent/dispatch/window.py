"""Window: how many of an agent's tasks are in the broker, and how many more may be. The rest waits in Postgres.

Counted in memory, by each process for itself, without I/O: a soft bound. What goes astray (an answer that another
orchestrator read, a decision that lost its race) is put right by what the broker says of the agent's consumer.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass

from orchestrator_agent.dispatch.active_processes import ActiveProcesses
from orchestrator_agent.dispatch.signal import DispatchSignal

# One batch at work, one on its way.
CAPACITIES = 2
# An agent that answers fast must not wait for the orchestrator's next batch: it has what it does in this time besides.
ROUND_TRIP_SECONDS = 0.05
# How fast an agent answers is measured over periods of this length.
PERIOD_SECONDS = 0.25


# A window's size is good for this time: it is asked for at every single dispatch.
SIZE_SECONDS = 0.05
# Decisions are written and published within milliseconds; what was not after this time never will be.
UNSENT_SECONDS = 5.0


@dataclass(slots=True)
class _Traffic:
    """`out`: places taken. `unsent`: those of decisions that are not published yet, so that the broker cannot know."""

    out: int = 0
    unsent: int = 0
    taken_at: float = 0.0
    rate: float = 0.0
    answers: int = 0
    since: float = 0.0
    size: int = 0
    size_until: float = 0.0


class Window:
    """`take` a slot, `answered` gives it back. `active` are the orchestrators that share the window; `signal` is set
    when a slot is free."""

    def __init__(
        self,
        capacity: Callable[[str], int],
        clock: Callable[[], float] = time.monotonic,
        *,
        waiting: Callable[[str], int] = lambda agent: 0,
        active: ActiveProcesses | None = None,
        signal: DispatchSignal | None = None,
    ) -> None:
        self._capacity = capacity
        # Tasks of an agent that wait for tasks which they gave out: they are in the broker, and nobody works on them.
        # Each makes the window two places larger, because it is told late, and more begin to wait until then.
        self._waiting = waiting
        self._clock = clock
        self._agents: dict[str, _Traffic] = {}
        self._active = active or ActiveProcesses()
        self._signal = signal or DispatchSignal()

    def _of(self, agent: str) -> _Traffic:
        traffic = self._agents.get(agent)
        if traffic is None:
            traffic = self._agents[agent] = _Traffic(since=self._clock())
        return traffic

    def size(self, agent: str) -> int:
        """This process's share of the window."""
        traffic = self._of(agent)
        share = -(-CAPACITIES * (self._capacity(agent) + self._waiting(agent)) // self._active.count)
        traffic.size = share + int(self._rate(traffic) * ROUND_TRIP_SECONDS)
        traffic.size_until = self._clock() + SIZE_SECONDS
        return traffic.size

    def out(self, agent: str) -> int:
        traffic = self._agents.get(agent)
        return 0 if traffic is None else traffic.out

    def at_work(self, agent: str) -> int:
        """About how many tasks the agent has of all orchestrators: each has an equal share of them."""
        return max(0, self.out(agent) * self._active.count - self._waiting(agent))

    def room(self, agent: str) -> int:
        traffic = self._agents.get(agent)
        if traffic is None or self._clock() >= traffic.size_until:
            return self.size(agent) - self._agents[agent].out
        return traffic.size - traffic.out

    def take(self, agent: str) -> None:
        traffic = self._of(agent)
        traffic.out += 1
        traffic.unsent += 1
        traffic.taken_at = self._clock()

    def sent(self, agent: str) -> None:
        """A task that had taken a place is on its way to the broker."""
        traffic = self._of(agent)
        traffic.unsent = max(0, traffic.unsent - 1)

    def give_back(self, agent: str) -> None:
        """A decision that took a place came to nothing."""
        self.sent(agent)
        self._free(agent)

    def answered(self, agent: str) -> None:
        self._of(agent).answers += 1
        self._free(agent)

    def _free(self, agent: str) -> None:
        traffic = self._of(agent)
        traffic.out = max(0, traffic.out - 1)
        self._signal.slot_freed(agent)

    def _rate(self, traffic: _Traffic) -> float:
        now = self._clock()
        passed = now - traffic.since
        if passed >= PERIOD_SECONDS:
            # Half the past for each period: an agent that has become slow is known as slow within a second.
            weight = 0.5 ** (passed / PERIOD_SECONDS)
            traffic.rate = traffic.rate * weight + traffic.answers / passed * (1 - weight)
            traffic.answers, traffic.since = 0, now
        return traffic.rate

    def before(self, agent: str) -> tuple[int, int]:
        """To be asked before the broker is, for `correct`."""
        traffic = self._of(agent)
        if self._clock() - traffic.taken_at > UNSENT_SECONDS:
            traffic.unsent = 0
        return traffic.out, traffic.unsent

    def correct(self, agent: str, in_broker: int, before: tuple[int, int]) -> None:
        """The broker holds so many tasks of the agent, of all orchestrators; what is free of the window is shared.

        What it cannot know yet, and what happened while it was asked, is not forgotten.
        """
        traffic = self._of(agent)
        out, unsent = before
        size = self.size(agent)
        processes = self._active.count
        free = size * processes - in_broker
        # Rounded up: a last place that nobody takes would be worse than one too many.
        share = -(-free // processes)
        traffic.out = max(0, size - share + unsent + traffic.out - out)

    @property
    def responses_per_second(self) -> float:
        return sum(self._rate(traffic) for traffic in self._agents.values())

    def busy(self) -> list[str]:
        """Agents that this process believes to have work."""
        return [agent for agent, traffic in self._agents.items() if traffic.out > 0]

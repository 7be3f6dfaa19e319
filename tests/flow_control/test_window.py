"""The window: a count in memory, corrected by what the broker holds."""

from uuid import UUID

from orchestrator_agent.dispatch.active_processes import ActiveProcesses
from orchestrator_agent.dispatch.admission import Admission
from orchestrator_agent.dispatch.agent_health import AgentHealth
from orchestrator_agent.dispatch.capacity import Capacity
from orchestrator_agent.dispatch.queues import Queue, queue_of
from orchestrator_agent.dispatch.rate_limits import RateLimits
from orchestrator_agent.dispatch.redis_state import RedisState
from orchestrator_agent.dispatch.router import Router
from orchestrator_agent.dispatch.signal import DispatchSignal
from orchestrator_agent.dispatch.window import Window, WindowSettings
from orchestrator_agent.engine.decisions import RouteRequest
from orchestrator_agent.store.pool import Database
from orchestrator_agent.store.ready_queue import ReadyQueue
from orchestrator_agent.workflows.library import Library
from pantheon.discovery import Registry
from protocol import InstanceRecord, new_id
from protocol.workflow import Requires


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


def window(
    capacity: int = 10, *, active: ActiveProcesses | None = None, signal: DispatchSignal | None = None
) -> Window:
    return Window(lambda agent: capacity, Clock(), active=active, signal=signal)


def processes(count: int) -> list[UUID]:
    return [new_id() for _ in range(count)]


def instance(name: str, *task_types: str, concurrency: int = 1, number: int = 0, **metadata: str) -> InstanceRecord:
    return InstanceRecord(
        name=name, instance_id=f"i{number}", task_types=task_types, max_concurrency=concurrency, metadata=metadata
    )


def router(*records: InstanceRecord, active: ActiveProcesses | None = None) -> tuple[Router, Admission]:
    registry = Registry()
    registry.apply(records)
    capacity = Capacity(registry)
    window = Window(capacity, Clock(), waiting=capacity.waiting, active=active)
    unlimited = RateLimits({}, registry, RedisState(None))
    admission = Admission(window, ReadyQueue(Database("postgresql://nowhere/none")), unlimited)
    return Router(registry, Library(), AgentHealth(), admission=admission), admission


def test_the_capacity_fits_and_a_response_frees_a_slot() -> None:
    signal = DispatchSignal()
    made = window(10, signal=signal)
    for _ in range(10):
        assert made.room("a") > 0
        made.take("a")
    assert made.room("a") == 0
    assert made.busy() == ["a"]
    made.responded("a")
    assert (made.room("a"), signal.is_set) == (1, False)
    # Only queued rows that wait for a slot of this agent wake the dispatcher.
    signal.awaited = frozenset({"a"})
    made.responded("b")
    assert not signal.is_set
    made.responded("a")
    assert (made.room("a"), signal.is_set) == (2, True)
    for _ in range(20):
        made.responded("a")
    assert (made.room("a"), made.busy()) == (10, [])


def test_an_agent_is_as_loaded_as_the_broker_counts() -> None:
    """What routing took for an agent's load was counted apart, and kept every attempt to which no response came (its
    task was cancelled, and the agent dead) or whose response another orchestrator read: the agent seemed busy for
    ever."""
    active = ActiveProcesses()
    made, admission = router(instance("a", "x", concurrency=8), instance("b", "x", concurrency=8), active=active)
    for _ in range(8):
        made.choose(RouteRequest("x", "a"))
    loads = {each.agent: each.outstanding for each in made.candidates(RouteRequest("x"))}
    assert loads == {"a": 8, "b": 0}
    for _ in range(8):
        admission.window.sent("a")
    admission.window.correct("a", 0, admission.window.before("a"))
    assert [each.outstanding for each in made.candidates(RouteRequest("x"))] == [0, 0]
    # Two orchestrators: what this one does not see is shared evenly.
    active.learn(processes(2))
    admission.window.correct("a", 6, admission.window.before("a"))
    assert {each.agent: each.outstanding for each in made.candidates(RouteRequest("x"))} == {"a": 6, "b": 0}


def test_tasks_that_wait_for_tasks_which_they_delegated_take_no_slot_from_these() -> None:
    made, admission = router(
        instance("a", "x", concurrency=2, waiting="3"), instance("a", "x", concurrency=1, number=1, waiting="many")
    )
    for _ in range(9):
        assert made.choose(RouteRequest("x")) is not None
    assert made.choose(RouteRequest("x")) is None
    assert admission.at_work("a") == 6


def test_orchestrators_share_a_window_and_each_has_a_slot_at_least() -> None:
    active = ActiveProcesses()
    made = window(10, active=active)
    active.learn(processes(3))
    assert made.size("a") == 4
    active.learn(processes(100))
    assert made.size("a") == 1


def test_an_agent_that_responds_fast_has_more_on_its_way_and_loses_it_when_it_slows_down() -> None:
    clock, settings = Clock(), WindowSettings()
    made = Window(lambda agent: 5, clock, settings=settings)
    for _ in range(40):
        for _ in range(250):
            made.take("a")
            made.responded("a")
        clock.now += settings.period_seconds
    per_second = 250 / settings.period_seconds
    assert abs(made.size("a") - (5 + per_second * settings.round_trip_seconds)) < 3
    clock.now += 5
    assert made.size("a") == 5


def test_an_agent_whose_tasks_take_a_while_has_nothing_ahead() -> None:
    """What lies ahead in the broker goes before what comes with a higher priority."""
    clock, settings = Clock(), WindowSettings()
    made = Window(lambda agent: 25, clock, settings=settings)
    for _ in range(40):
        for _ in range(25):
            made.take("a")
            made.responded("a")
        # 25 slots, 0.25 s each.
        clock.now += settings.period_seconds
    assert made.size("a") == 25


def test_the_broker_corrects_a_wrong_count() -> None:
    made = window(10)
    for _ in range(10):
        made.take("a")
        made.sent("a")
    made.correct("a", 3, made.before("a"))
    assert (made.taken("a"), made.room("a")) == (3, 7)
    # What happened while it was asked is not forgotten.
    before = made.before("a")
    made.take("a")
    made.correct("a", 3, before)
    assert made.taken("a") == 4
    made.sent("a")
    made.correct("a", 25, made.before("a"))
    assert made.room("a") == -15


def test_what_the_broker_cannot_know_yet_counts_until_it_is_sent_or_came_to_nothing() -> None:
    clock = Clock()
    made = Window(lambda agent: 5, clock)
    for _ in range(4):
        made.take("a")
    made.correct("a", 0, made.before("a"))
    assert made.taken("a") == 4
    made.sent("a")
    made.release("a")
    made.correct("a", 1, made.before("a"))
    assert made.taken("a") == 3
    clock.now += 60
    made.correct("a", 1, made.before("a"))
    assert made.taken("a") == 1


def test_what_is_free_is_shared_between_orchestrators() -> None:
    active = ActiveProcesses()
    active.learn(processes(2))
    made = window(10, active=active)
    made.correct("a", 4, made.before("a"))
    assert made.room("a") == 3
    made.correct("a", 9, made.before("a"))
    assert made.room("a") == 1
    made.correct("a", 10, made.before("a"))
    assert made.room("a") == 0


def test_a_draining_instance_is_no_capacity_unless_it_is_all_there_is() -> None:
    registry = Registry()
    capacity = Capacity(registry)
    assert capacity("a") == 0
    registry.apply([instance("a", "x", concurrency=3), instance("a", "x", concurrency=4, number=2)])
    assert capacity("a") == 7
    registry.apply([instance("a", "x", concurrency=3).model_copy(update={"status": "draining"})])
    assert capacity("a") == 4
    registry.apply([instance("a", "x", concurrency=4, number=2).model_copy(update={"status": "draining"})])
    assert capacity("a") == 7


def test_a_full_agent_is_waited_for_and_another_one_taken() -> None:
    made, admission = router(instance("a", "x", concurrency=2))
    assert made.choose(RouteRequest("x")) is not None
    assert made.choose(RouteRequest("x")) is not None
    assert made.choose(RouteRequest("x")) is None
    assert made.served(RouteRequest("x"))
    assert made.room("x", None) == 0
    admission.window.responded("a")
    assert (made.room("x", None), made.room("x", "b"), made.agents("x", None)) == (1, 0, ("a",))
    two, _ = router(instance("a", "x", concurrency=2), instance("b", "x", concurrency=2))
    assigned = [two.choose(RouteRequest("x")) for _ in range(5)]
    assert sorted(each.agent for each in assigned if each is not None) == ["a", "a", "b", "b"]
    assert {each.excluded for each in two.candidates(RouteRequest("x"))} == {"all its places are taken"}


def test_an_agent_that_does_not_fit_is_not_waited_for_because_it_is_full() -> None:
    made, _ = router(instance("a", "x", model="small"))
    for _ in range(2):
        made.choose(RouteRequest("x"))
    assert not made.served(RouteRequest("x", requires=Requires(model="large")))
    assert made.served(RouteRequest("x", requires=Requires(model="small")))


def test_a_sticky_task_waits_for_its_agent_while_that_is_full() -> None:
    made, _ = router(instance("a", "x", concurrency=2), instance("b", "x", concurrency=2))
    first = made.choose(RouteRequest("x", sticky="k"))
    assert first is not None
    assert made.choose(RouteRequest("x", sticky="k")) is not None
    assert made.choose(RouteRequest("x", sticky="k")) is None
    assert made.choose(RouteRequest("x")) is not None


def test_no_task_overtakes_queued_rows() -> None:
    made, admission = router(instance("a", "x", "y", concurrency=2))
    admission.queues.add("x")
    called = new_id()
    assert made.choose(RouteRequest("x", task_id=new_id())) is None
    assert made.choose(RouteRequest("y", task_id=new_id())) is not None
    admission.taken.add(called)
    assert made.choose(RouteRequest("x", task_id=called)) is not None


def test_a_queues_name_says_what_its_rows_have_in_common() -> None:
    assert queue_of(RouteRequest("x")).name == "x"
    assert queue_of(RouteRequest("x", "a")).name == "x@a"
    big = queue_of(RouteRequest("x", requires=Requires(model="big")))
    assert big.name != queue_of(RouteRequest("x", requires=Requires(model="small"))).name
    for queue in (Queue("x"), Queue("x", "a"), big, Queue("x", "a", "ff", '["t","w!#@"]')):
        assert Queue.of(queue.name) == queue

"""Routing: which agent a task gets, as a function of the registry and of what has been seen."""

import json
from collections import Counter
from random import Random
from typing import Any

import pytest

from orchestrator_agent.dispatch.agent_health import FORGET_HALF_SECONDS, OPEN_AFTER_FAILURES, OPEN_SECONDS, AgentHealth
from orchestrator_agent.dispatch.router import (
    NOTE_BYTES,
    NOTED_OTHERS,
    SHOWN_AGENTS,
    AdmitAll,
    Bar,
    Candidate,
    Pauses,
    Router,
    choose,
)
from orchestrator_agent.dispatch.shortlist import SHUT_SECONDS, Shortlist
from orchestrator_agent.engine.decisions import Placement, RouteRequest
from orchestrator_agent.workflows.library import Library
from pantheon.discovery.registry import Registry as LiveRegistry
from protocol import InstanceRecord, new_id
from protocol.messages import TaskResponse
from protocol.workflow import Requires


class Registry:
    def __init__(self, *records: InstanceRecord) -> None:
        self.records = records

    def serving(self, task_type: str) -> list[str]:
        return sorted({each.name for each in self.records if task_type in each.task_types})

    def instances(self, agent: str | None = None) -> list[InstanceRecord]:
        return [each for each in self.records if agent in (None, each.name)]

    def task_types(self) -> frozenset[str]:
        return frozenset(name for each in self.records for name in each.task_types)


def instance(name: str, *task_types: str, concurrency: int = 1, number: int = 0, **metadata: str) -> InstanceRecord:
    return InstanceRecord(
        name=name, instance_id=f"i{number}", task_types=task_types, max_concurrency=concurrency, metadata=metadata
    )


class Loads(AdmitAll):
    """How many tasks agents have at work."""

    def __init__(self, **counts: int) -> None:
        self.counts = counts

    def at_work(self, agent: str) -> int:
        return self.counts.get(agent, 0)


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


def router(*records: InstanceRecord, agent_health: AgentHealth | None = None) -> Router:
    return Router(Registry(*records), Library(), agent_health or AgentHealth())


def agent_of(placement: Placement | None) -> str | None:
    return None if placement is None else placement.agent


def test_a_task_goes_to_the_agent_that_serves_it() -> None:
    made = router(instance("one", "x"), instance("two", "y"))
    assert agent_of(made.choose(RouteRequest("x"))) == "one"
    assert agent_of(made.choose(RouteRequest("y"))) == "two"
    assert made.choose(RouteRequest("z")) is None
    assert not made.served(RouteRequest("z"))
    assert made.workflow("x") is None


def test_a_pinned_agent_serves_it_or_nobody() -> None:
    made = router(instance("one", "x"), instance("two", "y"))
    assert agent_of(made.choose(RouteRequest("x", "one"))) == "one"
    assert made.choose(RouteRequest("x", "two")) is None
    assert made.choose(RouteRequest("x", "nobody")) is None


def test_the_orchestrator_is_no_agent_to_send_steps_to() -> None:
    made = router(instance("orchestrator_agent", "x"))
    assert made.choose(RouteRequest("x")) is None
    assert not made.served(RouteRequest("x", "orchestrator_agent"))


def test_idle_alternatives_share_in_proportion_to_their_places() -> None:
    """Only instances that serve the type count: another version of the agent may not, yet or any more."""
    made = router(
        instance("big", "x", concurrency=60),
        instance("big", "x", concurrency=30, number=1),
        instance("big", "y", concurrency=900, number=2),
        instance("small", "x", concurrency=10),
    )
    drawn = Counter(agent_of(made.choose(RouteRequest("x"))) for _ in range(2000))
    assert set(drawn) == {"big", "small"}
    assert 120 < drawn["small"] < 290


def test_the_less_loaded_faster_and_more_reliable_agent_is_chosen_and_says_why() -> None:
    agent_health = AgentHealth()
    made = router(instance("a", "x", concurrency=10), instance("b", "x", concurrency=10), agent_health=agent_health)
    made.admission = Loads(a=5)
    placement = made.choose(RouteRequest("x"))
    assert agent_of(placement) == "b"
    assert placement is not None
    assert placement.routing is not None
    why = json.loads(placement.routing)
    assert why["chosen"] == "b"
    assert {each["agent"]: each["outstanding"] for each in why["candidates"]} == {"a": 5, "b": 0}
    made.admission = Loads()
    for _ in range(5):
        agent_health.responded("a", "x", 10.0, failed=False)
        agent_health.responded("b", "x", 900.0, failed=False)
    assert agent_of(made.choose(RouteRequest("x"))) == "a"
    agent_health.responded("a", "x", None, failed=True)
    agent_health.responded("a", "x", None, failed=True)
    agent_health.responded("b", "x", 1.0, failed=False)
    assert agent_health.failure_rate("a", "x") > 0.15


def test_an_agent_that_was_slow_once_is_tried_again_after_a_while() -> None:
    """Its response time was never forgotten: after one slow response (a model that was loaded) nobody asked it any
    more, and with `max_response_ms` its tasks ended `no_agent_available` for good."""
    clock = Clock()
    agent_health = AgentHealth(clock)
    made = router(instance("a", "x"), instance("b", "x"), agent_health=agent_health)
    quick = RouteRequest("x", requires=Requires(max_response_ms=1000))
    agent_health.responded("a", "x", 30_000.0, failed=False)
    agent_health.responded("b", "x", 20.0, failed=False)
    clock.now += FORGET_HALF_SECONDS
    assert agent_health.response_ms("a", "x") == 30_000.0
    assert {agent_of(made.choose(RouteRequest("x"))) for _ in range(30)} == {"b"}
    clock.now += 5 * FORGET_HALF_SECONDS
    assert agent_of(made.choose(quick._replace(pinned_agent="a"))) == "a"
    clock.now += 10 * FORGET_HALF_SECONDS
    assert {agent_of(made.choose(RouteRequest("x"))) for _ in range(100)} == {"a", "b"}
    # What it says then counts for what it is.
    agent_health.responded("a", "x", 50.0, failed=False)
    assert agent_health.response_ms("a", "x") == pytest.approx(50.0, rel=0.1)
    assert made.choose(quick) is not None


def test_only_what_an_agent_completed_says_how_fast_it_is_and_an_attempt_that_was_stopped_says_nothing() -> None:
    """An agent that refused everything at once looked like the fastest one."""
    agent_health = AgentHealth()
    times = {"started_at": "2026-01-01T00:00:00Z", "completed_at": "2026-01-01T00:00:00.002Z"}
    ids = {"task_id": new_id(), "root_task_id": new_id(), "task_type": "x", "agent": "a", "attempt": 1}

    def response(status: str, **more: object) -> TaskResponse:
        return TaskResponse.model_validate({**ids, **times, "status": status, **more})

    error = {"code": "no_way", "message": "no"}
    agent_health.judge(response("failed", error=error))
    assert agent_health.response_ms("a", "x") is None
    for _ in range(OPEN_AFTER_FAILURES):
        agent_health.judge(response("failed", error={**error, "retryable": True}))
    rate = agent_health.failure_rate("a", "x")
    agent_health.judge(response("cancelled", error={"code": "cancelled", "message": "stopped"}))
    assert agent_health.circuit("a", "x") == "open"
    assert agent_health.failure_rate("a", "x") == pytest.approx(rate, rel=0.01)
    agent_health.judge(response("completed", result={}))
    assert agent_health.circuit("a", "x") == "closed"
    assert agent_health.response_ms("a", "x") == pytest.approx(2.0)


def test_a_retry_prefers_another_agent_but_not_at_any_price() -> None:
    made = router(instance("a", "x"), instance("b", "x"))
    assert {agent_of(made.choose(RouteRequest("x", avoid="a"))) for _ in range(30)} == {"b"}
    alone = router(instance("a", "x"))
    assert agent_of(alone.choose(RouteRequest("x", avoid="a"))) == "a"


def test_sticky_tasks_go_to_the_same_agent_while_it_is_there() -> None:
    records = [instance(name, "x") for name in ("a", "b", "c", "d")]
    made = router(*records)
    first = {key: agent_of(made.choose(RouteRequest("x", sticky=key))) for key in map(str, range(40))}
    assert {agent_of(made.choose(RouteRequest("x", sticky="7"))) for _ in range(20)} == {first["7"]}
    assert len(set(first.values())) == 4
    gone = first["7"]
    fewer = router(*(each for each in records if each.name != gone))
    moved = {key for key in first if agent_of(fewer.choose(RouteRequest("x", sticky=key))) != first[key]}
    assert moved == {key for key, agent in first.items() if agent == gone}


def test_what_a_step_requires_is_met_or_it_waits() -> None:
    agent_health = AgentHealth()
    made = router(
        instance("a", "x", model="small", tags="eu, cheap"),
        instance("b", "x", model="large"),
        agent_health=agent_health,
    )
    assert agent_of(made.choose(RouteRequest("x", requires=Requires(model="large")))) == "b"
    assert agent_of(made.choose(RouteRequest("x", requires=Requires(tags=("eu",))))) == "a"
    assert made.choose(RouteRequest("x", requires=Requires(tags=("us",)))) is None
    assert not made.served(RouteRequest("x", requires=Requires(tags=("us",))))
    agent_health.responded("a", "x", 500.0, failed=False)
    agent_health.responded("b", "x", 20.0, failed=False)
    assert agent_of(made.choose(RouteRequest("x", requires=Requires(max_response_ms=100)))) == "b"
    for _ in range(3):
        agent_health.responded("b", "x", None, failed=True)
    assert agent_of(made.choose(RouteRequest("x", requires=Requires(min_reliability=0.9)))) == "a"


def test_what_keeps_each_agent_from_a_task_is_said_in_a_sentence_and_as_values() -> None:
    clock = Clock()
    agent_health = AgentHealth(clock)
    made = router(
        instance("llm_agent", "x", model="a"),
        instance("llm_agent", "x", model="a", number=1),
        instance("other_agent", "x", model="b"),
        instance("third_agent", "x", model="b"),
        instance("elsewhere", "y", model="b"),
        agent_health=agent_health,
    )
    made.pauses.add("agent", "third_agent")
    # Nobody should wait for the end of a pause that would change nothing.
    made.pauses.add("agent", "llm_agent")
    for _ in range(OPEN_AFTER_FAILURES):
        agent_health.responded("other_agent", "x", None, failed=True)
    clock.now += 2.5
    required = RouteRequest("x", requires=Requires(model="b"))
    assert made.choose(required) is None
    assert str(made.wait_reasons(required)) == (
        "4 instances of 3 agents serve 'x'; llm_agent: its model is 'a', 'b' is required; "
        "other_agent: its circuit is open for 8 s more; third_agent: it is paused"
    )
    assert made.wait_reasons(required).shown() == {
        "task_type": "x",
        "instances": 4,
        "agents": {
            "llm_agent": "its model is 'a', 'b' is required",
            "other_agent": "its circuit is open for 8 s more",
            "third_agent": "it is paused",
        },
    }
    clock.now += OPEN_SECONDS
    agent_health.assigned("other_agent", "x")
    assert made.wait_reasons(required).agents["other_agent"] == "its circuit is half open, and one task tries it"
    assert str(made.wait_reasons(RouteRequest("x", "gone_agent"))) == (
        "no instance of 'gone_agent' is there; 4 instances of 3 agents serve 'x'; "
        "llm_agent: the step names 'gone_agent'; other_agent: the step names 'gone_agent'; "
        "third_agent: the step names 'gone_agent'"
    )
    assert made.wait_reasons(RouteRequest("x", "elsewhere")).task == "'elsewhere' does not serve it"
    made.pauses.add("workflow", "flow")
    assert made.wait_reasons(RouteRequest("y", workflow="flow")).task == "the workflow 'flow' is paused"
    assert str(made.wait_reasons(RouteRequest("z"))) == "nobody serves 'z'"


def test_an_agent_that_does_not_fit_is_not_waited_for_because_it_is_paused() -> None:
    made = router(instance("a", "x", model="small"))
    made.pauses.add("agent", "a")
    assert made.served(RouteRequest("x", requires=Requires(model="small")))
    assert not made.served(RouteRequest("x", requires=Requires(model="large")))


def test_of_a_thousand_agents_that_do_not_fit_some_are_named() -> None:
    made = router(*(instance(f"agent_{n:04}", "x", model="long" * 200, tags="eu") for n in range(1000)))
    wait_reasons = made.wait_reasons(RouteRequest("x", requires=Requires(model="b")))
    assert str(wait_reasons).startswith("1000 instances of 1000 agents serve 'x'; agent_0000: its model is 'longlong")
    assert str(wait_reasons).endswith("; and 995 more")
    assert len(str(wait_reasons)) < 1000
    shown = wait_reasons.shown()
    assert (len(shown["agents"]), shown["more"]) == (20, 980)


def test_a_circuit_opens_lets_one_through_and_closes_again() -> None:
    clock = Clock()
    agent_health = AgentHealth(clock)
    made = router(instance("a", "x"), agent_health=agent_health)
    for _ in range(OPEN_AFTER_FAILURES):
        agent_health.responded("a", "x", None, failed=True)
    assert agent_health.circuit("a", "x") == "open"
    assert made.choose(RouteRequest("x")) is None
    assert made.served(RouteRequest("x"))
    clock.now += OPEN_SECONDS
    assert agent_health.circuit("a", "x") == "half_open"
    assert agent_of(made.choose(RouteRequest("x"))) == "a"
    assert made.choose(RouteRequest("x")) is None
    agent_health.responded("a", "x", None, failed=True)
    assert agent_health.circuit("a", "x") == "open"
    clock.now += OPEN_SECONDS
    agent_health.responded("a", "x", 5.0, failed=False)
    assert agent_health.circuit("a", "x") == "closed"


def test_what_is_paused_gets_nothing_and_is_waited_for() -> None:
    made = router(instance("a", "x"), instance("b", "y"))
    made.pauses.add("agent", "a")
    assert made.choose(RouteRequest("x")) is None
    assert made.served(RouteRequest("x"))
    assert agent_of(made.choose(RouteRequest("y"))) == "b"
    made.pauses.remove("agent", "a")
    assert agent_of(made.choose(RouteRequest("x"))) == "a"
    made.pauses.add("workflow", "flow")
    assert made.choose(RouteRequest("x", workflow="flow")) is None
    assert made.served(RouteRequest("x", workflow="flow"))
    assert agent_of(made.choose(RouteRequest("x", workflow="other"))) == "a"
    assert Pauses() == Pauses(frozenset(), frozenset())


@pytest.mark.parametrize(("draw", "agent"), [(0.0, "a"), (0.29, "a"), (0.31, "b"), (0.999999, "b"), (1.0, "b")])
def test_a_choice_among_equals_is_a_point_on_a_line(draw: float, agent: str) -> None:
    candidates = [
        Candidate("a", 3, 0, None, 0.0),
        Candidate("nothing", 0, 0, None, 0.0),
        Candidate("b", 7, 0, None, 0.0),
    ]
    chosen = choose(candidates, avoid=None, sticky=None, draw=draw)
    assert chosen is not None
    assert chosen.agent == agent


def test_there_is_no_choice_among_none() -> None:
    assert choose([], avoid=None, sticky=None, draw=0.5) is None
    broken = Candidate("a", 1, 0, None, 0.0).barred_by(Bar.BROKEN, "its circuit is open for 3 s more")
    assert choose([broken], avoid=None, sticky=None, draw=0.5) is None


# -- very many agents --------------------------------------------------------------------------------------------------


class Rooms(Loads):
    """Agents of one slot each."""

    def room(self, agent: str) -> int:
        return 1 - self.at_work(agent)

    def full(self, agent: str) -> str:
        return "it is full"

    def assigned(self, request: RouteRequest, agent: str) -> None:
        self.counts[agent] = 1


def many(number: int, admission: AdmitAll) -> Router:
    """A router of a real registry with so many agents of one type."""
    registry = LiveRegistry()
    registry.apply([instance(f"agent_{index:04d}", "x") for index in range(number)])
    return Router(registry, Library(), AgentHealth(), admission=admission)


def test_of_very_many_agents_each_free_one_is_found_and_then_none() -> None:
    made = many(1000, Rooms())
    agents = [agent_of(made.choose(RouteRequest("x"))) for _ in range(1000)]
    assert len(set(agents)) == 1000
    assert None not in agents
    assert made.choose(RouteRequest("x")) is None
    assert made.room("x", None) == 0


def test_of_very_many_agents_one_whose_slot_is_freed_is_found_at_once() -> None:
    rooms = Rooms()
    made = many(1000, rooms)
    while made.choose(RouteRequest("x")) is not None:
        pass
    del rooms.counts["agent_0500"]
    made.slot_freed("agent_0500")
    assert made.room("x", None) == 1
    assert agent_of(made.choose(RouteRequest("x"))) == "agent_0500"


def test_a_shut_agent_is_drawn_again_after_a_while() -> None:
    clock, barred = Clock(), {"a", "b"}
    shortlist = Shortlist[Candidate](["a", "b", "c"], Random(1), clock)

    def judge(agent: str) -> Candidate:
        candidate = Candidate(agent, 1, 0, None, 0.0)
        return candidate.barred_by(Bar.FULL, "full") if agent in barred else candidate

    assert [each.agent for each in shortlist.draw(judge)] == ["c"]
    barred.clear()
    assert [each.agent for each in shortlist.draw(judge)] == ["c"]
    clock.now += SHUT_SECONDS
    assert sorted(each.agent for each in shortlist.draw(judge)) == ["a", "b", "c"]


def test_of_very_many_agents_the_load_is_spread_evenly() -> None:
    loads = Loads()

    class Counted(AdmitAll):
        def at_work(self, agent: str) -> int:
            return loads.at_work(agent)

        def assigned(self, request: RouteRequest, agent: str) -> None:
            loads.counts[agent] = loads.at_work(agent) + 1

    made = many(200, Counted())
    for _ in range(2000):
        made.choose(RouteRequest("x"))
    assert sum(loads.counts.values()) == 2000
    assert max(loads.counts.values()) <= 13
    assert min(loads.counts.values()) >= 7


@pytest.mark.parametrize("number", [3, 200])
def test_the_note_has_the_best_few_others_and_how_many_serve_the_type(number: int) -> None:
    made = many(number, Loads())
    placement = made.choose(RouteRequest("x", avoid="agent_0001"))
    assert placement is not None
    assert placement.routing is not None
    assert len(placement.routing) <= NOTE_BYTES
    note = json.loads(placement.routing)
    assert note["candidates"][0]["agent"] == note["chosen"] == placement.agent
    assert len(note["candidates"]) == min(number, 1 + NOTED_OTHERS)
    assert note.get("serving") == (number if number > 1 + NOTED_OTHERS else None)


def test_a_note_of_long_names_and_texts_is_kept_short() -> None:
    records = [instance("a" * 62 + str(index), "x", concurrency=1000) for index in range(9)]
    placement = router(*records).choose(RouteRequest("x", avoid="a" * 62 + "1", sticky="s" * 512))
    assert placement is not None
    assert placement.routing is not None
    assert len(placement.routing) <= NOTE_BYTES
    assert json.loads(placement.routing)["chosen"] == placement.agent


def test_of_very_many_agents_a_text_leads_to_the_same_one_until_it_is_gone() -> None:
    made = many(1000, Loads())
    first = {agent_of(made.choose(RouteRequest("x", sticky="customer-7"))) for _ in range(20)}
    assert len(first) == 1
    registry = made.registry
    assert isinstance(registry, LiveRegistry)
    registry.apply(removals=[(str(first.copy().pop()), "i0")])
    second = {agent_of(made.choose(RouteRequest("x", sticky="customer-7"))) for _ in range(20)}
    assert len(second) == 1
    assert second != first


def test_of_very_many_agents_the_few_that_fit_are_found() -> None:
    made = many(1000, Rooms())
    registry = made.registry
    assert isinstance(registry, LiveRegistry)
    registry.apply([instance("with_model", "x", model="large")])
    needs = RouteRequest("x", requires=Requires(model="large"))
    assert made.served(needs)
    assert agent_of(made.choose(needs)) == "with_model"
    assert made.choose(needs) is None
    assert not made.served(RouteRequest("x", requires=Requires(model="small")))


def test_why_a_task_waits_for_very_many_agents_is_said_of_a_few() -> None:
    made = many(1000, Rooms())
    while made.choose(RouteRequest("x")) is not None:
        pass
    reasons = made.wait_reasons(RouteRequest("x"))
    assert len(reasons.agents) == SHOWN_AGENTS
    assert "of 1000 agents" in str(reasons)
    assert str(reasons).endswith("and 995 more")
    assert reasons.shown()["more"] == 980


# -- soft requirements -------------------------------------------------------------------------------------------------


def note_of(placement: Placement | None) -> dict[str, Any]:
    assert placement is not None
    assert placement.routing is not None
    note: dict[str, Any] = json.loads(placement.routing)
    return note


@pytest.mark.parametrize("others", [0, 1, 50])
def test_unmet_the_best_of_the_others_gets_the_task_and_the_note_says_so(others: int) -> None:
    registry = LiveRegistry()
    registry.apply([instance(f"agent_{number}", "x", model="small") for number in range(1 + others)])
    made = Router(registry, Library(), AgentHealth(), admission=Rooms())
    soft = RouteRequest("x", requires=Requires(model="large", strict=False))
    note = note_of(made.choose(soft))
    assert note["met"] is False
    assert note["unmet"] == "its model is 'small', 'large' is required"
    assert made.served(soft)
    assert not made.served(RouteRequest("x", requires=Requires(model="large")))


def test_an_agent_that_meets_soft_requirements_gets_the_task_as_long_as_it_has_a_slot() -> None:
    made = Router(
        Registry(instance("large", "x", model="large"), instance("small", "x", model="small")),
        Library(),
        AgentHealth(),
        admission=Rooms(),
    )
    soft = RouteRequest("x", requires=Requires(model="large", strict=False))
    first, second = note_of(made.choose(soft)), note_of(made.choose(soft))
    assert (first["chosen"], first["met"]) == ("large", True)
    assert (second["chosen"], second["met"]) == ("small", False)
    assert made.choose(soft) is None
    assert "is required" not in str(made.wait_reasons(soft))


def test_a_broken_task_type_bars_its_agent_from_that_type_alone() -> None:
    """The circuit was the agent's: one type that always failed kept all others from it, and the probe was one of these
    as often as not."""
    agent_health = AgentHealth(Clock())
    made = router(instance("a", "x", "y"), agent_health=agent_health)
    for _ in range(OPEN_AFTER_FAILURES):
        agent_health.responded("a", "x", None, failed=True)
    assert made.choose(RouteRequest("x")) is None
    assert made.room("x", None) == 0
    assert agent_of(made.choose(RouteRequest("y"))) == "a"
    assert made.room("y", None) == 1
    agent_health.responded("a", "y", 5.0, failed=False)
    assert made.choose(RouteRequest("x")) is None

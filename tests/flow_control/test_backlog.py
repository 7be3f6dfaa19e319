"""Which requests are next in a backlog: pure, with deliveries that no broker made."""

import json
from typing import Any

from hypothesis import given
from hypothesis import strategies as st
from nats.aio.client import Client

from orchestrator_agent.intake.backlog import Backlog, fairness_key
from pantheon.bus import Delivery


def body(requester: Any, **more: Any) -> bytes:
    return json.dumps({"task_id": "x", "requester": requester, **more}).encode()


def delivery(sequence: int, data: bytes, pending: int = 0) -> Delivery:
    # NATS ADR-15: stream, consumer, deliveries, both numbers, the time, and how many are still to come.
    reply = f"$JS.ACK.AGENT_TASKS.orchestrator_agent.1.{sequence}.{sequence}.1700000000000000000.{pending}"
    return Delivery(_client=Client(), subject="agent.orchestrator_agent.task", reply=reply, data=data)


def test_a_key_is_what_a_requester_of_a_tenant_sent_with_one_priority() -> None:
    assert fairness_key(body("a")) == fairness_key(body("a", tenant="default", priority=5, payload={"requester": "b"}))
    kinds = [body("a"), body("b"), body("a", tenant="t"), body("a", priority=9), body(None)]
    assert len({fairness_key(each) for each in kinds}) == len(kinds)


def test_what_cannot_be_read_has_a_key_of_no_requester() -> None:
    for unread in (b"", b"[]", b"null", b"{", b"\xff", body(["a"]), body("a", priority={})):
        assert fairness_key(unread) == 0


def test_a_requester_of_one_has_a_round_beside_a_requester_of_thousands() -> None:
    backlog = Backlog(0, 10_000)
    for sequence in range(1, 101):
        backlog.arrived(delivery(sequence, body("a"), 10_000 - sequence))
    for sequence in range(101, 10_000):
        backlog.found(sequence, body("a"))
    backlog.found(10_000, body("b"))
    many, each = backlog.next_round(50)
    assert (len(many[0].delivered), many[1]) == (100, 25)
    assert (backlog.next_ahead(*each), each[1]) == ([10_000], 25)
    assert backlog.pending == 9900


def test_what_the_broker_delivered_is_not_ahead_any_more() -> None:
    backlog = Backlog(0, 100)
    for sequence in range(1, 11):
        backlog.found(sequence, body("ab"[sequence % 2]))
    # The others went to another orchestrator.
    backlog.arrived(delivery(6, body("a")))
    shares = [key for key, _ in backlog.next_round(10)]
    assert sorted(([number for number, _ in key.delivered], list(key.ahead)) for key in shares) == [
        ([], [7, 9]),
        ([6], [8, 10]),
    ]
    assert backlog.ahead == 4
    backlog.found(9, body("a"))
    assert backlog.ahead == 4, "known already"


@given(
    st.lists(st.tuples(st.sampled_from("abc"), st.booleans()), max_size=60),
    st.integers(1, 8),
    st.integers(0, 60),
)
def test_each_is_taken_once_and_in_the_order_of_its_requester(
    sent: list[tuple[str, bool]], limit: int, delivered_up_to: int
) -> None:
    """However far the broker is, and however far was looked ahead. (False: another orchestrator has it.)"""
    backlog = Backlog(0, len(sent))
    expected: dict[str, list[int]] = {name: [] for name in "abc"}
    for sequence, (name, ours) in enumerate(sent, start=1):
        if sequence <= delivered_up_to:
            if ours:
                backlog.arrived(delivery(sequence, body(name)))
        else:
            backlog.found(sequence, body(name))
            ours = True
        if ours:
            expected[name].append(sequence)
    names = {fairness_key(body(name)): name for name in "abc"}
    assert len(names) == 3
    taken: dict[str, list[int]] = {name: [] for name in "abc"}
    last = {name: number for number, (name, _) in enumerate(sent, start=1)}
    while shares := backlog.next_round(limit):
        assert len(shares) * shares[0][1] <= max(limit, len(shares))
        for key, share in shares:
            numbers: list[int] = []
            while key.delivered and len(numbers) < share:
                numbers.append(key.delivered.popleft()[0])
            if not numbers:
                numbers = backlog.next_ahead(key, share)
                backlog.taken_ahead(key, numbers[-1])
            name = sent[numbers[0] - 1][0]
            assert numbers[-1] <= last[name]
            taken[name] += numbers
    # What stands before the newest that came from the broker, and did not come, is with somebody else.
    newest = max((number for number, (_, ours) in enumerate(sent[:delivered_up_to], start=1) if ours), default=0)
    assert taken == {
        name: [each for each in numbers if each > newest or each <= delivered_up_to]
        for name, numbers in expected.items()
    }
    assert backlog.ahead == 0

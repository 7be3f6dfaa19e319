"""Concurrency keys: which roots are admitted, which are cancelled, and never more at work than may be."""

from uuid import UUID

from hypothesis import given
from hypothesis import strategies as st

from orchestrator_agent.engine.concurrency import OpenRoot, decide_concurrency


def root(number: int, *, waiting: bool = True, priority: int = 5) -> OpenRoot:
    return OpenRoot(UUID(int=number), waiting, priority)


def numbers(ids: list[UUID]) -> list[int]:
    return [task_id.int for task_id in ids]


def test_the_queue_is_by_priority_then_age() -> None:
    roots = [root(1, waiting=False), root(2), root(3, priority=9), root(4)]
    admitted, older = decide_concurrency(roots, bound=3, cancel_older=False)
    assert (numbers(admitted), older) == ([3, 2], [])


def test_the_newest_replaces_an_older_one_when_that_has_ended() -> None:
    roots = [root(1, waiting=False), root(2), root(3)]
    admitted, older = decide_concurrency(roots, bound=1, cancel_older=True)
    assert (admitted, numbers(older)) == ([], [1, 2])
    # It compensated what it had done, and has ended: its end makes the next decision.
    admitted, older = decide_concurrency([root(3)], bound=1, cancel_older=True)
    assert (numbers(admitted), older) == ([3], [])


@given(
    st.lists(st.tuples(st.booleans(), st.integers(0, 9)), max_size=12),
    st.integers(1, 5),
    st.booleans(),
)
def test_no_more_than_the_bound_are_admitted_and_no_slot_stays_free(
    known_roots: list[tuple[bool, int]], bound: int, cancel_older: bool
) -> None:
    roots = [root(n, waiting=waiting, priority=priority) for n, (waiting, priority) in enumerate(known_roots)]
    at_work = sum(not open_root.waiting for open_root in roots)
    admitted, older = decide_concurrency(roots, bound=bound, cancel_older=cancel_older)
    assert not set(admitted) & set(older)
    assert len(admitted) <= max(0, bound - at_work)
    stay = [waits for waits in roots if waits.waiting and waits.task_id not in older]
    assert len(admitted) == min(len(stay), max(0, bound - at_work))

"""Retry: a decision of numbers."""

from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator_agent.engine.retry import decide_retry
from protocol.messages import ErrorInfo
from protocol.workflow import Retry

BUSY = ErrorInfo(code="busy", message="busy", retryable=True)
WRONG = ErrorInfo(code="wrong", message="wrong")


class Draw(Random):
    """Always draws the same share of a range, from 0 to 1."""

    def __init__(self, share: float) -> None:
        super().__init__()
        self.share = share

    def random(self) -> float:
        return self.share


def wait(policy: Retry, failures: int, spread: float = 0.0) -> float | None:
    draw = Draw((spread + 1) / 2)
    return decide_retry(policy, default_max_attempts=4, failures=failures, error=BUSY, random=draw).wait_seconds


def test_what_another_attempt_cannot_mend_is_not_tried_again() -> None:
    decision = decide_retry(Retry(), default_max_attempts=4, failures=1, error=WRONG, random=Random(0))
    assert decision.wait_seconds is None


@pytest.mark.parametrize(
    ("failures", "seconds"),
    [
        (1, 1.0),  # the first wait
        (2, 2.0),
        (3, 4.0),
        (4, None),  # the default's fourth attempt was the last
    ],
)
def test_waits_grow_until_the_attempts_are_used_up(failures: int, seconds: float | None) -> None:
    assert wait(Retry(), failures) == seconds


@pytest.mark.parametrize(
    ("policy", "failures", "seconds"),
    [
        (Retry(max_attempts=1), 1, None),
        (Retry(max_attempts=2), 1, 1.0),
        (Retry(max_attempts=1000, initial_seconds=0), 500, 0.0),
        (Retry(max_attempts=1000), 7, 60.0),  # 64 s, bounded
        (Retry(max_attempts=1000), 999, 60.0),  # no float overflows
        (Retry(max_attempts=1000, multiplier=100), 999, 60.0),
        (Retry(max_attempts=9, initial_seconds=3, multiplier=1), 5, 3.0),
        (Retry(max_attempts=9, max_seconds=0), 1, 0.0),
    ],
)
def test_a_steps_own_policy(policy: Retry, failures: int, seconds: float | None) -> None:
    assert wait(policy, failures) == seconds


def test_jitter_spreads_the_wait_to_both_sides() -> None:
    policy = Retry(initial_seconds=10, jitter=0.2)
    assert (wait(policy, 1, -1.0), wait(policy, 1, 0.0), wait(policy, 1, 1.0)) == (8.0, 10.0, 12.0)
    random = Random(0)
    decisions = [decide_retry(policy, default_max_attempts=4, failures=1, error=BUSY, random=random) for _ in range(50)]
    drawn = {decision.wait_seconds for decision in decisions}
    assert len(drawn) > 40
    assert all(seconds is not None and 8 <= seconds <= 12 for seconds in drawn)


@given(
    st.builds(
        Retry,
        max_attempts=st.integers(1, 1000),
        initial_seconds=st.floats(0, 3600),
        multiplier=st.floats(1, 100),
        max_seconds=st.floats(0, 86400),
        jitter=st.floats(0, 1),
    ),
    st.integers(1, 1200),
    st.floats(-1, 1),
)
def test_every_wait_is_within_its_bounds(policy: Retry, failures: int, spread: float) -> None:
    seconds = wait(policy, failures, spread)
    assert (seconds is None) == (failures >= (policy.max_attempts or 4))
    assert seconds is None or 0 <= seconds <= policy.max_seconds * (1 + policy.jitter) + 1e-9

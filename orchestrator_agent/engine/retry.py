"""Retry: whether, and when, a failed attempt is followed by another. A decision of values and one draw."""

from dataclasses import dataclass
from random import Random

from protocol.messages import ErrorInfo
from protocol.workflow import Retry


@dataclass(frozen=True)
class RetryDecision:
    """`wait_seconds` None: no other attempt."""

    wait_seconds: float | None


def decide_retry(
    policy: Retry, *, default_max_attempts: int, failures: int, error: ErrorInfo, random: Random
) -> RetryDecision:
    """`failures` counts this one too; the jitter is drawn from `random`.

    The wait grows by `multiplier` with each failure, up to `max_seconds`.
    """
    max_attempts = policy.max_attempts or default_max_attempts
    retryable = (error.retryable or error.code in policy.retry_on) and error.code not in policy.no_retry_on
    if not retryable or failures >= max_attempts:
        return RetryDecision(None)
    # Past a hundred doublings the power overflows a float; the bound holds long before.
    wait = min(policy.max_seconds, policy.initial_seconds * policy.multiplier ** min(failures - 1, 100))
    return RetryDecision(max(0.0, wait * (1 + policy.jitter * random.uniform(-1, 1))))

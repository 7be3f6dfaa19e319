"""The verdict as a pure function of the issues found.

| found | takes from 100 |
|---|---|
| an issue of severity high | 18 |
| medium | 7 |
| low | 2, all of one kind together at most 10 |

What is medium or low weighs less in a long article: its cost is divided by the length in thousands of words, where
that is more than one. High issues weigh the same in any article.

`reject`: there is no text, or the score is below 25 and more than half of the claims are unsupported; a revision has
nothing to start from. `revise`: any high issue, or three medium ones, or a score below 75. `approve`: all else.
"""

from collections import Counter
from collections.abc import Sequence

from .models import Issue, Verdict

PENALTY = {"high": 18.0, "medium": 7.0, "low": 2.0}
LOW_CAP_PER_KIND = 10.0
APPROVE_FROM_SCORE = 75
REJECT_BELOW_SCORE = 25
REVISE_FROM_MEDIUM_ISSUES = 3
REJECT_ABOVE_UNSUPPORTED_SHARE = 0.5
_WORDS_AT_FULL_WEIGHT = 1_000


def score_of(issues: Sequence[Issue], words: int) -> int:
    """100 for a flawless article, down to 0."""
    ease = max(1.0, words / _WORDS_AT_FULL_WEIGHT)
    high = PENALTY["high"] * sum(issue.severity == "high" for issue in issues)
    medium = PENALTY["medium"] * sum(issue.severity == "medium" for issue in issues)
    lows = Counter(issue.kind for issue in issues if issue.severity == "low")
    low = sum(min(LOW_CAP_PER_KIND, PENALTY["low"] * count) for count in lows.values())
    return max(0, min(100, round(100 - high - (medium + low) / ease)))


def verdict_of(issues: Sequence[Issue], score: int, words: int, claims: int) -> Verdict:
    """`claims` is how many sentences were held against the sources."""
    if not words:
        return "reject"
    unsupported = sum(issue.kind == "unsupported_claim" and issue.severity != "low" for issue in issues)
    if score < REJECT_BELOW_SCORE and claims and unsupported > REJECT_ABOVE_UNSUPPORTED_SHARE * claims:
        return "reject"
    medium = sum(issue.severity == "medium" for issue in issues)
    ease = max(1.0, words / _WORDS_AT_FULL_WEIGHT)
    if any(issue.severity == "high" for issue in issues) or medium >= REVISE_FROM_MEDIUM_ISSUES * ease:
        return "revise"
    return "approve" if score >= APPROVE_FROM_SCORE else "revise"


def summary_of(verdict: Verdict, score: int, issues: Sequence[Issue], notes: Sequence[str] = ()) -> str:
    """The review in a sentence or two."""
    counts = Counter(issue.severity for issue in issues)
    kinds = Counter(issue.kind for issue in issues)
    if issues:
        severities = ", ".join(f"{counts[name]} {name}" for name in ("high", "medium", "low") if counts[name])
        named = ", ".join(
            f"{kind.replace('_', ' ')} ({count})"
            for kind, count in sorted(kinds.items(), key=lambda item: (-item[1], item[0]))
        )
        found = f"{len(issues)} issue{'s' if len(issues) > 1 else ''} ({severities}): {named}."
    else:
        found = "No issues found."
    opening = {"approve": "Approved", "revise": "Needs a revision", "reject": "Rejected"}[verdict]
    return " ".join([f"{opening} with a score of {score} of 100.", found, *notes])

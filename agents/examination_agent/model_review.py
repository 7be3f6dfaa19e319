"""A structured review by a language model."""

from collections.abc import Callable
from datetime import datetime
from typing import Literal

from pydantic import BaseModel, Field

from pantheon.language_model import LanguageModel, Prompt

from .models import Issue, Severity
from .settings import ExaminationSettings

_MAX_OUTPUT_TOKENS = 8_000
_MAX_REQUESTS = 3


class ModelIssue(BaseModel):
    """One issue, as the model is asked to give it."""

    kind: Literal["unsupported_claim", "tone", "structure", "citation", "topic"]
    severity: Severity
    excerpt: str = Field(default="", description="The passage of the article, copied word for word.")
    line: int | None = None
    message: str
    suggestion: str = ""


class ModelReview(BaseModel):
    """A review: the issues found, none for an article without fault."""

    issues: list[ModelIssue] = []


class Reviewer:
    """The model that the settings name, asked for issues."""

    def __init__(self, settings: ExaminationSettings) -> None:
        self._model = LanguageModel(settings)

    async def review(
        self,
        instructions: str,
        text: str,
        *,
        on_usage: Callable[[int, int, float], None],
        deadline: datetime | None = None,
    ) -> list[Issue]:
        """Ask for a review. Raises TaskFailure."""
        prompt = Prompt(instructions, text, _MAX_OUTPUT_TOKENS, max_requests=_MAX_REQUESTS)
        review = await self._model.ask(prompt, ModelReview, on_usage=on_usage, deadline=deadline)
        return [Issue.model_validate(issue.model_dump()) for issue in review.issues]

"""A structured review by a language model, its usage reported."""

from collections.abc import Callable
from decimal import Decimal
from typing import TYPE_CHECKING, Any, Literal

from pydantic import BaseModel, Field

from pantheon.language_model import failure_of, open_model

from .models import Issue, Severity
from .settings import ExaminationSettings

if TYPE_CHECKING:
    from pydantic_ai.models import Model


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
    """The model that the settings name, made at its first use: its libraries are heavy to import."""

    def __init__(self, settings: ExaminationSettings) -> None:
        self.settings = settings
        self._model: Model[Any] | None = None

    async def review(
        self,
        instructions: str,
        prompt: str,
        *,
        on_usage: Callable[[int, int, float], None],
        within_seconds: float | None = None,
    ) -> list[Issue]:
        """Ask for a review. `on_usage` gets input tokens, output tokens and US dollars (0 where the price is unknown).

        Raises TaskFailure: retryable for what passes (rate limits, overload, timeouts, broken connections), not
        retryable for what does not (credentials, an unknown model, a request that the vendor rejects).
        """
        from pydantic_ai import Agent, UsageLimits
        from pydantic_ai.exceptions import AgentRunError, UserError
        from pydantic_ai.settings import ModelSettings
        from pydantic_ai.usage import RunUsage

        own = self.settings
        limit = own.request_timeout_seconds
        how = ModelSettings(
            max_tokens=own.max_output_tokens,
            timeout=own.timeout_seconds,
            request_timeout=limit if within_seconds is None else max(1.0, min(limit, within_seconds)),
            max_retries=own.max_retries,
        )
        limits = UsageLimits(
            request_limit=3,
            total_tokens_limit=own.total_tokens_limit,
            cost_limit=None if own.cost_limit_usd is None else Decimal(str(own.cost_limit_usd)),
        )
        usage = RunUsage()
        try:
            if self._model is None:
                self._model = open_model(own.model, base_url=own.base_url, api_key=own.api_key.get_secret_value())
            model = self._model
            agent = Agent(model, output_type=ModelReview, instructions=instructions, model_settings=how, retries=1)
            # Entered, so that the last request under way closes the connections of a process that may idle for days.
            async with model:
                result = await agent.run(prompt, usage_limits=limits, usage=usage)
        except (AgentRunError, UserError) as error:
            raise failure_of(error) from error
        finally:
            on_usage(usage.input_tokens, usage.output_tokens, float(usage.cost or 0))
        return [Issue.model_validate(issue.model_dump()) for issue in result.output.issues]

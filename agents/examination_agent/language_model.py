"""The seam to language models: a structured review, its usage reported, every vendor's errors mapped."""

from collections.abc import Callable
from decimal import Decimal
from typing import TYPE_CHECKING, Any, Literal

from pydantic import BaseModel, Field

from pantheon import TaskFailure

from .models import Issue, Severity
from .settings import ExaminationSettings

if TYPE_CHECKING:
    from pydantic_ai.models import Model

_MAX_ERROR_CHARACTERS = 500


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
                self._model = open_model(own)
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


def open_model(settings: ExaminationSettings) -> "Model[Any]":
    """Make the model that is configured. Raises TaskFailure `model_misconfigured`, which names the setting."""
    from pydantic_ai.exceptions import UserError
    from pydantic_ai.models import infer_model
    from pydantic_ai.providers import Provider, infer_provider, infer_provider_class

    key = settings.api_key.get_secret_value() or None
    base_url = settings.base_url or None
    vendor, _, name = settings.model.partition(":")

    def provider_of(wanted: str) -> Provider[Any]:
        if key is None and base_url is None:
            return infer_provider(wanted)
        given = {"base_url": base_url, "api_key": key}
        return infer_provider_class(wanted)(**{word: value for word, value in given.items() if value is not None})

    try:
        if vendor in ("openai", "openai-chat") and base_url is not None:
            from pydantic_ai.models.openai import OpenAIChatModel
            from pydantic_ai.providers.openai import OpenAIProvider

            return OpenAIChatModel(name, provider=OpenAIProvider(base_url=base_url, api_key=key))
        return infer_model(settings.model, provider_factory=provider_of)
    except (UserError, ImportError, TypeError, ValueError) as error:
        message = (
            f"the review's model {settings.model} cannot be used: {error}; see LLM_MODEL, LLM_BASE_URL, LLM_API_KEY"
        )
        raise TaskFailure("model_misconfigured", message[:_MAX_ERROR_CHARACTERS], retryable=False) from error


def failure_of(error: Exception) -> TaskFailure:
    """A model library's error as the task's failure."""
    from pydantic_ai import exceptions as ai

    details: dict[str, Any] = {}
    if isinstance(error, ai.ModelHTTPError):
        details["status_code"] = error.status_code
    if isinstance(error, ai.ModelAPIError) and error.retry_after is not None:
        details["retry_after_seconds"] = error.retry_after
    code, retryable = _code_of(error)
    message = " ".join(str(error).split())[:_MAX_ERROR_CHARACTERS]
    if code == "model_unauthorized":
        message = f"the model's vendor refused the key: check LLM_API_KEY or the vendor's own variable ({message})"
    return TaskFailure(code, message, retryable=retryable, details=details)


def _code_of(error: Exception) -> tuple[str, bool]:
    from pydantic_ai import exceptions as ai

    kinds: tuple[tuple[type[Exception], str, bool], ...] = (
        (ai.ModelRateLimitError, "model_rate_limited", True),
        (ai.ModelQuotaExceededError, "model_quota_exceeded", False),
        (ai.ModelTimeoutError, "model_timeout", True),
        (ai.ModelRequestTimeout, "model_timeout", True),
        (ai.ModelConnectionError, "model_unreachable", True),
        (ai.ModelAuthenticationError, "model_unauthorized", False),
        (ai.ModelRequestRejectedError, "model_request_rejected", False),
        (ai.ModelAPIError, "model_unavailable", True),
        (ai.UsageLimitExceeded, "budget_exceeded", False),
        (ai.ContentFilterError, "model_refused", False),
        (ai.UnexpectedModelBehavior, "model_answer_unusable", True),
        (ai.UserError, "model_misconfigured", False),
    )
    return next(((code, again) for kind, code, again in kinds if isinstance(error, kind)), ("model_error", True))

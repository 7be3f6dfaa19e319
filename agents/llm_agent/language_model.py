"""The seam to language models: one call that streams text, reports what it cost, and maps every vendor's errors."""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from decimal import Decimal
from typing import TYPE_CHECKING, Any

from pantheon import TaskFailure

from .settings import LlmSettings

if TYPE_CHECKING:
    from pydantic_ai.models import Model

_PIECES_EVERY_SECONDS = 0.05
"""Pieces of streamed text are gathered for this long: a message a token would be a message a millisecond."""
_MAX_ERROR_CHARACTERS = 500


@dataclass(frozen=True, slots=True)
class Answer:
    """What a model said."""

    text: str
    model: str


class LanguageModel:
    """The model that the settings name, made at its first use: its libraries are heavy to import."""

    def __init__(self, settings: LlmSettings) -> None:
        self.settings = settings
        self._model: Model[Any] | None = None

    async def stream(
        self,
        instructions: str,
        prompt: str,
        on_text: Callable[[str], Awaitable[None]],
        *,
        on_usage: Callable[[int, int, float], None],
        max_output_tokens: int,
        within_seconds: float | None = None,
    ) -> Answer:
        """Ask, and hand over pieces of text as they come.

        `on_usage` gets input tokens, output tokens and US dollars (0 where nobody knows the price), also of an answer
        that broke off.

        Raises TaskFailure: retryable for what passes (rate limits, overload, timeouts, broken connections), not
        retryable for what does not (credentials, an unknown model, a request that the vendor rejects).
        """
        from pydantic_ai import Agent, UsageLimits
        from pydantic_ai.exceptions import AgentRunError, UserError
        from pydantic_ai.settings import ModelSettings

        own = self.settings
        limit = own.request_timeout_seconds
        how = ModelSettings(
            max_tokens=own.max_output_tokens or max_output_tokens,
            timeout=own.timeout_seconds,
            request_timeout=limit if within_seconds is None else max(1.0, min(limit, within_seconds)),
            max_retries=own.max_retries,
        )
        if own.temperature is not None:
            how["temperature"] = own.temperature
        limits = UsageLimits(
            request_limit=2,
            total_tokens_limit=own.total_tokens_limit,
            cost_limit=None if own.cost_limit_usd is None else Decimal(str(own.cost_limit_usd)),
        )
        try:
            model = self._open()
            agent = Agent(model, instructions=instructions, model_settings=how, retries=1)
            # Entered, so that the last request under way closes the connections of a process that may idle for days.
            async with model, agent.run_stream(prompt, usage_limits=limits) as run:
                try:
                    async for piece in run.stream_text(delta=True, debounce_by=_PIECES_EVERY_SECONDS):
                        await on_text(piece)
                    text = str(await run.get_output())
                finally:
                    usage = run.usage
                    on_usage(usage.input_tokens, usage.output_tokens, float(usage.cost or 0))
        except (AgentRunError, UserError) as error:
            raise failure_of(error) from error
        if not text.strip():
            raise TaskFailure("model_answer_unusable", f"{own.model} answered with no text", retryable=True)
        return Answer(text=text, model=own.model)

    def _open(self) -> "Model[Any]":
        if self._model is None:
            self._model = open_model(self.settings)
        return self._model


def open_model(settings: LlmSettings) -> "Model[Any]":
    """Make the model of LLM_MODEL, at LLM_BASE_URL and with LLM_API_KEY where they are set.

    Raises TaskFailure `model_misconfigured`, which names the setting that is wrong.
    """
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
    except UserError as error:
        raise _misconfigured(f"LLM_MODEL={settings.model} cannot be used: {error}") from error
    except ImportError as error:
        raise _misconfigured(f"LLM_MODEL={settings.model} needs a package that is not installed: {error}") from error
    except (TypeError, ValueError) as error:
        raise _misconfigured(
            f"LLM_MODEL={settings.model} cannot be used with these LLM_BASE_URL and LLM_API_KEY: {error}"
        ) from error


def _misconfigured(message: str) -> TaskFailure:
    return TaskFailure("model_misconfigured", message[:_MAX_ERROR_CHARACTERS], retryable=False)


def failure_of(error: Exception) -> TaskFailure:
    """A model library's error as the task's failure."""
    from pydantic_ai import exceptions as ai

    message = " ".join(str(error).split())[:_MAX_ERROR_CHARACTERS]
    details: dict[str, Any] = {}
    if isinstance(error, ai.ModelHTTPError):
        details["status_code"] = error.status_code
    if isinstance(error, ai.ModelAPIError) and error.retry_after is not None:
        details["retry_after_seconds"] = error.retry_after
    match error:
        case ai.ModelRateLimitError():
            return TaskFailure("model_rate_limited", message, retryable=True, details=details)
        case ai.ModelQuotaExceededError():
            said = f"the account's quota or credit with the model's vendor is used up: {message}"
            return TaskFailure("model_quota_exceeded", said, retryable=False, details=details)
        case ai.ModelTimeoutError() | ai.ModelRequestTimeout():
            return TaskFailure("model_timeout", message, retryable=True, details=details)
        case ai.ModelConnectionError():
            return TaskFailure("model_unreachable", message, retryable=True, details=details)
        case ai.ModelAuthenticationError():
            said = f"the model's vendor refused the key: check LLM_API_KEY or the vendor's own variable ({message})"
            return TaskFailure("model_unauthorized", said, retryable=False, details=details)
        case ai.ModelRequestRejectedError():
            return TaskFailure("model_request_rejected", message, retryable=False, details=details)
        case ai.ModelHTTPError() if error.status_code < 500 and error.status_code not in (408, 409, 425, 429):
            return TaskFailure("model_request_rejected", message, retryable=False, details=details)
        case ai.ModelAPIError():
            return TaskFailure("model_unavailable", message, retryable=True, details=details)
        case ai.UsageLimitExceeded():
            return TaskFailure("budget_exceeded", message, retryable=False)
        case ai.ContentFilterError():
            return TaskFailure("model_refused", message, retryable=False)
        case ai.UnexpectedModelBehavior():
            return TaskFailure("model_answer_unusable", message, retryable=True)
        case ai.UserError():
            return TaskFailure("model_misconfigured", message, retryable=False)
        case _:
            return TaskFailure("model_error", message, retryable=True)

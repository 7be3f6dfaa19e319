"""The seam to language models: asks the model that settings name, within their limits, and reports what it cost.

For agents that ask a model by pydantic-ai, whose libraries are heavy: all of them are imported at the first use. Every
vendor's errors become a TaskFailure, retryable for what passes (rate limits, overload, timeouts, broken connections),
not retryable for what does not (credentials, an unknown model, a request that the vendor rejects).
"""

import importlib.util
import re
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from decimal import Decimal
from typing import TYPE_CHECKING, Any, TypeVar

from pydantic import Field, SecretStr

from pantheon.runtime.settings import EnvironmentSettings
from protocol.errors import SettingsError, TaskFailure

if TYPE_CHECKING:
    from pydantic_ai import Agent, UsageLimits
    from pydantic_ai.models import Model
    from pydantic_ai.usage import RunUsage

T = TypeVar("T")
OnUsage = Callable[[int, int, float], None]
"""Called once a run with input tokens, output tokens and US dollars (0 where the price is unknown)."""

_MAX_ERROR_CHARACTERS = 500
_PIECES_EVERY_SECONDS = 0.05
"""Pieces of streamed text are gathered for this long: a message a token would be a message a millisecond."""
_LEAST_REQUEST_SECONDS = 1.0
"""What a request gets at least, however near the task's deadline is: the deadline itself ends the task."""


class LanguageModelSettings(EnvironmentSettings):
    """The model that an agent asks, and the limits of one task. An agent's own class says which variables they are.

    `model` is `<vendor>:<model>`; without it the agent works without a model. `base_url` and `api_key` replace the
    vendor's own variables (OPENAI_API_KEY, ANTHROPIC_API_KEY). With a `base_url`, `openai:` uses the chat completions
    API, which OpenAI-compatible servers have; `openai-responses:` uses the responses API.
    """

    model: str = ""
    base_url: str = ""
    api_key: SecretStr = SecretStr("")
    timeout_seconds: float = Field(default=120.0, gt=0)
    """Of an HTTP attempt: until the response begins, and between two pieces of a streamed response."""
    request_timeout_seconds: float = Field(default=600.0, gt=0)
    """Of a response as a whole, attempts and stream included."""
    max_retries: int = Field(default=1, ge=0, le=10)
    """HTTP attempts beyond the first; the mesh itself retries the task after that."""
    max_output_tokens: int | None = Field(default=None, ge=1)
    """Unset, it follows from the task, as its agent decides."""
    total_tokens_limit: int | None = Field(default=None, ge=1)
    """Of one task; a run that would need more ends with `budget_exceeded`."""
    cost_limit_usd: float | None = Field(default=None, gt=0)
    """Of one task, where the price of the model is known."""


@dataclass(frozen=True, slots=True)
class Prompt:
    """What a model is asked, and what one run of it may use."""

    instructions: str
    text: str
    max_output_tokens: int
    """Where the settings do not set it."""
    max_requests: int = 2
    """Requests of a run: the first, and those that repeat it because a response cannot be used."""
    temperature: float | None = None


def fenced(text: str, tags: str) -> str:
    """`text` unable to open or close one of `tags`, names with spaces between: what stands in a tag is data."""
    pattern = rf"</?(?=(?:{'|'.join(tags.split())})\b)"
    return re.sub(pattern, lambda match: match.group().replace("<", "&lt;"), text, flags=re.IGNORECASE)


class LanguageModel:
    """The model that the settings name, made at its first use. `name` replaces the settings' own."""

    def __init__(self, settings: LanguageModelSettings, *, name: str = "") -> None:
        self.settings = settings
        self.name = name or settings.model
        self._model: Model[Any] | None = None

    async def stream(
        self,
        prompt: Prompt,
        on_text: Callable[[str], Awaitable[None]],
        *,
        on_usage: OnUsage,
        deadline: datetime | None = None,
    ) -> str:
        """Ask for text, and forward its pieces as they come. Raises TaskFailure.

        `on_usage` counts every request that was made, whether the run succeeds, fails or is cancelled.
        """
        async with (
            self._run(prompt, str, on_usage, deadline) as (agent, limits, usage),
            agent.run_stream(prompt.text, usage_limits=limits, usage=usage) as run,
        ):
            async for piece in run.stream_text(delta=True, debounce_by=_PIECES_EVERY_SECONDS):
                await on_text(piece)
            text = str(await run.get_output())
        if not text.strip():
            raise TaskFailure("model_answer_unusable", f"{self.name} answered with no text", retryable=True)
        return text

    async def ask(
        self, prompt: Prompt, output_type: type[T], *, on_usage: OnUsage, deadline: datetime | None = None
    ) -> T:
        """Ask for an output of a type, as a whole. Raises TaskFailure; `on_usage` as for `stream`."""
        async with self._run(prompt, output_type, on_usage, deadline) as (agent, limits, usage):
            result = await agent.run(prompt.text, usage_limits=limits, usage=usage)
        return result.output

    @asynccontextmanager
    async def _run(
        self, prompt: Prompt, output_type: type[T], on_usage: OnUsage, deadline: datetime | None
    ) -> "AsyncIterator[tuple[Agent[None, T], UsageLimits, RunUsage]]":
        """An agent with its limits, and a usage that the run adds each response to; reported at the end in any case."""
        from pydantic_ai import Agent, UsageLimits
        from pydantic_ai.exceptions import AgentRunError, UserError
        from pydantic_ai.settings import ModelSettings
        from pydantic_ai.usage import RunUsage

        own = self.settings
        seconds = own.request_timeout_seconds
        if deadline is not None:
            seconds = min(seconds, max(_LEAST_REQUEST_SECONDS, (deadline - datetime.now(UTC)).total_seconds()))
        how = ModelSettings(
            max_tokens=own.max_output_tokens or prompt.max_output_tokens,
            timeout=own.timeout_seconds,
            request_timeout=seconds,
            max_retries=own.max_retries,
        )
        if prompt.temperature is not None:
            how["temperature"] = prompt.temperature
        limits = UsageLimits(
            request_limit=prompt.max_requests,
            total_tokens_limit=own.total_tokens_limit,
            cost_limit=None if own.cost_limit_usd is None else Decimal(str(own.cost_limit_usd)),
        )
        usage = RunUsage()
        try:
            model = self._open()
            agent = Agent(
                model, output_type=output_type, instructions=prompt.instructions, model_settings=how, retries=1
            )
            # Entered, so that the last request under way closes the connections of a process that may idle for days.
            async with model:
                yield agent, limits, usage
        except (AgentRunError, UserError) as error:
            raise failure_of(error) from error
        finally:
            on_usage(usage.input_tokens, usage.output_tokens, float(usage.cost or 0))

    def _open(self) -> "Model[Any]":
        if self._model is None:
            own = self.settings
            self._model = open_model(self.name, base_url=own.base_url, api_key=own.api_key.get_secret_value())
        return self._model


def require_models(variable: str) -> None:
    """Refuse to start with a model named in `variable` where no vendor's client is installed. Raises SettingsError."""
    if importlib.util.find_spec("pydantic_ai") is None:
        raise SettingsError(
            f"{variable} is set, but no model's client is installed: pip install 'pantheon-mesh[models]', "
            "or build the image with --build-arg EXTRAS=models"
        )


def open_model(name: str, *, base_url: str = "", api_key: str = "") -> "Model[Any]":
    """Make the model `<vendor>:<model>`, at `base_url` and with `api_key` where they are not empty.

    Without them the vendor's own variables hold (OPENAI_API_KEY, ANTHROPIC_API_KEY). With a `base_url`, `openai:`
    speaks the chat completions API, which servers that call themselves OpenAI-compatible have.

    Raises TaskFailure `model_misconfigured`, not retryable, which names the settings to check.
    """
    from pydantic_ai.exceptions import UserError
    from pydantic_ai.models import infer_model
    from pydantic_ai.providers import Provider, infer_provider, infer_provider_class

    vendor, _, model = name.partition(":")
    options = {name: value for name, value in (("base_url", base_url), ("api_key", api_key)) if value}

    def provider_of(provider: str) -> Provider[Any]:
        return infer_provider_class(provider)(**options) if options else infer_provider(provider)

    try:
        if vendor in ("openai", "openai-chat") and base_url:
            from pydantic_ai.models.openai import OpenAIChatModel
            from pydantic_ai.providers.openai import OpenAIProvider

            return OpenAIChatModel(model, provider=OpenAIProvider(base_url=base_url, api_key=api_key or None))
        return infer_model(name, provider_factory=provider_of)
    except ImportError as error:
        raise _misconfigured(
            f"the model {name} needs a package that is not installed: {error}; see LLM_MODEL"
        ) from error
    except (UserError, TypeError, ValueError) as error:
        raise _misconfigured(
            f"the model {name} cannot be used: {error}; see LLM_MODEL, LLM_BASE_URL and LLM_API_KEY"
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
            text = f"the account's quota or credit with the model's vendor is used up: {message}"
            return TaskFailure("model_quota_exceeded", text, retryable=False, details=details)
        case ai.ModelTimeoutError() | ai.ModelRequestTimeout():
            return TaskFailure("model_timeout", message, retryable=True, details=details)
        case ai.ModelConnectionError():
            return TaskFailure("model_unreachable", message, retryable=True, details=details)
        case ai.ModelAuthenticationError():
            text = f"the model's vendor refused the key: check LLM_API_KEY or the vendor's own variable ({message})"
            return TaskFailure("model_unauthorized", text, retryable=False, details=details)
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

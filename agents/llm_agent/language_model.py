"""One call to a language model that streams text and reports what it cost."""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from decimal import Decimal
from typing import TYPE_CHECKING, Any

from pantheon import TaskFailure
from pantheon.language_model import failure_of, open_model

from .settings import LlmSettings

if TYPE_CHECKING:
    from pydantic_ai.models import Model

_PIECES_EVERY_SECONDS = 0.05
"""Pieces of streamed text are gathered for this long: a message a token would be a message a millisecond."""


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

        `on_usage` gets input tokens, output tokens and US dollars (0 where the price is unknown) of every request that
        was made, whether the run succeeds, fails or is cancelled.

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
        # The run adds each response to it, also those that come before a stream is handed over.
        usage = RunUsage()
        try:
            model = self._open()
            agent = Agent(model, instructions=instructions, model_settings=how, retries=1)
            # Entered, so that the last request under way closes the connections of a process that may idle for days.
            async with model, agent.run_stream(prompt, usage_limits=limits, usage=usage) as run:
                async for piece in run.stream_text(delta=True, debounce_by=_PIECES_EVERY_SECONDS):
                    await on_text(piece)
                text = str(await run.get_output())
        except (AgentRunError, UserError) as error:
            raise failure_of(error) from error
        finally:
            on_usage(usage.input_tokens, usage.output_tokens, float(usage.cost or 0))
        if not text.strip():
            raise TaskFailure("model_answer_unusable", f"{own.model} answered with no text", retryable=True)
        return Answer(text=text, model=own.model)

    def _open(self) -> "Model[Any]":
        if self._model is None:
            own = self.settings
            self._model = open_model(own.model, base_url=own.base_url, api_key=own.api_key.get_secret_value())
        return self._model

"""The seam to language models: opens the one that a setting names, and maps every vendor's errors to a task's failure.

For agents that ask a model by pydantic-ai, whose libraries are heavy: all of them are imported at the first use.
"""

import importlib.util
from typing import TYPE_CHECKING, Any

from protocol.errors import SettingsError, TaskFailure

if TYPE_CHECKING:
    from pydantic_ai.models import Model

_MAX_ERROR_CHARACTERS = 500


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
    arguments = {word: value for word, value in (("base_url", base_url), ("api_key", api_key)) if value}

    def provider_of(name: str) -> Provider[Any]:
        return infer_provider_class(name)(**arguments) if arguments else infer_provider(name)

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
            why = f"the account's quota or credit with the model's vendor is used up: {message}"
            return TaskFailure("model_quota_exceeded", why, retryable=False, details=details)
        case ai.ModelTimeoutError() | ai.ModelRequestTimeout():
            return TaskFailure("model_timeout", message, retryable=True, details=details)
        case ai.ModelConnectionError():
            return TaskFailure("model_unreachable", message, retryable=True, details=details)
        case ai.ModelAuthenticationError():
            why = f"the model's vendor refused the key: check LLM_API_KEY or the vendor's own variable ({message})"
            return TaskFailure("model_unauthorized", why, retryable=False, details=details)
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

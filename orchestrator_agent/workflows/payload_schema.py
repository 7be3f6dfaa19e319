"""PayloadSchema: a JSON Schema (draft 2020-12) of a payload, with the defaults of its top level filled in."""

from typing import Any

import jsonschema_rs

from orchestrator_agent.workflows.expression import shown
from protocol.errors import InvalidRequest, InvalidWorkflow


def _refuse_reference(reference: str) -> None:
    """The library would otherwise read the orchestrator's files, and request URLs of its network, for any requester."""
    raise ValueError(f"'{reference}' is outside of the schema, and is not fetched")


class PayloadSchema:
    """A `$ref` points into the schema itself, or to a draft's own.

    Raises InvalidWorkflow for what is no schema; `where` is what the message calls it.
    """

    def __init__(
        self, schema: dict[str, Any], *, where: str = "'input'", field: str = "input", step: str | None = None
    ) -> None:
        self.schema = schema
        try:
            self._validator = jsonschema_rs.validator_for({"type": "object", **schema}, retriever=_refuse_reference)
        except (ValueError, jsonschema_rs.ValidationError) as error:
            reason = shown(" ".join(str(error).split()))
            raise InvalidWorkflow(f"{where} is not a JSON Schema: {reason}", step=step, field=field) from None
        self._defaults = {
            name: field["default"]
            for name, field in schema.get("properties", {}).items()
            if isinstance(field, dict) and "default" in field
        }

    def read(self, payload: dict[str, Any]) -> dict[str, Any]:
        """The payload with defaults. Raises InvalidRequest that names the field."""
        filled = {**self._defaults, **payload}
        error = next(iter(self._validator.iter_errors(filled)), None)
        if error is None:
            return filled
        location = ".".join(["payload", *(str(part) for part in error.instance_path)])
        raise InvalidRequest(f"{location}: {shown(error.message)}", field=location)

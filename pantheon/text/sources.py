"""Source: a text that an article is written from and checked against, as payloads of several agents carry it."""

from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict


class Source(BaseModel):
    """A text to write from. Without a title, its first heading or line serves as one."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    title: str = ""
    text: str
    url: str | None = None


def _source_of_text(value: Any) -> Any:
    return {"text": value} if isinstance(value, str) else value


SourceInput = Annotated[Source, BeforeValidator(_source_of_text, json_schema_input_type=Source | str)]
"""A source, or a plain string standing for its text."""

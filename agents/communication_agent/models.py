"""The payload and the result of `publish_content`."""

import base64
import hashlib
import mimetypes
import re
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, field_validator

_MEDIA_TYPE = re.compile(r"[A-Za-z0-9.+-]+/[A-Za-z0-9.+-]+")

Status = Literal["created", "updated", "unchanged"]


class PublishedFile(BaseModel):
    """A file that goes with the article, as `export_document` returns it."""

    model_config = ConfigDict(frozen=True)

    format: str = ""
    filename: str = Field(min_length=1, max_length=200)
    media_type: str = "application/octet-stream"
    content_base64: str

    @field_validator("content_base64")
    @classmethod
    def _decodes(cls, value: str) -> str:
        try:
            base64.b64decode(value, validate=True)
        except ValueError as error:
            raise ValueError(f"content_base64 is not base64: {error}") from error
        return value

    @property
    def content(self) -> bytes:
        """The file's bytes."""
        return base64.b64decode(self.content_base64)

    @property
    def kind(self) -> str:
        """The media type for a header: the payload's, else by the file's name; never a type that contains others."""
        kind = self.media_type.partition(";")[0].strip()
        if _MEDIA_TYPE.fullmatch(kind) is None:
            kind = mimetypes.guess_type(self.filename)[0] or "application/octet-stream"
        return "application/octet-stream" if kind.startswith(("multipart/", "message/")) else kind

    @property
    def sha256(self) -> str:
        """The digest of the bytes, computed here: what a payload claims is not relied on."""
        return hashlib.sha256(self.content).hexdigest()


class Channel(BaseModel):
    """Where to publish. `key` is an option of every channel, all other fields are options of that channel."""

    model_config = ConfigDict(frozen=True, extra="allow")

    type: str
    key: str | None = Field(default=None, min_length=1, max_length=500)

    @property
    def options(self) -> dict[str, Any]:
        """The channel's own options."""
        return dict(self.model_extra or {})


def _channel_of_name(value: Any) -> Any:
    return {"type": value} if isinstance(value, str) else value


class PublishContent(BaseModel):
    """An article and the channels it goes to; `site` and `{"type": "site"}` are the same."""

    model_config = ConfigDict(frozen=True)

    title: str = Field(min_length=1, max_length=1_000)
    markdown: str = Field(min_length=1)
    html: str = ""
    summary: str = ""
    slug: str = Field(default="", max_length=300)
    date: str | None = None
    author: str = ""
    tags: list[str] = Field(default=[], max_length=100)
    files: list[PublishedFile] = []
    channels: list[Annotated[Channel, BeforeValidator(_channel_of_name, json_schema_input_type=Channel | str)]] = Field(
        min_length=1, max_length=50
    )


class Publication(BaseModel):
    """What a channel did. `url` is where readers find the post, `location` where it is stored without an address."""

    model_config = ConfigDict(frozen=True)

    channel: str
    status: Status
    url: str | None = None
    location: str | None = None
    id: str
    key: str


class PublishedContent(BaseModel):
    """What each channel did, in the order they were asked for."""

    model_config = ConfigDict(frozen=True)

    publications: list[Publication]

"""Articles for the channels' tests."""

import base64
from typing import Any

from agents.communication_agent.models import PublishContent

MARKDOWN = """# The Mesh That Remembers

Work goes on [1] after a crash, & so do <i>we</i>.

```python
print("[1]")
```

<script>alert("raw")</script>

## Sources

1. A paper, <https://x.example/paper>
"""


def attached(
    filename: str = "article.pdf", content: bytes = b"%PDF-1.7 x", media_type: str = "application/pdf"
) -> dict[str, Any]:
    """A file as `export_document` returns it."""
    return {
        "format": filename.rpartition(".")[2],
        "filename": filename,
        "media_type": media_type,
        "size_bytes": len(content),
        "sha256": "not relied on",
        "content_base64": base64.b64encode(content).decode(),
    }


def article(*channels: Any, **fields: Any) -> PublishContent:
    """A request to publish to `channels`."""
    return PublishContent.model_validate(
        {
            "title": "The Mesh That Remembers",
            "markdown": MARKDOWN,
            "summary": "How work survives <crashes> & more.",
            "author": "Ada Lovelace",
            "tags": ["durable execution", "NATS"],
            "files": [attached()],
            "channels": list(channels),
        }
        | fields
    )


async def quiet(percent: float | None = None, message: str = "") -> None:
    """A report that nobody reads."""

"""Names of files that are safe on every system."""

import re
import unicodedata

_RESERVED = re.compile(r"(?i)^(con|prn|aux|nul|com\d|lpt\d)$")
MAX_NAME_CHARACTERS = 80


def safe_basename(name: str, fallback: str = "article") -> str:
    """`name` without folders, extensions of ours, control characters and what Windows or a shell would trip over."""
    plain = unicodedata.normalize("NFKC", name)
    plain = re.sub(r"(?i)\.(html?|docx|pdf|epub|md)$", "", plain.strip())
    plain = re.sub(r"[^\w.-]+", "-", plain)
    plain = re.sub(r"\.{2,}", ".", plain)
    plain = re.sub(r"-{2,}", "-", plain)[:MAX_NAME_CHARACTERS].strip("-._ ")
    return fallback if not plain or _RESERVED.match(plain) else plain

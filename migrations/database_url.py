"""What a database URL may have in it (Postgres manual, 34.1.2 Parameter Key Words), and what asyncpg takes of it.

The client library reads most of what libpq does; the rest it would take for settings of the server, which refuses them.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from urllib.parse import parse_qsl, urlencode, urlsplit

from protocol.errors import StoreError

CONNECT_SECONDS = 10.0
# What concerns libpq alone: it is of no use here, and does no harm.
_IGNORED = frozenset(
    "keepalives keepalives_idle keepalives_interval keepalives_count tcp_user_timeout sslcompression sslsni "
    "load_balance_hosts gssdelegation fallback_application_name min_protocol_version max_protocol_version".split()
)
# What is there to be safer, and cannot be had: for these values, or (None) for any.
_REFUSED: dict[str, tuple[str | None, str]] = {
    "channel_binding": ("require", "remove it, and have sslmode=verify-full for a server that proves who it is"),
    "gssencmode": ("require", "remove it: TLS (sslmode) encrypts the connection"),
    "require_auth": (None, "remove it: which methods a server may ask for is set in its pg_hba.conf"),
    "requirepeer": (None, "remove it"),
    "sslcertmode": ("require", "remove it: sslcert and sslkey are used where the server asks for them"),
}


@dataclass(frozen=True)
class Address:
    """A database URL as asyncpg takes it, and what of it is passed by its side."""

    url: str
    timeout: float = CONNECT_SECONDS
    settings: Mapping[str, str] = field(default_factory=dict)
    ignored: tuple[str, ...] = ()


def read_address(url: str) -> Address:
    """Read a database URL, libpq's or SQLAlchemy's form of it. Raises StoreError for what cannot be had."""
    parts = urlsplit(url.replace("postgresql+asyncpg://", "postgresql://"))
    kept: list[tuple[str, str]] = []
    settings: dict[str, str] = {}
    ignored: list[str] = []
    timeout = CONNECT_SECONDS
    for name, value in parse_qsl(parts.query, keep_blank_values=True):
        if name == "connect_timeout":
            timeout = _seconds(value)
        elif name == "application_name":
            settings[name] = value
        elif name == "client_encoding":
            if value.lower().replace("-", "").replace("_", "") not in ("utf8", "auto", "unicode"):
                raise StoreError(f"DATABASE_URL: client_encoding={value} is not possible: it is always UTF8")
        elif name in _REFUSED:
            refused, hint = _REFUSED[name]
            if refused in (None, value):
                raise StoreError(f"DATABASE_URL: {name}={value} is not possible with this client: {hint}")
            ignored.append(name)
        elif name in _IGNORED:
            ignored.append(name)
        else:
            kept.append((name, value))
    return Address(parts._replace(query=urlencode(kept)).geturl(), timeout, settings, tuple(ignored))


def _seconds(text: str) -> float:
    try:
        seconds = int(text)
    except ValueError:
        raise StoreError(f"DATABASE_URL: connect_timeout={text} is no whole number of seconds") from None
    # As libpq has it: zero or less is without end, and one second is two.
    return 24 * 3600.0 if seconds <= 0 else max(2.0, float(seconds))

"""URLs as settings hold them: shown without their secrets, and those of NATS taken apart."""

import re
from typing import NamedTuple
from urllib.parse import unquote, urlsplit

# What stands before an `@`, up to the last one of a URL: a password that is not percent-encoded may hold one itself.
_CREDENTIALS = re.compile(r"""(?P<scheme>[a-zA-Z][a-zA-Z0-9+.-]*://)(?:(?!,\s*[a-zA-Z][a-zA-Z0-9+.-]*://)[^\s'"])*@""")
# The same without a scheme, as a list of servers may have it.
_BARE_CREDENTIALS = re.compile(r"""(?P<before>^|[\s,'"(=])(?!\w+://)[^\s,'"/@:]+:[^\s'"@]*@""")
_PARAMETERS = re.compile(r"""(?i)(?P<name>\b(?:[a-z_]*password|passwd|pwd|token|secret|[a-z_]*api_?key)=)[^&\s'"]+""")
_NEXT_SERVER = re.compile(r",(?=\s*[a-zA-Z][a-zA-Z0-9+.-]*://)|,(?=[^@]*$)|,(?=[^@,]*,)")


def redact(text: str) -> str:
    """A text without the users, passwords and tokens of the URLs in it, and of parameters named so."""
    text = _CREDENTIALS.sub(r"\g<scheme>***@", text)
    text = _BARE_CREDENTIALS.sub(r"\g<before>***@", text)
    return _PARAMETERS.sub(r"\g<name>***", text)


class NatsServers(NamedTuple):
    """Where to connect, without credentials, and the credentials, decoded; a user alone is a token."""

    urls: tuple[str, ...]
    user: str | None = None
    password: str | None = None

    @property
    def options(self) -> dict[str, str]:
        """Those of the client library."""
        if self.user is None:
            return {}
        return {"token": self.user} if self.password is None else {"user": self.user, "password": self.password}

    def __str__(self) -> str:
        return ",".join(self.urls)


SCHEMES = ("nats", "tls", "ws", "wss")
ENCODE = (
    "in a user or password, / ? # @ : and , are percent-encoded (%2F %3F %23 %40 %3A %2C), or they are in NATS_USER "
    "and NATS_PASSWORD"
)


def split_servers(text: str) -> list[str]:
    """The servers of NATS_URL, as they stand there."""
    return [part.strip() for part in _NEXT_SERVER.split(text) if part.strip()]


def nats_servers(text: str, *, scheme_needed: bool = False) -> NatsServers:
    """Take NATS_URL apart: one or more servers, separated by commas. Raises ValueError, which shows no secret."""
    parts = split_servers(text)
    urls, credentials = [], []
    for number, part in enumerate(parts, start=1):
        where = f"server {number} of {len(parts)}"
        if scheme_needed and urlsplit(part).scheme not in SCHEMES:
            raise ValueError(f"{where}: the scheme must be one of {', '.join(SCHEMES)}")
        url = part if "://" in part else f"nats://{part}"
        try:
            split = urlsplit(url)
            host, port = split.hostname, split.port
        except ValueError:
            raise ValueError(f"{where} is no URL like nats://host:port; {ENCODE}") from None
        # An `@` behind the host, or a comma in front of one: the credentials are cut in the middle.
        if "@" in split.path + split.query + split.fragment or "," in split.netloc or split.netloc.count("@") > 1:
            raise ValueError(f"{where} is no URL like nats://host:port; {ENCODE}")
        if not host:
            raise ValueError(f"{where}: there is no host in it")
        name = f"[{host}]" if ":" in host else host
        urls.append(f"{split.scheme}://{name}{f':{port}' if port is not None else ''}{split.path}")
        user = None if split.username is None else unquote(split.username)
        credentials.append((user, None if split.password is None else unquote(split.password)))
    if not urls:
        raise ValueError("there is no server in it: nats://host:port")
    named = dict.fromkeys(each for each in credentials if each[0] is not None)
    if len(named) > 1:
        raise ValueError("its servers have different credentials: a connection has one user for all of them")
    return NatsServers(tuple(urls), *next(iter(named), (None, None)))

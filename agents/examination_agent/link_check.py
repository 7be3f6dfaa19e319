"""Requests an article's links over HTTP: does what they lead to exist?"""

import asyncio
from collections.abc import Awaitable, Callable, Sequence

import httpx

from .models import Issue, Severity

# Many servers refuse HEAD where GET succeeds.
_RETRY_BY_GET = frozenset({400, 401, 403, 404, 405, 406, 429, 500, 501, 502, 503})
_GONE = frozenset({404, 410})
# The page exists, but not for programs or strangers: no ground to call the link broken.
_GUARDED = frozenset({401, 403, 405, 406, 407, 418, 429, 451, 999})
_USER_AGENT = "pantheon-examination-agent/1.0 (link check)"
_MAX_REDIRECTS = 8


async def check_addresses(
    addresses: Sequence[tuple[str, int]],
    *,
    timeout_seconds: float,
    concurrency: int,
    on_checked: Callable[[int], Awaitable[None]] | None = None,
) -> list[Issue]:
    """An issue for each address that does not respond well, in the order of `addresses`."""
    slots = asyncio.Semaphore(concurrency)
    done = 0
    async with httpx.AsyncClient(
        timeout=timeout_seconds,
        follow_redirects=True,
        max_redirects=_MAX_REDIRECTS,
        headers={"user-agent": _USER_AGENT, "accept": "*/*"},
    ) as client:

        async def check(address: str) -> tuple[Severity, str] | None:
            nonlocal done
            async with slots:
                fault = await _ask(client, address, timeout_seconds)
            done += 1
            if on_checked is not None:
                await on_checked(done)
            return fault

        async with asyncio.TaskGroup() as group:
            checks = [group.create_task(check(address), name=f"link {address}") for address, _ in addresses]
    return [
        Issue(
            kind="link",
            severity=fault[0],
            line=line,
            excerpt=address,
            message=fault[1],
            suggestion="Link to what exists, or take the link out." if fault[0] != "low" else "Check it again later.",
        )
        for (address, line), task in zip(addresses, checks, strict=True)
        if (fault := task.result()) is not None
    ]


async def _ask(client: httpx.AsyncClient, address: str, timeout_seconds: float) -> tuple[Severity, str] | None:
    try:
        # httpx bounds each read; a server that drips bytes is bounded by this.
        async with asyncio.timeout(3 * timeout_seconds):
            status = (await client.head(address)).status_code
            if status in _RETRY_BY_GET:
                async with client.stream("GET", address) as response:
                    status = response.status_code
    except (httpx.TimeoutException, TimeoutError):
        return "low", f"no answer within {timeout_seconds:g} seconds"
    except httpx.TooManyRedirects:
        return "medium", f"redirected more than {_MAX_REDIRECTS} times"
    except httpx.ConnectError as error:
        return "medium", f"nothing answers there: {error}"
    except (httpx.HTTPError, httpx.InvalidURL, ValueError) as error:
        return "medium", f"it cannot be fetched: {error or type(error).__name__}"
    if status in _GONE:
        return "medium", f"the server says that there is no such page (HTTP {status})"
    if status >= 500:
        return "low", f"the server fails (HTTP {status})"
    if status >= 400 and status not in _GUARDED:
        return "medium", f"the server refuses (HTTP {status})"
    return None

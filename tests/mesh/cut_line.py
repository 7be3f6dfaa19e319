"""A line to Postgres, or to the broker, that can stop carrying replies, be cut, and stay cut."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from urllib.parse import urlsplit
from uuid import UUID

_CHUNK_BYTES = 64 * 1024
# What a client says first when it runs a statement that is prepared.
_BIND = b"B"


class CutLine:
    """Carries connections to a server on loopback. `mute` holds back the reply to a statement of Postgres's, `cut` ends
    every connection, `refuse` lets no new one through either until `restore`."""

    def __init__(self, url: str) -> None:
        self._split = urlsplit(url)
        self._server: asyncio.Server | None = None
        self._writers: set[asyncio.StreamWriter] = set()
        self._about: bytes | None = None
        self._port = 0
        self._carriers: set[asyncio.Task[None]] = set()

    @property
    def url(self) -> str:
        user = self._split.netloc.rpartition("@")[0]
        return self._split._replace(
            netloc=f"{user}@127.0.0.1:{self._port}" if user else f"127.0.0.1:{self._port}"
        ).geturl()

    def mute(self, about: UUID) -> None:
        """From now on a connection that runs a statement with this id among its arguments receives nothing more."""
        self._about = about.bytes

    def cut(self) -> None:
        """End every connection, with the replies that were held back; new ones are carried as usual."""
        self._about = None
        for writer in list(self._writers):
            writer.transport.abort()

    def refuse(self) -> None:
        """End every connection, and refuse new ones."""
        assert self._server is not None
        self._server.close()
        self.cut()

    async def restore(self) -> None:
        """Carry connections again, at the same address."""
        self._server = await asyncio.start_server(self._carry, "127.0.0.1", self._port)

    async def _carry(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._carriers.add(task)
        task.add_done_callback(self._carriers.discard)
        from_server, to_server = await asyncio.open_connection(
            self._split.hostname or "localhost", self._split.port or 5432
        )
        self._writers |= {writer, to_server}
        muted = False

        async def questions() -> None:
            nonlocal muted
            while data := await reader.read(_CHUNK_BYTES):
                muted = muted or (self._about is not None and data[:1] == _BIND and self._about in data)
                to_server.write(data)
                await to_server.drain()
            to_server.close()

        async def responses() -> None:
            while data := await from_server.read(_CHUNK_BYTES):
                if not muted:
                    writer.write(data)
                    await writer.drain()
            writer.close()

        try:
            with suppress(OSError):
                await asyncio.gather(questions(), responses())
        finally:
            for end in (writer, to_server):
                self._writers.discard(end)
                end.close()

    @asynccontextmanager
    async def listening(self) -> AsyncIterator["CutLine"]:
        self._server = await asyncio.start_server(self._carry, "127.0.0.1", 0)
        self._port = self._server.sockets[0].getsockname()[1]
        try:
            yield self
        finally:
            self._server.close()
            self.cut()
            if self._carriers:
                await asyncio.wait(self._carriers)
            # Aborted transports close in the loop's next iteration.
            await asyncio.sleep(0)

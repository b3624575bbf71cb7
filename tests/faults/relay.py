"""A relay between a node and its coordinator, which can be cut, forget connections, slow down, or pose as another."""

from __future__ import annotations

import asyncio
import ssl
import threading
from contextlib import suppress
from pathlib import Path
from typing import Any, Literal

Mode = Literal["pass", "cut", "pose"]
CHUNK = 65536


class Relay:
    """Listens on a port of the loopback and hands bytes on; use it as a context manager.

    Attributes:
        port: that it listens on.
        target: port of the loopback that bytes are handed on to.
        mode: ``pass``; ``cut``: not a byte gets through, and nobody is told; ``pose``: ends TLS itself.
        posing: certificate and key that it poses with.
        delay_s: before each piece of at most 64 KiB.
        detour: a socket file by which new connections reach the coordinator; None is straight.
        served: connections that were begun.
    """

    def __init__(self, target: int) -> None:
        self.port = 0
        self.mode: Mode = "pass"
        self.posing: ssl.SSLContext | None = None
        self.delay_s = 0.0
        self.detour: Path | None = None
        self.served = 0
        self.target = target
        self._forgotten: set[int] = set()
        self._writers: list[asyncio.StreamWriter] = []
        self._loop = asyncio.new_event_loop()
        self._ready = threading.Event()
        self._thread = threading.Thread(target=self._serve, daemon=True)

    def forget(self) -> None:
        """Let no byte of the connections of now through any more, and tell nobody: a firewall that lost its table."""
        self._forgotten = set(range(self.served))

    def reset(self) -> None:
        """Break all connections."""
        for writer in list(self._writers):
            self._loop.call_soon_threadsafe(writer.transport.abort)

    def __enter__(self) -> Relay:
        self._thread.start()
        assert self._ready.wait(30)
        return self

    def __exit__(self, *_: object) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(30)

    def _serve(self) -> None:
        asyncio.set_event_loop(self._loop)
        server = self._loop.run_until_complete(asyncio.start_server(self._take, "127.0.0.1", 0))
        self.port = server.sockets[0].getsockname()[1]
        self._ready.set()
        self._loop.run_forever()
        server.close()
        tasks = asyncio.all_tasks(self._loop)
        for task in tasks:
            task.cancel()
        self._loop.run_until_complete(asyncio.gather(*tasks, return_exceptions=True))
        for writer in self._writers:
            writer.transport.abort()
        self._loop.run_until_complete(asyncio.sleep(0))
        self._loop.close()

    async def _take(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        number, self.served = self.served, self.served + 1
        self._writers.append(writer)
        if self.mode == "pose":
            with suppress(OSError, asyncio.IncompleteReadError):
                await writer.start_tls(self.posing)  # type: ignore[arg-type]
                await reader.read()
            writer.close()
            return
        try:
            far_reader, far_writer = await (
                asyncio.open_connection("127.0.0.1", self.target)
                if self.detour is None
                else asyncio.open_unix_connection(self.detour)
            )
        except OSError:
            writer.close()
            return
        self._writers.append(far_writer)
        with suppress(asyncio.CancelledError):  # the relay ends
            await asyncio.gather(self._hand_on(number, reader, far_writer), self._hand_on(number, far_reader, writer))

    async def _hand_on(self, number: int, reader: asyncio.StreamReader, writer: Any) -> None:
        with suppress(OSError):
            while piece := await reader.read(CHUNK):
                await asyncio.sleep(self.delay_s)
                while self.mode == "cut" or number in self._forgotten:
                    await asyncio.sleep(0.1)
                writer.write(piece)
                await writer.drain()
        writer.close()

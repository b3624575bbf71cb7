"""Carries connections between a port of the loopback and a socket file: a program without a network reaches one so.

Usage: ``python -m client.relay FROM TO [-- PROGRAM …]``; each end is ``host:port`` or the path of a socket file. With a
program, it is run beside the relay, and the relay ends when it does.
"""

from __future__ import annotations

from common.supervisor import SUPERVISOR, end_with_parent

if __name__ == "__main__":
    end_with_parent()  # before anything takes time

import asyncio
import os
import sys
from collections.abc import Sequence
from contextlib import suppress

from client.own_socket import listen_at

CHUNK_BYTES = 1 << 16
Streams = tuple[asyncio.StreamReader, asyncio.StreamWriter]


def is_port(end: str) -> bool:
    """Whether one end of a relay is ``host:port``, not a file."""
    return "/" not in end and end.rpartition(":")[2].isdigit()


async def listen(here: str, there: str) -> asyncio.Server:
    """Accept connections at one end, and carry each to the other.

    Args:
        here: is listened on; a socket file is made anew, for its owner only.
        there: is called once for each connection; where nobody answers, that connection is closed.
    """

    async def carry(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            far = await _call(there)
        except OSError:
            writer.close()
            return
        await asyncio.gather(_pour(reader, far[1]), _pour(far[0], writer))
        far[1].close()
        writer.close()

    if is_port(here):
        host, _, port = here.rpartition(":")
        return await asyncio.start_server(carry, host, int(port))
    return await listen_at(here, carry)


async def run(here: str, there: str, program: Sequence[str]) -> int:
    """Relay for as long as a program runs, or for ever; the status is the program's."""
    async with await listen(here, there) as server:
        if not program:
            await server.serve_forever()
        child = await asyncio.create_subprocess_exec(*program, env={**os.environ, SUPERVISOR: str(os.getpid())})
        return await child.wait()


async def _call(there: str) -> Streams:
    if is_port(there):
        host, _, port = there.rpartition(":")
        return await asyncio.open_connection(host, int(port))
    return await asyncio.open_unix_connection(there)


async def _pour(source: asyncio.StreamReader, sink: asyncio.StreamWriter) -> None:
    """Carry one direction to its end; an end that breaks off ends the other too."""
    with suppress(OSError):
        while data := await source.read(CHUNK_BYTES):
            sink.write(data)
            await sink.drain()
        if sink.can_write_eof():
            sink.write_eof()
            return
    sink.close()


def main(arguments: Sequence[str]) -> int:
    """Relay until this process is ended, or its program ends."""
    here, there, *rest = arguments
    return abs(asyncio.run(run(here, there, rest[1:])))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

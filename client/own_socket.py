"""A socket file that only its owner can reach."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Awaitable, Callable
from pathlib import Path

Serving = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


async def listen_at(path: str, serving: Serving) -> asyncio.Server:
    """Listen at a socket file, which is made anew, for its owner only.

    Args:
        path: of the file; short, as sockets have it.
        serving: is run for each connection.
    """
    Path(path).unlink(missing_ok=True)
    before = os.umask(0o177)
    try:
        return await asyncio.start_unix_server(serving, path)
    finally:
        os.umask(before)

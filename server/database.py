"""How long the SuperLink's requests wait for its database while one of them writes.

Flower waits 5 s, then answers the others with an error, which ends a server app, and with it the run of everybody. One
transaction notes all objects of a message, a millisecond each and more on a busy machine.
"""

from __future__ import annotations

from types import ModuleType

from flwr.supercore import sql_mixin

BUSY_MS = 25_000  # less than the 30 s after which Flower's clients ask a second time


def wait_longer(module: ModuleType = sql_mixin) -> None:
    """Have connections that are made from now on wait for others that write (flwr is pinned for it)."""
    settings = dict(module.SQLITE_PRAGMAS)
    if "busy_timeout" not in settings:
        raise RuntimeError("expected flwr 1.39, whose databases have a busy_timeout; install the release's own")
    module.SQLITE_PRAGMAS = tuple({**settings, "busy_timeout": str(BUSY_MS)}.items())  # type: ignore[attr-defined]

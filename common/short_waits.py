"""Flower's wait for the parts of a message that are still on their way, begun shorter (flwr is pinned for it).

A message is announced before its parts are there. Who finds one missing waits a second, then two: the node's app, the
SuperNode and the server app one after the other, though the parts come within milliseconds.
"""

from __future__ import annotations

from flwr.supercore.inflatable import inflatable_utils

FIRST_WAIT_S = 0.02
PULLS = ("pull_objects", "pull_and_inflate_object_from_tree")


def wait_less() -> None:
    """Begin with ``FIRST_WAIT_S`` in this process and its forks; Flower still doubles each wait, up to ten seconds."""
    for name in PULLS:
        defaults = getattr(inflatable_utils, name).__kwdefaults__
        if "initial_backoff" not in defaults:
            raise RuntimeError(f"expected flwr 1.39, whose {name} has an initial backoff")
        defaults["initial_backoff"] = FIRST_WAIT_S

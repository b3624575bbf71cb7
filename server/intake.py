"""Takes one node's reply out of Flower's grid, whatever is in it: bounded in size and time, and in its sender's name.

Flower's own grid reads all objects of a reply into memory, puts them together by code that expects honest ones, and
believes what the reply says about its sender. Here the size of a reply is known before it is put together, what
cannot be put together is one node's failure, and a reply counts for the node that was asked.
"""

from __future__ import annotations

import importlib
import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import httpx
from flwr.app import ArrayRecord, Message
from flwr.serverapp import Grid
from flwr.supercore.inflatable.inflatable_utils import ObjectPullError

from common.errors import ProtocolError
from common.message_objects import message_from_objects

SLACK_BYTES = 1 << 20
"""What a reply may have beside its numbers."""
SHORTEST_S = 5.0
log = logging.getLogger("fedgraft.server")


def take(grid: Grid, asked: Message, message_id: str, most_bytes: int, timeout_s: float) -> Message | None:
    """The reply to a message, if it is there; a SuperLink that cannot say is asked again, as long as the round lasts.

    Args:
        grid: Flower's.
        asked: the message that was sent.
        message_id: by which the grid knows it.
        most_bytes: of the reply.
        timeout_s: that a reply whose first part is there is waited for.

    Raises:
        ProtocolError: the reply is too large, incomplete, or no message.
    """
    try:
        with _guarded(most_bytes, max(timeout_s, SHORTEST_S)) as refused:
            found = list(grid.pull_messages([message_id]))
    except httpx.HTTPStatusError as error:
        if not error.response.is_server_error:
            raise
        log.warning("the SuperLink could not say whether a reply is there (%d)", error.response.status_code)
        return None
    if refused:
        raise refused[0]
    if not found:
        return None
    reply = found[0]
    if not reply.has_error() and _bytes_of(reply) > most_bytes:
        raise _too_large(most_bytes)
    reply.metadata.__dict__["_src_node_id"] = asked.metadata.dst_node_id
    reply.metadata.__dict__["_reply_to_message_id"] = message_id
    return reply


def _too_large(most_bytes: int) -> ProtocolError:
    return ProtocolError(f"expected a reply of at most {most_bytes} bytes, got a larger one; look at that node")


def _bytes_of(message: Message) -> int:
    """Of its arrays, for grids that hand over what they have put together themselves."""
    records = message.content.values()
    return sum(len(array.data) for record in records if isinstance(record, ArrayRecord) for array in record.values())


@contextmanager
def _guarded(most_bytes: int, timeout_s: float) -> Iterator[list[ProtocolError]]:
    """Put our own reading of objects into Flower's grid (flwr is pinned for it) for one reply."""
    refused: list[ProtocolError] = []
    made: dict[str, Message] = {}
    # imported where real nodes are asked: with it comes what a SuperLink's database needs, most of a second
    http_grid: Any = importlib.import_module("flwr.superlink.grid.http_grid")
    pull, inflate = http_grid.pull_objects, http_grid.inflate_object_from_contents

    def pull_some(object_ids: list[str], pull_object_fn: Callable[[str], bytes]) -> dict[str, bytes]:
        taken = 0

        def pull_one(object_id: str) -> bytes:
            nonlocal taken
            content = pull_object_fn(object_id)
            taken += len(content)
            if taken > most_bytes + SLACK_BYTES:
                refused.append(_too_large(most_bytes))
                raise ObjectPullError(object_id, "too many bytes")
            return content

        root = object_ids[-1]  # a tree is walked from its leaves
        try:
            contents = pull(list(dict.fromkeys(object_ids)), pull_one, max_time=timeout_s)
            made[root] = message_from_objects(root, contents, most_bytes + SLACK_BYTES)
        except ProtocolError as error:
            refused.append(error)
            raise ObjectPullError(root, "not a message") from error
        return {}

    def inflate_made(object_id: str, _: Any) -> Message:
        return made.pop(object_id)

    http_grid.pull_objects, http_grid.inflate_object_from_contents = pull_some, inflate_made
    try:
        yield refused
    except (ValueError, TypeError, KeyError, AttributeError, AssertionError) as error:
        # Flower's code, on what a hostile node wrote; a lost connection raises other errors
        refused.append(ProtocolError("expected a reply of Flower's, got something that it cannot read; refuse it"))
        refused[-1].__cause__ = error
    finally:
        http_grid.pull_objects, http_grid.inflate_object_from_contents = pull, inflate

"""What a node that lies puts in the place of its answer; the copied sources hold it as ``common/hostile.py``.

The orders are armed for the step ``before-send``: ``nan``, ``shape``, ``huge`` (10 GB, in pieces), and
``twice`` (the honest answer, two times).
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from functools import partial
from threading import Thread
from typing import Any

import numpy as np
from flwr.app import Array, ArrayRecord, Message, RecordDict
from flwr.app.message import make_message
from flwr.app.message.arraychunk import ArrayChunk
from flwr.proto.message_pb2 import ObjectTree
from flwr.supercore.inflatable.inflatable_object import (
    get_all_nested_objects,
    get_object_id,
    get_object_tree,
    no_object_id_recompute,
)

SEND, PUSH = 2, 6  # their places among what Flower's connection gives
PIECE_BYTES = 10 << 20
PIECES = 1000

Send = Callable[[Message, ObjectTree, float], tuple[set[str], str]]


def sending(given: list[Any], reached: Callable[[str], str]) -> Send:
    """Flower's way to send an answer, or another one where that is armed.

    Args:
        given: what Flower's connection gives.
        reached: of the copy's steps.
    """
    send, push = given[SEND], given[PUSH]

    def sent(message: Message, tree: ObjectTree, runtime: float) -> tuple[set[str], str]:
        order = reached("before-send")
        if order in ("nan", "shape"):
            changed = _changed(message, np.nan if order == "nan" else 0.0, extra=order == "shape")
            with no_object_id_recompute():
                changed.metadata.__dict__["_message_id"] = changed.object_id
                objects = get_all_nested_objects(changed)
                wanted, session = send(changed, get_object_tree(changed), runtime)
            for name in wanted:
                push(message.metadata.run_id, session, name, objects[name].deflate())
            return set(), session
        if order == "huge":
            tree.children.extend(ObjectTree(object_id=get_object_id(_piece(number))) for number in range(PIECES))
        wanted, session = send(message, tree, runtime)
        if order == "twice":
            wanted, session = send(message, tree, runtime)  # as when the first one's answer was lost
        if order == "huge":
            run_id = message.metadata.run_id
            Thread(target=lambda: _push_pieces(partial(push, run_id, session)), daemon=True).start()
        return wanted, session

    return sent


def _changed(message: Message, value: float, *, extra: bool) -> Message:
    """The answer with another value in each place, or with a row more in each array."""
    content = RecordDict()
    for name, record in message.content.items():
        if isinstance(record, ArrayRecord):
            arrays = {key: array.numpy() * 0 + np.float32(value) for key, array in record.items()}
            record = ArrayRecord(
                {key: Array(np.concatenate([one, one[:1]]) if extra else one) for key, one in arrays.items()}
            )
        content[name] = record
    return make_message(metadata=message.metadata, content=content)


def _push_pieces(push: Callable[[str, bytes], None]) -> None:
    for piece in map(_piece, range(PIECES)):
        with suppress(Exception):  # it is refused, and goes on
            push(get_object_id(piece), piece)


def _piece(number: int) -> bytes:
    data = bytearray(PIECE_BYTES)
    data[:8] = number.to_bytes(8, "big")
    return bytes(ArrayChunk(memoryview(data)).deflate())

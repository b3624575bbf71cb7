"""The SuperNode's side of the egress gate: what an app wrote is read, checked, and written anew.

An app runs in a process of its own; a broken one could put anything into a message. The SuperNode, which alone holds
the connection, remembers each question of the server, reads the app's answer, lets ``client.last_look`` judge it, and
sends a message that it made itself from what was permitted: not a byte that the app wrote is passed on, neither of
content nor of metadata, nor how long the app took.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from flwr.app import Error, Message
from flwr.common.constant import ErrorCode
from flwr.proto.message_pb2 import ObjectTree
from flwr.supercore.inflatable.inflatable_object import (
    get_all_nested_objects,
    get_object_tree,
    iterate_object_tree,
    no_object_id_recompute,
)
from flwr.supercore.inflatable.inflatable_utils import push_objects
from flwr.supercore.object_store import ObjectStore

from client import egress
from client.last_look import Speaker, permitted
from client.node_config import load_node_config
from common import wire
from common.errors import PrivacyError, ProtocolError
from common.message_objects import message_from_objects

WAIT_S = 600.0
POLL_S = 0.02
MOST_QUESTIONS = 16
"""Open ones; a node has one of each run at a time, and those that the server no longer waits for."""
SLACK_BYTES = 1 << 20
"""By how much the objects of an answer may pass twice those of its question, or this many bytes alone.

A masked vector has 8 bytes for each number of the head that came with its question, in which that has 4.
"""

Send = Callable[[Message, ObjectTree, float], tuple[set[str], str]]
PushObject = Callable[[int, str, str, bytes], None]
log = logging.getLogger("fedgraft.node")


class Gateway:
    """Between Flower's loop and its connection.

    Args:
        folder: of the node, whose ``node.toml`` says who it is.
        wait_s: for an app to hand over all of its answer.
    """

    def __init__(self, folder: Path, wait_s: float = WAIT_S) -> None:
        self._folder = folder
        self._wait_s = wait_s
        self._questions: dict[str, tuple[Message, dict[str, bytes]]] = {}

    def remembering(
        self, receive: Callable[[], tuple[Message, ObjectTree] | None], pull: Callable[[int, str], bytes], store: Any
    ) -> tuple[Callable[[], tuple[Message, ObjectTree] | None], Callable[[int, str], bytes]]:
        """Flower's ways to a message and to its objects, keeping a copy of both until it is answered."""
        contents: dict[str, bytes] = {}

        def received() -> tuple[Message, ObjectTree] | None:
            came = receive()
            if came is not None:
                message, tree = came
                known = ((part.object_id, store.get(part.object_id)) for part in iterate_object_tree(tree))
                contents.update({object_id: content for object_id, content in known if content})
                self._questions[message.metadata.message_id] = (message, contents)
                for oldest in list(self._questions)[:-MOST_QUESTIONS]:
                    del self._questions[oldest]
            return came

        def pulled(run_id: int, object_id: str) -> bytes:
            content = pull(run_id, object_id)
            contents[object_id] = content
            return content

        return received, pulled

    def checked(self, send: Send, push: PushObject, store: ObjectStore) -> Send:
        """Flower's way to send an answer; what it returns is that no object of the app's is wanted."""

        def sent(answer: Message, tree: ObjectTree, _: float) -> tuple[set[str], str]:
            question, contents = self._questions.pop(answer.metadata.reply_to_message_id, (None, {}))
            if question is None:
                raise ProtocolError("expected an answer to a message of the server, got another; it was not sent")
            out = self._made_anew(question, contents, answer, tree, store)
            with no_object_id_recompute():
                out.metadata.__dict__["_message_id"] = out.object_id
                objects = get_all_nested_objects(out)
                wanted, session = send(out, get_object_tree(out), 0.0)
                run_id = question.metadata.run_id
                push_objects(
                    objects,
                    lambda object_id, content: push(run_id, session, object_id, content),
                    object_ids_to_push=wanted,
                )
            return set(), session

        return sent

    def _made_anew(
        self, question: Message, contents: dict[str, bytes], answer: Message, tree: ObjectTree, store: ObjectStore
    ) -> Message:
        if answer.has_error():
            known = answer.error.code if answer.error.code in wire.FLOWERS else ErrorCode.CLIENT_APP_RAISED_EXCEPTION
            return Message(Error(known, "the node's own log says why"), reply_to=question)
        try:
            size = sum(len(content) for content in contents.values())
            asked = message_from_objects(question.metadata.message_id, contents, math.inf)
            most = 2 * size + SLACK_BYTES
            came = message_from_objects(tree.object_id, self._contents(tree, store, most), most)
            config = load_node_config(self._folder)
            speaker = Speaker(config.node.name, config.data.declared_size)
            return wire.encode_reply(permitted(wire.decode_reply(came, wire.read_values), asked, speaker), question)
        except (PrivacyError, ProtocolError) as error:
            log.error("an answer of the app was kept back: %s", error)
        except Exception as error:  # its text could hold what the app wrote
            log.error("an answer of the app was kept back: it cannot be read (%s)", type(error).__name__)
        return wire.encode_reply(egress.refuse(RuntimeError()), question)

    def _contents(self, tree: ObjectTree, store: ObjectStore, most_bytes: int) -> dict[str, bytes]:
        """The objects of an answer, when the app has handed over all of them."""
        deadline, total = time.monotonic() + self._wait_s, 0
        found: dict[str, bytes] = {}
        for object_id in dict.fromkeys(part.object_id for part in iterate_object_tree(tree)):
            while not (content := store.get(object_id)):
                if time.monotonic() > deadline:
                    raise ProtocolError("expected the whole of an answer from the app, got a part; it was not sent")
                time.sleep(POLL_S)
            total += len(content)
            if total > most_bytes:
                raise PrivacyError(f"expected an answer of at most {most_bytes} bytes, got more; nothing was released")
            found[object_id] = content
        return found

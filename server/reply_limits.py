"""What the coordinator's SuperLink takes from a node at most, before anything of it is stored.

Flower's own limit is 2 GB an object, and any number of objects. Honest messages come in objects of 5 MB.
"""

from __future__ import annotations

from collections import OrderedDict
from types import ModuleType
from typing import Any

from flwr.proto.message_pb2 import ObjectTree, PushObjectResponse
from flwr.server.superlink.fleet.message_handler import message_handler
from flwr.supercore.inflatable.inflatable_object import iterate_object_tree

MOST_OBJECT_BYTES = 16 << 20
MOST_REPLY_BYTES = 1 << 30
MOST_OBJECTS = 2_000  # a head of 900 tensors; nobody else's request is answered while Flower notes them, 1 ms each
MOST_OPEN = 10_000


class Limits:
    """Counts what each reply brings.

    Args:
        most_bytes: of all objects of a reply.
        most_objects: that a reply may announce.
    """

    def __init__(self, most_bytes: int = MOST_REPLY_BYTES, most_objects: int = MOST_OBJECTS) -> None:
        self._most_bytes, self._most_objects = most_bytes, most_objects
        self._came: OrderedDict[str, int] = OrderedDict()

    def announce(self, tree: ObjectTree) -> None:
        """Refuse a reply of too many objects.

        Raises:
            ValueError: Flower answers with an error to that node, and stores nothing.
        """
        for number, _ in enumerate(iterate_object_tree(tree), start=1):
            if number > self._most_objects:
                raise ValueError(f"expected a reply of at most {self._most_objects} objects, got more")

    def fits(self, session: str, size: int) -> bool:
        """Count an object of the reply that a session brings; False where it is too much."""
        self._came[session] = self._came.pop(session, 0) + size
        while len(self._came) > MOST_OPEN:
            self._came.popitem(last=False)
        return self._came[session] <= self._most_bytes


def put_in(limits: Limits, handler: ModuleType = message_handler) -> None:
    """Put limits into Flower's handlers of what nodes send (flwr is pinned for it)."""
    push_messages, push_object = handler.push_messages, handler.push_object

    def announced(request: Any, state: Any) -> Any:
        for tree in request.message_object_trees:
            limits.announce(tree)
        return push_messages(request=request, state=state)

    def counted(request: Any, state: Any) -> Any:
        if not limits.fits(request.session_id, len(request.object_content)):
            return PushObjectResponse(stored=False)
        return push_object(request=request, state=state)

    handler.push_messages, handler.push_object = announced, counted  # type: ignore[attr-defined]

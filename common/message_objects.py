"""From the objects that Flower sends a message in to the message, for objects that somebody hostile may have made.

Flower cuts a message into objects named by their SHA-256. An object may be named many times, so a few megabytes can
stand for any number of them: the size of a message is worked out before it is put together.
"""

from __future__ import annotations

import json
from collections.abc import Mapping

from flwr.app import Array, ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from flwr.supercore.inflatable.inflatable_object import (
    get_object_body,
    get_object_head_values_from_object_content,
    get_object_id,
)
from flwr.supercore.inflatable.inflatable_utils import inflate_object_from_contents

from common.errors import ProtocolError

_RECORDS = tuple(kind.__qualname__ for kind in (ArrayRecord, ConfigRecord, MetricRecord))


def message_from_objects(object_id: str, contents: Mapping[str, bytes], most_bytes: float) -> Message:
    """Put a message together from its objects.

    Args:
        object_id: of the message.
        contents: every object that it needs, by name.
        most_bytes: of all objects, each counted as often as it is named.

    Raises:
        ProtocolError: it is larger, or is no message.
    """
    try:
        if any(get_object_id(content) != name for name, content in contents.items()):
            raise ValueError("misnamed")
        size = _size(Message.__qualname__, object_id, contents)
        if size > most_bytes:
            raise ProtocolError(f"expected a message of at most {most_bytes:.0f} bytes, got one of {size}; refuse it")
        message = inflate_object_from_contents(object_id, dict(contents))
    except ProtocolError:
        raise
    except Exception as error:  # Flower's own code does not expect hostile bytes
        raise ProtocolError("expected a message of Flower's, got objects that make none; refuse it") from error
    if not isinstance(message, Message):
        raise ProtocolError("expected a message, got another object; refuse it")
    return message


def _size(kind: str, object_id: str, contents: Mapping[str, bytes]) -> int:
    """Bytes of an object and of all below it, each as often as it is named."""
    content = contents[object_id]
    found, children, _ = get_object_head_values_from_object_content(content)
    if found != kind:
        raise ValueError("an object of another kind")
    if kind == Message.__qualname__:
        return len(content) + sum(_size(RecordDict.__qualname__, child, contents) for child in children)
    if kind == RecordDict.__qualname__:
        named = json.loads(get_object_body(content, RecordDict)).values()
        return len(content) + sum(_size(_kind(child, contents), child, contents) for child in named)
    if kind == ArrayRecord.__qualname__:
        named = list(json.loads(get_object_body(content, ArrayRecord)).values())
        sizes = {child: _size(Array.__qualname__, child, contents) for child in set(named)}
        return len(content) + sum(sizes[child] for child in named)
    if kind == Array.__qualname__:
        places = json.loads(get_object_body(content, Array))["arraychunk_ids"]
        return len(content) + sum(len(contents[children[place]]) for place in places)
    return len(content)


def _kind(object_id: str, contents: Mapping[str, bytes]) -> str:
    found = get_object_head_values_from_object_content(contents[object_id])[0]
    if found not in _RECORDS:
        raise ValueError("no record")
    return found

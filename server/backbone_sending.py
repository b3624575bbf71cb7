"""Sends a backbone's package, once, to nodes whose operators approved its digest and have no copy.

Between rounds, to all such nodes at a time, a piece each; how much a node has, it says itself, so that nothing is sent
twice after an interruption of either side. A node that has all of it is offered the run again, and joins the next
round.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Mapping
from pathlib import Path

from common.backbones.parcel import Parcel, Part
from common.errors import ConfigError
from common.messages import Holding, Offer, Reason, Refusal, Reply
from server.checkpoints import read_lines
from server.link import Link

SENT = "backbone-sent.jsonl"


def send_backbone(link: Link, parcel: Parcel, folder: Path, timeout_s: float | None) -> None:
    """Send a package to every node that lacks it, for some time; what is left goes on at the next call.

    Args:
        link: whose ``lacking`` nodes are served; those that have all are asked again by its next ``offer``.
        parcel: the run's backbone.
        folder: of the run, where the bytes are counted.
        timeout_s: after which no new piece is sent; None sends everything.

    Raises:
        ConfigError: a file of the package cannot be read, or the count cannot be written.
    """
    began = time.monotonic()
    parts = dict.fromkeys(link.lacking(), Part(parcel.contents, 0, b""))  # asks how far each is
    while parts and (timeout_s is None or time.monotonic() - began < timeout_s):
        _count(folder, {link.name(node): len(part.data) for node, part in parts.items()})
        replies = link.hand_over(parts)
        parts = {
            node: parcel.part(reply.received)
            for node, part in parts.items()
            if isinstance(reply := replies.get(node), Holding) and _goes_on(link, node, part, reply)
        }
        for node, reply in replies.items():
            if _is_final(reply):
                link.turn_away(node, reply)


def joining(parcel: Parcel | None, folder: Path) -> Callable[[Link, Offer], None]:
    """How nodes join a run whose backbone can be sent: offered, served, and offered again.

    While nobody takes part, sending goes on as long as a node gets further; afterwards the others wait for no longer
    than a round would.
    """

    def join(link: Link, offer: Offer) -> None:
        link.offer(offer)
        if parcel is None or not link.lacking():
            return
        send_backbone(link, parcel, folder, link.timeout_s if link.members else None)
        link.offer(offer)

    return join


def bytes_sent(folder: Path) -> int:
    """Of the backbone, in a whole run, to all nodes together."""
    return sum(sum(line.values()) for line in read_lines(folder / SENT))


def _goes_on(link: Link, node: int, part: Part, reply: Holding) -> bool:
    """Whether a node wants more; one that has all is welcome, one that makes no progress is left until later."""
    total = part.contents.total
    if reply.digest == part.contents.digest and reply.received == total:
        link.welcome(node)
    elsewhere = not part.data or reply.received == part.offset + len(part.data)
    return reply.digest == part.contents.digest and elsewhere and 0 <= reply.received < total


def _is_final(reply: Reply) -> bool:
    """Whether a node refuses, and would again."""
    return isinstance(reply, Refusal) and reply.reason not in (Reason.ABSENT, Reason.INTERNAL)


def _count(folder: Path, sent: Mapping[str, int]) -> None:
    """Note what is sent, before it is."""
    some = {name: size for name, size in sent.items() if size}
    if not some:
        return
    try:
        with (folder / SENT).open("a") as file:
            file.write(json.dumps(some) + "\n")
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        raise ConfigError(f"could not write {folder / SENT}: {error.strerror}; free some space") from error

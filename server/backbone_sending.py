"""Sends a backbone's package, once, to nodes whose operators approved its digest and have no copy.

Between rounds, to all such nodes at a time, a piece each; how much a node has, it says itself, so that nothing is sent
twice after an interruption of either side. A node that has all of it is offered the run again, and joins the next
round.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

from common.backbones.parcel import Parcel, Part
from common.messages import Holding, Offer, Reason, Refusal, Reply
from server.link import Link
from server.sent_bytes import note_sent

PIECE_TIMEOUT_S = 120.0  # for the slowest node to take a piece: 280 kbit/s
RETRY_S = 2.0


def send_backbone(link: Link, parcel: Parcel, folder: Path, timeout_s: float | None) -> int:
    """Send a package to every node that lacks it, for some time; what is left goes on at the next call.

    Args:
        link: whose ``lacking`` nodes are served; those that have all are asked again by its next ``offer``.
        parcel: the run's backbone.
        folder: of the run, where the bytes are counted.
        timeout_s: after which no new piece is sent; None sends everything.

    Returns:
        How many bytes the node has that has most, as it says.

    Raises:
        ConfigError: a file of the package cannot be read, or the count cannot be written.
    """
    began, most = time.monotonic(), 0
    parts = dict.fromkeys(link.lacking(), Part(parcel.contents, 0, b""))  # asks how far each is
    while parts and (timeout_s is None or time.monotonic() - began < timeout_s):
        note_sent(folder, {link.name(node): len(part.data) for node, part in parts.items()})
        replies = link.hand_over(parts, PIECE_TIMEOUT_S)
        for node, reply in replies.items():
            if _is_final(reply):
                link.turn_away(node, reply)
        held = {node: _held(part, replies.get(node)) for node, part in parts.items()}
        for node in [node for node, bytes_ in held.items() if bytes_ == parcel.contents.total]:
            link.welcome(node)
        known = {node: bytes_ for node, bytes_ in held.items() if bytes_ is not None}
        most = max([most, *known.values()])
        parts = {node: parcel.part(bytes_) for node, bytes_ in known.items() if bytes_ < parcel.contents.total}
    return most


def joining(
    parcel: Parcel | None, folder: Path, patience_s: float = PIECE_TIMEOUT_S, retry_s: float = RETRY_S
) -> Callable[[Link, Offer], None]:
    """How nodes join a run whose backbone can be sent: offered, served, and offered again.

    While nobody takes part, sending goes on, interruptions included, as long as a node gets further at least once in
    ``patience_s``; afterwards the others wait for no longer than a round would.

    Args:
        parcel: the run's backbone; None where it is no package.
        folder: of the run.
        patience_s: how long nobody may get further.
        retry_s: between two tries of that kind.
    """

    def join(link: Link, offer: Offer) -> None:
        link.offer(offer)
        furthest, moved = 0, time.monotonic()
        while parcel is not None and link.awaits_backbone():
            most = send_backbone(link, parcel, folder, link.timeout_s if link.members else None)
            link.offer(offer)
            if most > furthest:
                furthest, moved = most, time.monotonic()
            if link.members or time.monotonic() - moved > patience_s:
                return
            time.sleep(retry_s)

    return join


def _held(part: Part, reply: Reply | None) -> int | None:
    """How many bytes a node says it has; None where that makes no sense, or nothing came of the piece."""
    contents = part.contents
    if not isinstance(reply, Holding) or reply.digest != contents.digest or not contents.may_be_held(reply.received):
        return None
    return reply.received if not part.data or reply.received > part.offset else None


def _is_final(reply: Reply) -> bool:
    """Whether a node refuses, and would again."""
    return isinstance(reply, Refusal) and reply.reason not in (Reason.ABSENT, Reason.INTERNAL)

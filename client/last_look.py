"""The last look at a reply before it leaves: whatever made it, only the listed types leave, each to its own question.

``client.egress`` is where a value is released on purpose. This is where everything else stops: it asks nothing about
how a reply came about, and lets it pass only if it is, type by type and shape by shape, what a node may say to that
message. It is asked twice: in the app, and by the SuperNode's process, which an app cannot reach (``client.gateway``).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from flwr.app import Message, MessageType

from client import egress
from common import wire
from common.errors import PrivacyError
from common.messages import Hello, Holding, Metrics, Reason, Refusal, Reply, Statistics, SumAnswer, Update
from common.noised_moments import packed_size
from common.privacy.sums import sum_terms
from common.secagg.messages import Stage

OWN_REASONS = frozenset(Reason) - {Reason.APP, Reason.ABSENT}  # those two are Flower's to say


@dataclass(frozen=True)
class Speaker:
    """Who answers: the public constants that the operator chose.

    Attributes:
        name: of the node.
        declared_size: number of records, as declared.
        exact: whether exact metrics may leave, as in some simulations.
    """

    name: str
    declared_size: int
    exact: bool = False


@dataclass(frozen=True)
class Said:
    """A reply that wants to leave; attributes are the arguments of ``permitted``."""

    reply: object
    to: Message
    speaker: Speaker


def all_permitted(said: Sequence[Said]) -> Sequence[Reply]:
    """Each reply as ``permitted`` lets it pass; updates are looked at together.

    Raises:
        PrivacyError: one may not leave, and none is released; ask for each by itself.
        ProtocolError: as ``permitted``.
    """
    leaving = [
        egress.Leaving(each.reply.head, wire.head_shapes(each.to))
        for each in said
        if type(each.reply) is Update and each.to.metadata.message_type == MessageType.TRAIN
    ]
    if len(leaving) == len(said):
        return egress.release_updates(leaving)
    return [permitted(each.reply, each.to, each.speaker) for each in said]


def permitted(reply: object, to: Message, speaker: Speaker) -> Reply:
    """The reply, made anew from its listed parts, if a node may say it to this message.

    Args:
        reply: of any kind at all.
        to: the message that it answers.
        speaker: whose reply it is.

    Raises:
        PrivacyError: it is none of the replies to that message, or holds other values; nothing is released.
        ProtocolError: the message asks for nothing that has such an answer.
    """
    kind = to.metadata.message_type
    match reply:
        case Refusal(reason=reason) if type(reply) is Refusal and type(reason) is Reason and reason in OWN_REASONS:
            return Refusal(reason)
        case Hello() if type(reply) is Hello and kind == wire.QUERY_HELLO:
            if _same(reply.name, speaker.name) and _same(reply.declared_size, speaker.declared_size):
                return egress.release_hello(speaker.name, speaker.declared_size)
        case Update() if type(reply) is Update and kind == MessageType.TRAIN:
            return egress.release_shaped(reply.head, wire.head_shapes(to))
        case Statistics() if type(reply) is Statistics and kind == wire.QUERY_STATISTICS:
            task = wire.decode_statistics_task(to)
            model = task.offer.model
            size = packed_size(task.sketch.width, model.task, len(model.classes))
            return egress.release_statistics(reply.values, size)
        case SumAnswer() if type(reply) is SumAnswer and kind == wire.TRAIN_SUM:
            return _permitted_sum(reply, to)
        case Holding() if type(reply) is Holding and kind == wire.QUERY_BACKBONE:
            contents = wire.decode_part(to).contents
            if _same(reply.digest, contents.digest):
                return egress.release_holding(reply.received, contents)
        case Metrics() if type(reply) is Metrics and kind == MessageType.EVALUATE and speaker.exact:
            return egress.release_metrics(reply.accuracy, "exact", simulated=True)
    raise PrivacyError(
        f"expected one of the listed replies to a message of the kind {_shown(kind)}, got something else; nothing was "
        "released"
    )


def _permitted_sum(reply: SumAnswer, to: Message) -> SumAnswer:
    """A masked vector is as long as the head that came with the question; other replies have no length to check."""
    stage, offer = wire.decode_stage(to), wire.decode_offer(to)
    numbers = sum(math.prod(shape) for shape in wire.head_shapes(to).values()) if stage is Stage.VECTOR else 1
    return egress.release_sum(reply.data, stage, sum_terms(offer.terms, numbers))


def _same(value: object, expected: str | int) -> bool:
    return type(value) is type(expected) and value == expected


def _shown(kind: str) -> str:
    queries = {wire.QUERY_HELLO, wire.QUERY_STATISTICS, wire.QUERY_BACKBONE}
    known = {MessageType.TRAIN, wire.TRAIN_SUM, MessageType.EVALUATE, *queries}
    return kind if kind in known else "unknown"

"""The link to the nodes: Flower's grid, spoken to by node name."""

from __future__ import annotations

import math
import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import islice

import numpy as np
from flwr.app import ArrayRecord, Message, RecordDict
from flwr.proto.node_pb2 import NodeInfo
from flwr.serverapp import Grid
from flwr.supercore.run import Run
from numpy.typing import NDArray
from torch import Tensor

from common import wire
from common.backbones.parcel import Part
from common.errors import PrivacyError, ProtocolError
from common.messages import (
    EvaluateTask,
    Hello,
    Metrics,
    Offer,
    Reason,
    Refusal,
    Reply,
    Statistics,
    SumAnswer,
    SumTask,
    Update,
)
from common.noised_moments import StatisticsTask, packed_size
from common.secagg.messages import MOST_MESSAGE_BYTES
from server.intake import SLACK_BYTES, take

JOIN_TIMEOUT_S = 120.0
MOST_WORDS = 300  # of a sentence about a reply: parts of it are the node's
POLL_S = 0.1
REAL_POLL_S = 0.25  # each look at a real node's reply is a request to the SuperLink, which has others to serve
LATE_S = 30.0
AT_ONCE = 1024


@dataclass(frozen=True)
class Member:
    """A node that accepted the offer.

    Attributes:
        name: of the node.
        node_id: Flower's id of it, another one in every run.
        declared_size: public number of units.
    """

    name: str
    node_id: int
    declared_size: int


@dataclass(frozen=True)
class Answers:
    """The replies of a round.

    Attributes:
        updates: the messages that hold an update, by node name.
        failed: node name to the reason why there is none.
        unfit: node name to a sentence about what it sent, where that was refused here.
    """

    updates: Mapping[str, Message]
    failed: Mapping[str, str]
    unfit: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Unfit(Refusal):
    """What stands for a reply that was refused here.

    Attributes:
        why: a sentence for the round log.
    """

    why: str


@dataclass
class Link:
    """Who takes part, and what is sent to them.

    Attributes:
        grid: Flower's.
        members: by node name, in name order; filled by ``offer``.
        refused: node name or id to the reason of its refusal.
        named: nodes that a deployed run may reach, Flower's id to the name it was registered by; None reaches all.
        timeout_s: how long a question waits for its answers; None waits for ever, for nodes that cannot be lost.
        keeps_all: the nodes are an engine's, which loses none while it works: an error in the place of an answer, which
            the app itself never gives, ends the run. Ray gives some while it is being stopped.
    """

    grid: Grid
    members: dict[str, Member] = field(default_factory=dict)
    refused: dict[str, str] = field(default_factory=dict)
    named: Mapping[int, str] | None = None
    timeout_s: float | None = None
    keeps_all: bool = False

    def connected(self) -> list[int]:
        """Flower's ids of the nodes that are there, and that this run may reach."""
        return [node for node in self.grid.get_node_ids() if self.named is None or node in self.named]

    def offer(self, offer: Offer) -> None:
        """Offer model and privacy terms to every node that has not answered yet, and remember who accepts.

        Raises:
            ProtocolError: two nodes have one name.
        """
        content = RecordDict({wire.CONFIG: wire.encode_task(offer)})
        known = {member.node_id for member in self.members.values()}
        asked = [node for node in self.connected() if node not in known and self._may_come(node)]
        found = list(self.members.values())
        for node_id, reply in self._ask(asked, content, wire.QUERY_HELLO).items():
            if isinstance(reply, Hello) and reply.declared_size > 0 and self._is_named(node_id, reply.name):
                found.append(Member(reply.name, node_id, reply.declared_size))
                self.refused.pop(self.name(node_id), None)
            else:
                self.refused[self.name(node_id)] = _reason(reply)
        names = [member.name for member in found]
        if len(set(names)) < len(names):
            twice = sorted({name for name in names if names.count(name) > 1})
            raise ProtocolError(f"expected every node to have its own name, got {', '.join(twice)} twice; rename one")
        self.members = {member.name: member for member in sorted(found, key=lambda member: member.name)}

    def wait_for(self, nodes: int, timeout_s: float = JOIN_TIMEOUT_S) -> None:
        """Wait until all nodes of the federation are connected; Ray's and real ones take a while.

        Raises:
            ProtocolError: they are not, in time.
        """
        deadline = time.monotonic() + timeout_s
        while (connected := len(self.connected())) < nodes:
            if time.monotonic() > deadline:
                if self.named is not None and connected:
                    return  # the others may come later
                raise ProtocolError(
                    f"expected {nodes} nodes (federation.nodes), {connected} connected within {timeout_s:g} s; start "
                    "the others, or lower federation.nodes"
                )
            time.sleep(0.05)

    def collect(self, messages: Iterable[Message], head: Mapping[str, Tensor]) -> Answers:
        """Send training messages and sort the replies by node name, so that no result depends on who was first.

        An update that is not shaped as ``head`` is dropped, its node counted as failed; the others are put into the
        order and type of ``head``, which some strategies rely on.
        """
        name_of = {member.node_id: name for name, member in self.members.items()}
        updates: dict[str, Message] = {}
        asked = list(messages)
        failed = {name_of[message.metadata.dst_node_id]: "no reply" for message in asked}
        unfit: dict[str, str] = {}
        shapes = _shapes(head)
        for node_id, message in self._exchange(asked, _bytes_of(head)):
            name = name_of[node_id]
            reply = _shaped(_decode(message), shapes)
            if isinstance(reply, Update) and isinstance(message, Message):
                updates[name] = _in_order(message, reply.head, head)
                del failed[name]
            else:
                failed[name] = _reason(reply)
            if isinstance(reply, Unfit):
                unfit[name] = reply.why
        return Answers(dict(sorted(updates.items())), dict(sorted(failed.items())), dict(sorted(unfit.items())))

    def sum_answers(self, tasks: Mapping[str, SumTask], vector_bytes: int) -> tuple[dict[str, bytes], dict[str, str]]:
        """Ask nodes for their part in one stage of a sum.

        Args:
            tasks: node name to what it is asked.
            vector_bytes: of a masked vector, the largest of all replies.

        Returns:
            Node name to the reply's bytes, and to the reason where there is none.
        """
        name_of = {self.members[name].node_id: name for name in tasks}
        messages = [
            Message(wire.encode_sum_task(task), dst_node_id=self.members[name].node_id, message_type=wire.TRAIN_SUM)
            for name, task in tasks.items()
        ]
        found: dict[str, bytes] = {}
        failed = dict.fromkeys(tasks, "no reply")
        for node_id, message in self._exchange(messages, SLACK_BYTES + MOST_MESSAGE_BYTES + vector_bytes):
            reply, name = _decode(message), name_of[node_id]
            failed[name] = _reason(reply)
            if isinstance(reply, SumAnswer):
                found[name] = reply.data
                del failed[name]
        return found, failed

    def awaits_backbone(self) -> bool:
        """Whether a node would take part if it had the backbone."""
        return Reason.BACKBONE.value in self.refused.values()

    def lacking(self) -> list[int]:
        """Such nodes, among those that are there."""
        return [node for node in self.connected() if self.refused.get(self.name(node)) == Reason.BACKBONE.value]

    def hand_over(self, parts: Mapping[int, Part], timeout_s: float) -> dict[int, Reply]:
        """Send each of some nodes a piece of a backbone, and wait for what they say, but not for ever."""
        contents = {node: RecordDict({wire.CONFIG: wire.encode_part(part)}) for node, part in parts.items()}
        messages = [Message(content, node, wire.QUERY_BACKBONE) for node, content in contents.items()]
        return {node: _decode(message) for node, message in self._exchange(messages, SLACK_BYTES, timeout_s)}

    def welcome(self, node_id: int) -> None:
        """Let the next ``offer`` ask a node again that refused."""
        self.refused.pop(self.name(node_id), None)

    def turn_away(self, node_id: int, reply: Reply) -> None:
        """Remember that a node refuses, and why."""
        self.refused[self.name(node_id)] = _reason(reply)

    def name(self, node_id: int) -> str:
        """Of a node; its id where nodes have no registered names."""
        return str(node_id) if self.named is None else self.named[node_id]

    def accuracies(self, task: EvaluateTask) -> dict[str, float]:
        """Ask every member how well a head does on its own records; those whose policy forbids it are left out."""
        content = RecordDict({wire.CONFIG: wire.encode_task(task.offer), wire.ARRAYS: wire.encode_head(task.head)})
        ids = {member.node_id: name for name, member in self.members.items()}
        replies = self._ask(ids, content, "evaluate")
        scores = {ids[node]: reply.accuracy for node, reply in replies.items() if isinstance(reply, Metrics)}
        return dict(sorted(scores.items()))

    def statistics(self, task: StatisticsTask) -> dict[str, NDArray[np.float64]]:
        """Ask every member for what a candidate backbone is scored by.

        Returns:
            Node name to noised statistics, see ``common.noised_moments``.

        Raises:
            PrivacyError: a member refuses for the sake of privacy.
            ProtocolError: a member does not answer otherwise; the sum of the others would be another question's answer.
        """
        content = RecordDict({wire.CONFIG: wire.encode_statistics_task(task)})
        ids = {member.node_id: name for name, member in self.members.items()}
        size = (packed_size(task.sketch.width, task.offer.model.task, len(task.offer.model.classes)),)
        most = SLACK_BYTES + size[0] * 8
        replies = {ids[node]: reply for node, reply in self._ask(ids, content, wire.QUERY_STATISTICS, most).items()}
        came = {name: reply.values for name, reply in replies.items() if isinstance(reply, Statistics)}
        found = {name: values for name, values in came.items() if values.shape == size}
        failed = {
            name: _reason(replies[name]) if name in replies else "no reply" for name in {*self.members} - {*found}
        }
        if failed:
            raise unanswered(f"statistics of candidate {task.candidate} from every node", failed)
        return dict(sorted(found.items()))

    def _ask(
        self, node_ids: Iterable[int], content: RecordDict, kind: str, most_bytes: int = SLACK_BYTES
    ) -> dict[int, Reply]:
        """Ask, and read the answers; simulated nodes, which may be very many, are asked a portion at a time."""
        waiting, portion, answers = iter(node_ids), AT_ONCE if self.named is None else None, dict[int, Reply]()
        while some := list(islice(waiting, portion)):
            messages = [Message(content, dst_node_id=node_id, message_type=kind) for node_id in some]
            answers.update((node_id, _decode(reply)) for node_id, reply in self._exchange(messages, most_bytes))
        return answers

    def _exchange(
        self, messages: list[Message], most_bytes: int, timeout_s: float = math.inf
    ) -> Iterator[tuple[int, Message | ProtocolError]]:
        """Send messages and give out the replies as they come, until all are there or the time is over.

        With each reply comes the node that was asked: of one that is away, Flower's SuperLink answers in its own name.
        Nodes of a deployed run are not trusted to send what can be read, and each reply is taken alone. A question that
        nobody waits for any more is not handed out: a node that comes back would pay for it in vain.
        """
        if self.timeout_s is not None:
            for message in messages:
                message.metadata.ttl = self.timeout_s + LATE_S
        waiting = dict(zip(self.grid.push_messages(messages), messages, strict=True))
        deadline = time.monotonic() + min(timeout_s, math.inf if self.timeout_s is None else self.timeout_s)
        while waiting:
            for message_id, reply in self._come(waiting, most_bytes, deadline):
                yield waiting.pop(message_id).metadata.dst_node_id, reply
            if time.monotonic() > deadline:
                return
            if waiting:
                time.sleep(POLL_S if self.named is None else REAL_POLL_S)

    def _come(
        self, waiting: Mapping[str, Message], most_bytes: int, deadline: float
    ) -> Iterator[tuple[str, Message | ProtocolError]]:
        """What has come by now, by the id of the message that it answers."""
        if self.named is None:
            for reply in self.grid.pull_messages(list(waiting)):
                if self.keeps_all and reply.has_error():
                    raise ProtocolError(
                        "expected an answer of every simulated node, but the engine lost one; resume the run"
                    )
                yield reply.metadata.reply_to_message_id, reply
            return
        for message_id, asked in list(waiting.items()):
            try:
                taken = take(self.grid, asked, message_id, most_bytes, deadline - time.monotonic())
            except ProtocolError as error:
                yield message_id, error
                continue
            if taken is not None:
                yield message_id, taken

    def _may_come(self, node_id: int) -> bool:
        """Whether a node has refused nothing yet; one that was away, or failed, is asked again."""
        return self.refused.get(self.name(node_id), Reason.ABSENT) in (Reason.ABSENT, Reason.INTERNAL)

    def _is_named(self, node_id: int, name: str) -> bool:
        """Whether a node calls itself what it was registered as."""
        return bool(name) and (self.named is None or self.named[node_id] == name)


class CohortView(Grid):
    """A grid that shows a strategy the chosen cohort only, since Flower samples with the global random generator."""

    def __init__(self, grid: Grid, node_ids: Iterable[int]) -> None:
        """See ``node_ids`` of ``grid`` and nothing else."""
        self._grid = grid
        self._node_ids = list(node_ids)

    def get_node_ids(self) -> Iterable[int]:
        """Ids of the cohort."""
        return self._node_ids

    def set_run(self, run: Run) -> None:
        """Pass on."""
        self._grid.set_run(run)

    @property
    def run(self) -> Run:
        """The run of the grid."""
        return self._grid.run

    def get_nodes(self) -> Iterable[NodeInfo]:
        """The cohort."""
        return (NodeInfo(node_id=node_id) for node_id in self._node_ids)

    def create_message(
        self, content: RecordDict, message_type: str, dst_node_id: int, group_id: str, ttl: float | None = None
    ) -> Message:
        """Pass on."""
        return self._grid.create_message(content, message_type, dst_node_id, group_id, ttl)

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        """Pass on."""
        return self._grid.push_messages(messages)

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        """Pass on."""
        return self._grid.pull_messages(message_ids)

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> Iterable[Message]:
        """Pass on."""
        return self._grid.send_and_receive(messages, timeout=timeout)


def unanswered(wanted: str, failed: Mapping[str, str]) -> ProtocolError | PrivacyError:
    """The error for what nodes did not do.

    Args:
        wanted: what was expected of them.
        failed: node name or id to reason.
    """
    reasons = sorted(set(failed.values()))
    said = ", ".join(f"{reason} ({list(failed.values()).count(reason)} nodes)" for reason in reasons) or "no node"
    text = f"expected {wanted}, got: {said}; the nodes' own logs say why"
    private = reasons and set(reasons) <= {Reason.BUDGET.value, Reason.POLICY.value}
    return PrivacyError(text) if private else ProtocolError(text)


def _decode(message: Message | ProtocolError) -> Reply:
    if isinstance(message, ProtocolError):
        return Unfit(Reason.PROTOCOL, str(message)[:MOST_WORDS])
    try:
        return wire.decode_reply(message)
    except ProtocolError as error:
        return Unfit(Reason.PROTOCOL, str(error)[:MOST_WORDS])


def _shaped(reply: Reply, shapes: Mapping[str, tuple[int, ...]]) -> Reply:
    """The reply to a training message; an update of another shape is none."""
    if isinstance(reply, Refusal) or (isinstance(reply, Update) and _shapes(reply.head) == shapes):
        return reply
    kind = type(reply).__name__.lower()
    return Unfit(
        Reason.PROTOCOL, f"expected an update shaped as the head that was sent, got another {kind}; look at that node"
    )


def _bytes_of(head: Mapping[str, Tensor]) -> int:
    """Of an update in double precision, which is the most that one may have."""
    return SLACK_BYTES + sum(value.numel() * 8 for value in head.values())


def _reason(reply: Reply) -> str:
    return reply.reason.value if isinstance(reply, Refusal) else Reason.PROTOCOL.value


def _in_order(message: Message, came: Mapping[str, Tensor], head: Mapping[str, Tensor]) -> Message:
    """Put an update into the order and type of ``head``, if it is not in them already."""
    arrays = wire.record(message.content, wire.ARRAYS, ArrayRecord)
    if list(arrays) != list(head) or any(array.dtype != "float32" for array in arrays.values()):
        message.content = RecordDict({wire.ARRAYS: wire.encode_head({key: came[key] for key in head})})
    return message


def _shapes(head: Mapping[str, Tensor]) -> dict[str, tuple[int, ...]]:
    return {name: tuple(value.shape) for name, value in head.items()}

"""Hostile replies: one node's failure, in a sentence, with the rest of the round unharmed and memory bounded."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import httpx
import numpy as np
import pytest
import torch
from flwr.app import Array, ArrayRecord, ConfigRecord, Error, Message, MetricRecord, RecordDict
from flwr.app.message import make_message
from flwr.common.serde import message_to_proto
from flwr.proto.message_pb2 import ObjectTree, PullObjectResponse, PushObjectResponse
from flwr.proto.runtime_pb2 import PullAppMessagesResponse, PushAppMessagesResponse
from flwr.supercore.inflatable.inflatable_object import (
    get_all_nested_objects,
    get_object_id,
    get_object_tree,
    no_object_id_recompute,
)
from flwr.supercore.run import Run
from flwr.superlink.grid.http_grid import HttpGrid

from common import wire
from common.message_objects import message_from_objects
from common.messages import Hello, Update
from server import intake
from server.link import LATE_S, Answers, Link, Member
from server.reply_limits import Limits
from simulations.engine import task_identity
from tests.processes import PATIENCE_S

GOOD, BAD = 100, 101
HEAD = {"weight": torch.zeros(4, 3), "bias": torch.zeros(4)}
MB = 1 << 20
Made = tuple[Message, ObjectTree, dict[str, bytes]]
Answer = Callable[[Message, Message], Made]


@pytest.fixture(autouse=True)
def identity() -> Iterator[None]:
    with task_identity():
        yield


def made(reply: Message) -> Made:
    """A reply as Flower sends it."""
    with no_object_id_recompute():
        reply.metadata.__dict__["_message_id"] = reply.object_id
        objects = {name: part.deflate() for name, part in get_all_nested_objects(reply).items()}
        return reply, get_object_tree(reply), objects


def arrays(**values: Any) -> RecordDict:
    return RecordDict({wire.ARRAYS: ArrayRecord({name: Array(np.asarray(value)) for name, value in values.items()})})


def update(message: Message, step: float = 1.0) -> Made:
    return made(wire.encode_reply(Update({name: value + step for name, value in HEAD.items()}), message))


@dataclass
class Runtime:
    """The SuperLink's runtime as Flower's grid calls it: one honest node, and one that answers as it likes."""

    answer: Answer
    served: int = 0
    asked: tuple[Message, Message] = field(init=False)
    replies: dict[str, Made] = field(default_factory=dict)
    objects: dict[str, bytes] = field(default_factory=dict)
    troubles: list[int] = field(default_factory=list)

    def PushMessages(self, request: Any) -> PushAppMessagesResponse:  # noqa: N802
        ids = [proto.metadata.message_id for proto in request.messages_list]
        good, bad = self.asked
        for message_id, reply in zip(ids, (update(good), self.answer(bad, good)), strict=True):
            self.replies[message_id] = reply
            self.objects |= reply[2]
        return PushAppMessagesResponse(message_ids=ids)

    def PullMessages(self, request: Any) -> PullAppMessagesResponse:  # noqa: N802
        if self.troubles:
            httpx.Response(self.troubles.pop(), request=httpx.Request("POST", "https://127.0.0.1")).raise_for_status()
        found = [self.replies.pop(name) for name in request.message_ids if name in self.replies]
        heads = [message_to_proto(_head_of(reply)) for reply, _, _ in found]
        return PullAppMessagesResponse(messages_list=heads, message_object_trees=[tree for _, tree, _ in found])

    def PullObject(self, request: Any) -> PullObjectResponse:  # noqa: N802
        content = self.objects.get(request.object_id, b"")
        if content == b"late":
            return PullObjectResponse(object_found=True, object_available=False)
        if content == b"5 MB":
            content = bytes(5 * MB)
        self.served += len(content)
        return PullObjectResponse(object_found=bool(content), object_available=True, object_content=content)

    def PushObject(self, _: Any) -> PushObjectResponse:  # noqa: N802
        return PushObjectResponse(stored=True)

    def ConfirmMessageReceived(self, _: Any) -> None:  # noqa: N802
        """Nothing to do."""


def _head_of(reply: Message) -> Message:
    return make_message(metadata=reply.metadata, content=RecordDict())


def collected(answer: Answer, *troubles: int, timeout_s: float = PATIENCE_S) -> tuple[Answers, Runtime]:
    """What a round makes of an honest node and of another, if a SuperLink in trouble answers with these codes first."""
    runtime, grid = Runtime(answer, troubles=list(troubles)), HttpGrid(token="of the test")
    grid.set_run(Run.create_empty(1))
    grid._client = runtime  # type: ignore[assignment]
    config = wire.encode_task(_offer(), 0.5)
    content = RecordDict({wire.CONFIG: config, wire.ARRAYS: wire.encode_head(HEAD)})
    messages = Message(content, GOOD, "train"), Message(content, BAD, "train")
    runtime.asked = messages
    members = {name: Member(name, node, 10) for name, node in (("bad", BAD), ("good", GOOD))}
    link = Link(grid, members=members, named={GOOD: "good", BAD: "bad"}, timeout_s=timeout_s)
    return link.collect(messages, HEAD), runtime


def _offer() -> Any:
    from tests.federations import small_offer

    return small_offer()


def bomb(message: Message, good: Message) -> Made:
    """A chunk of 1 MB, named ten thousand times: 10 GB in 1 MB."""
    array = Array("float32", (1,), "numpy.ndarray", bytes(MB))
    array.slice_array()
    reply, _, objects = made(Message(RecordDict({wire.ARRAYS: ArrayRecord({"weight": array})}), reply_to=message))
    return _rewritten(reply, objects, lambda body: {**body, "arraychunk_ids": [0] * 10_000}, array.object_id)


def many_names(message: Message, _: Message) -> Made:
    """An array of 1 MB, by 64 names."""
    array = Array(np.zeros(MB // 4, np.float32))
    names = {f"a{number}": array for number in range(64)}
    return made(Message(RecordDict({wire.ARRAYS: ArrayRecord(names)}), reply_to=message))


def _rewritten(reply: Message, objects: dict[str, bytes], change: Callable[[Any], Any], target: str) -> Made:
    """A message whose object ``target`` has another body, and all above it the names that follow from that."""
    renamed: dict[str, str] = {}
    out: dict[str, bytes] = {}
    for name, content in objects.items():  # children come first
        head, _, body = content.partition(b"\x00")
        if name == target:
            body = json.dumps(change(json.loads(body))).encode()
        for before, after in renamed.items():
            head, body = head.replace(before.encode(), after.encode()), body.replace(before.encode(), after.encode())
        kind, children, _ = head.decode().split(" ")
        content = f"{kind} {children} {len(body)}".encode() + b"\x00" + body
        renamed[name] = get_object_id(content)
        out[renamed[name]] = content
    reply.metadata.__dict__["_message_id"] = list(out)[-1]
    tree = ObjectTree(object_id=list(out)[-1], children=[ObjectTree(object_id=name) for name in list(out)[:-1]])
    return reply, tree, out


def chunks_without_end(message: Message, good: Message) -> Made:
    """2000 objects of 5 MB: 10 GB that are really there."""
    reply, _, objects = update(message)
    names = [get_object_id(str(number).encode()) for number in range(2000)]
    tree = ObjectTree(object_id=reply.metadata.message_id, children=[ObjectTree(object_id=name) for name in names])
    return reply, tree, {**objects, **dict.fromkeys(names, b"5 MB")}


def in_anothers_name(message: Message, good: Message) -> Made:
    """Says it answers the honest node's question, and has come from there, with values of its own."""
    head = {name: value + 7 for name, value in HEAD.items()}
    return made(wire.encode_reply(Update(head), good))


def _with(change: Callable[[dict[str, bytes]], dict[str, bytes]]) -> Answer:
    def answer(message: Message, _: Message) -> Made:
        reply, tree, objects = update(message, 2.0)
        return reply, tree, change(objects)

    return answer


def _own(values: RecordDict) -> Answer:
    return lambda message, _: made(Message(values, reply_to=message))


ARRAY = np.zeros((4, 3), np.float32)
HOSTILE: dict[str, tuple[Answer, str]] = {
    "not a number": (_own(arrays(weight=np.full((4, 3), np.nan, "f4"), bias=np.zeros(4, "f4"))), "finite floats"),
    "infinite": (_own(arrays(weight=np.full((4, 3), 1e39), bias=np.zeros(4))), "finite floats"),
    "another shape": (_own(arrays(weight=np.zeros((3, 4), "f4"), bias=np.zeros(4, "f4"))), "shaped as the head"),
    "other names": (_own(arrays(weight=ARRAY)), "shaped as the head"),
    "whole numbers": (_own(arrays(weight=ARRAY.astype("i8"), bias=np.zeros(4, "i8"))), "finite floats"),
    "texts": (_own(arrays(weight=np.array([["x"]]))), "finite floats"),
    "bytes that are no array": (
        _own(RecordDict({wire.ARRAYS: ArrayRecord({"weight": Array("float32", (4,), "numpy.ndarray", b"\x93NUMPY")})})),
        "cannot be read",
    ),
    "another kind": (lambda message, _: made(wire.encode_reply(Hello("good", 10), message)), "got another hello"),
    "a record of another kind": (_own(RecordDict({wire.ARRAYS: ConfigRecord({"weight": 1.0})})), "got another reply"),
    "statistics of nothing": (_own(RecordDict({wire.STATISTICS: MetricRecord({})})), "got another reply"),
    "nothing": (_own(RecordDict()), "got another reply"),
    "too large": (_own(arrays(weight=np.zeros(MB, np.float32))), "at most"),
    "a chunk many times": (bomb, "at most"),
    "an array many times": (many_names, "at most"),
    "10 GB": (chunks_without_end, "at most"),
    "other bytes than their name": (
        _with(lambda objects: {name: content + b"x" for name, content in objects.items()}),
        "objects that make none",
    ),
    "objects of no kind": (_with(lambda objects: dict.fromkeys(objects, b"Evil  0\x00")), "objects that make none"),
}


@pytest.mark.parametrize("kind", HOSTILE)
def test_a_hostile_reply_is_one_nodes_failure(kind: str) -> None:
    answer, words = HOSTILE[kind]
    answers, runtime = collected(answer)
    assert list(answers.updates) == ["good"]
    assert answers.failed == {"bad": "protocol"}
    assert words in answers.unfit["bad"]
    assert len(answers.unfit["bad"]) <= 300
    assert runtime.served < 40 * MB


@pytest.mark.parametrize("content", [b"", b"late"])
def test_a_reply_whose_parts_never_come_is_waited_for_no_longer_than_the_round(
    content: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(intake, "SHORTEST_S", 0.5)
    answers, _ = collected(_with(lambda objects: dict.fromkeys(objects, content)), timeout_s=2.0)
    assert list(answers.updates) == ["good"]
    assert answers.failed == {"bad": "absent"}


def test_a_reply_counts_for_the_node_that_was_asked_whatever_name_it_bears() -> None:
    answers, _ = collected(in_anothers_name)
    assert set(answers.updates) == {"good", "bad"}
    values = {name: float(wire.decode_reply(message).head["bias"][0]) for name, message in answers.updates.items()}  # type: ignore[union-attr]
    assert values == {"good": 1.0, "bad": 7.0}
    assert {name: message.metadata.src_node_id for name, message in answers.updates.items()} == {
        "good": GOOD,
        "bad": BAD,
    }


def test_a_question_that_nobody_waits_for_any_more_is_not_handed_out() -> None:
    """Flower's own time is twelve hours: a node that comes back would pay for every round that it missed."""
    _, runtime = collected(in_anothers_name)
    assert {message.metadata.ttl for message in runtime.asked} == {PATIENCE_S + LATE_S}


def test_an_error_is_no_update() -> None:
    answers, _ = collected(lambda message, _: made(Message(Error(0, "x" * 999), reply_to=message)))
    assert answers.failed == {"bad": "internal"}


def test_a_superlink_in_trouble_is_asked_again_and_one_that_refuses_is_not() -> None:
    answers, runtime = collected(lambda message, _: update(message), 500, 500, 503)
    assert set(answers.updates) == {"good", "bad"}
    assert not runtime.troubles
    with pytest.raises(httpx.HTTPStatusError):
        collected(lambda message, _: update(message), 404)


def test_a_message_survives_its_objects() -> None:
    message = Message(arrays(weight=ARRAY), 1, "train")
    objects = {name: part.deflate() for name, part in get_all_nested_objects(message).items()}
    again = message_from_objects(message.object_id, objects, 10_000)
    assert again.content.object_id == message.content.object_id


def test_the_superlink_counts_what_a_reply_brings() -> None:
    limits = Limits(most_bytes=100, most_objects=3)
    assert limits.fits("a", 60)
    assert limits.fits("b", 60)
    assert limits.fits("a", 40)
    assert not limits.fits("a", 1)
    limits.announce(ObjectTree(object_id="x", children=[ObjectTree(), ObjectTree()]))
    with pytest.raises(ValueError, match="at most 3 objects"):
        limits.announce(ObjectTree(object_id="x", children=[ObjectTree()] * 3))

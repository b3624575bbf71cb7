"""Whatever an app returns, raises or writes, nothing but the listed records leaves: in the app, and behind its back."""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from flwr.app import Array, ArrayRecord, ConfigRecord, Context, Error, Message, MetricRecord, RecordDict
from flwr.common.serde import message_to_proto
from flwr.supercore.inflatable.inflatable_object import get_all_nested_objects, get_object_tree
from flwr.supercore.object_store.in_memory_object_store import InMemoryObjectStore
from flwr.supernode import start_client_internal as flower
from flwr.supernode.nodestate.in_memory_nodestate import InMemoryNodeState
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import client.app
from client import supernode
from client.gateway import Gateway
from client.last_look import Said, Speaker, all_permitted, permitted
from client.node_config import NODE_TOML
from client.open_node import open_node
from client.simulated_node import simulated_in_process
from common import wire
from common.backbones.parcel import Contents, Part
from common.config import to_flat
from common.errors import ConfigError, PrivacyError, ProtocolError
from common.lockstep import Steps, one_step, together
from common.message_objects import message_from_objects
from common.messages import Hello, Holding, Metrics, Reason, Refusal, Statistics, SumAnswer, SumTask, Update
from common.noised_moments import SENSITIVITY, Sketch, StatisticsTask, packed_size
from common.privacy.sums import sum_terms
from common.secagg.masks import word_type
from common.secagg.messages import MaskedVector, Stage, VectorHead
from simulations.engine import task_identity
from tests.client.test_own_node import CONFIG
from tests.federations import small_config, small_offer, small_task

SECRET = "patient-4711"
NAME, SIZE = "st-mary", 60
QUESTION = StatisticsTask(small_offer(rounds=2, sampling_rate=1.0, clipping_norm=SENSITIVITY), 1, Sketch(0, 8))
WIDTH = packed_size(8, "classification", 10)
SHAPES = {name: tuple(value.shape) for name, value in small_task().head.items()}
KINDS = ["train", "evaluate", wire.QUERY_HELLO, wire.QUERY_STATISTICS, wire.QUERY_BACKBONE]
DIGEST, PIECE = "ab" * 32, 4 << 20
BACKBONE = Contents(DIGEST, (("backbone.json", 700), ("weights.safetensors", 2 * PIECE)))
HELD = (0, PIECE, 2 * PIECE, 2 * PIECE + 700)


@pytest.fixture(autouse=True)
def quiet() -> Iterator[None]:
    log = logging.getLogger("fedgraft.node")
    before = log.level
    log.setLevel(logging.CRITICAL + 1)
    with task_identity():
        yield
    log.setLevel(before)


def asked(kind: str) -> Message:
    """What a server asks, well formed."""
    if kind == wire.QUERY_STATISTICS:
        return Message(RecordDict({wire.CONFIG: wire.encode_statistics_task(QUESTION)}), 2, kind)
    if kind == wire.QUERY_BACKBONE:
        return Message(RecordDict({wire.CONFIG: wire.encode_part(Part(BACKBONE, 0, b""))}), 2, kind)
    task = small_task()
    config = wire.encode_task(task.offer, task.learning_rate)
    config[wire.ROUND] = 1
    return Message(RecordDict({wire.CONFIG: config, wire.ARRAYS: wire.encode_head(task.head)}), 2, kind)


def is_listed(reply: Message, kind: str, *, exact: bool, name: str, size: int) -> bool:
    """The allow-list written down once more, on the bytes that leave: no word of it is the gate's own."""
    if reply.has_error() or SECRET.encode() in message_to_proto(reply).SerializeToString():
        return False
    ((key, record),) = reply.content.items()
    if key == "refusal":
        words = ("budget", "policy", "backbone", "data", "protocol", "internal")
        return dict(record) in [{"reason": word} for word in words]
    if key == "hello":
        return kind == "query.hello" and dict(record) == {"name": name, "declared-size": size}
    if key == "holding":
        return kind == "query.backbone" and dict(record) in [{"digest": DIGEST, "received": held} for held in HELD]
    if key == "metrics":
        return (
            kind == "evaluate" and exact and list(record) == ["accuracy"] and 0 <= float(str(record["accuracy"])) <= 1
        )
    arrays = {inner: array.numpy() for inner, array in record.items() if isinstance(array, Array)}
    finite = all(np.isfinite(values).all() for values in arrays.values())
    shapes = {inner: values.shape for inner, values in arrays.items()}
    if key == "statistics":
        return kind == "query.statistics" and finite and shapes == {"statistics": (WIDTH,)}
    floats = all(values.dtype == np.float32 for values in arrays.values())
    return kind == "train" and key == "arrays" and finite and floats and shapes == SHAPES


shapes = st.one_of(st.sampled_from([*SHAPES.values(), (WIDTH,), (1_000_000,)]), st.just((0,)), st.just(()))
numbers = st.sampled_from([0.0, 0.5, 1.0, -1.0, math.nan, math.inf, 1e30])
dtypes = st.sampled_from(["float32", "float64", "int64", "uint8"])
texts = st.sampled_from([SECRET, "", NAME, "internal", "weight"])
ndarrays = st.builds(
    lambda shape, number, dtype: np.full(shape, number if dtype.startswith("float") else 7, dtype),
    shapes,
    numbers,
    dtypes,
)
keys = st.one_of(
    st.sampled_from(
        [*SHAPES, "reason", "name", "declared-size", "accuracy", "statistics", "loss", "digest", "received"]
    ),
    texts,
)


def whole_head(number: float) -> dict[str, torch.Tensor]:
    return {name: torch.full(shape, number) for name, shape in SHAPES.items()}


heads: Any = st.one_of(
    numbers.map(whole_head),
    st.builds(lambda number, extra: {**whole_head(number), extra: torch.ones(3)}, numbers, texts),
    st.dictionaries(keys, ndarrays.map(torch.from_numpy), max_size=3),
    st.dictionaries(keys, texts, max_size=2),
    texts,
)
scalars: Any = st.one_of(numbers, texts, st.integers(-(2**40), 2**40), st.none(), st.booleans())
replies: Any = st.one_of(
    st.builds(Update, heads),
    st.builds(Hello, st.one_of(st.just("node-0"), scalars), scalars),
    st.builds(Metrics, scalars),
    st.builds(Statistics, st.one_of(ndarrays, texts)),
    st.builds(Statistics, numbers.map(lambda number: np.full((WIDTH,), number))),
    st.builds(Holding, st.one_of(st.just(DIGEST), scalars), st.one_of(st.sampled_from([*HELD, PIECE + 1]), scalars)),
    st.builds(Refusal, st.one_of(st.sampled_from(list(Reason)), texts)),
    st.recursive(scalars, lambda inner: st.dictionaries(texts, inner, max_size=2), max_leaves=4),
)
errors = st.sampled_from([RuntimeError, ValueError, KeyError, MemoryError, ConfigError, PrivacyError, ProtocolError])


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    kind=st.sampled_from(KINDS), exact=st.booleans(), result=st.one_of(replies, errors.map(lambda kind: kind(SECRET)))
)
def test_whatever_an_app_returns_or_raises_only_listed_values_leave(
    kind: str, exact: bool, result: Any, tmp_path: Path
) -> None:
    def work(_: object) -> Any:
        if isinstance(result, Exception):
            raise result
        return result

    config = small_config(evaluation={"node_metrics": "exact" if exact else "none"})
    context = Context(1, 2, {"partition-id": 0}, RecordDict(), to_flat(config))
    with simulated_in_process(tmp_path):
        size = open_node(1, context.run_config, context.node_config).declared_size
        reply = client.app._answer(asked(kind), context, work)
    assert is_listed(reply, kind, exact=exact, name="node-0", size=size)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(place=st.integers(0, 2), result=st.one_of(replies, errors.map(lambda kind: kind(SECRET))))
def test_whatever_one_node_returns_the_nodes_beside_it_are_answered_as_ever(
    place: int, result: Any, tmp_path: Path
) -> None:
    """A simulation asks the gate for many nodes at once."""

    def steps(node: int) -> Steps[Message]:
        def work(_: object) -> Any:
            if node == place and isinstance(result, Exception):
                raise result
            return result if node == place else Update(whole_head(1.0 + node))

        context = Context(1, 2 + node, {"partition-id": node}, RecordDict(), to_flat(config))
        return client.app._in_steps(
            client.app._opener(context, None), asked("train"), lambda found: one_step(lambda: work(found))
        )

    config = small_config(evaluation={"node_metrics": "none"})
    with simulated_in_process(tmp_path):
        left = together([steps(node) for node in range(3)])
        size = open_node(1, to_flat(config), {"partition-id": place}).declared_size
    assert is_listed(left[place], "train", exact=False, name=f"node-{place}", size=size)
    for node in {0, 1, 2} - {place}:
        head = wire.decode_head(left[node].content.array_records[wire.ARRAYS])
        assert all((value == 1.0 + node).all() for value in head.values())


def test_what_is_asked_of_many_nodes_leaves_as_from_each() -> None:
    speaker, several = Speaker(NAME, SIZE, exact=True), [*KINDS, "train", "train"]
    left = all_permitted([Said(RELEASED[kind], asked(kind), speaker) for kind in several])
    assert [type(reply) for reply in left] == [type(RELEASED[kind]) for kind in several]
    with pytest.raises(PrivacyError, match="nothing was released"):
        all_permitted([Said(RELEASED["train"], asked(kind), speaker) for kind in ("train", "evaluate")])


RELEASED: dict[str, Any] = {
    "train": Update(whole_head(0.5)),
    wire.QUERY_HELLO: Hello(NAME, SIZE),
    wire.QUERY_STATISTICS: Statistics(np.zeros(WIDTH)),
    wire.QUERY_BACKBONE: Holding(DIGEST, PIECE),
    "evaluate": Metrics(0.5),
}


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_listed_leaves(kind: str) -> None:
    speaker = Speaker(NAME, SIZE, exact=True)
    assert type(permitted(RELEASED[kind], asked(kind), speaker)) is type(RELEASED[kind])
    for other in {*KINDS} - {kind}:
        with pytest.raises(PrivacyError, match="nothing was released"):
            permitted(RELEASED[kind], asked(other), speaker)


class Connection:
    """Flower's connection as the gateway sees it: what is asked comes in, and what leaves is kept."""

    def __init__(self, question: Message, folder: Path) -> None:
        question.metadata.__dict__["_message_id"] = question.object_id
        self.objects = {name: part.deflate() for name, part in get_all_nested_objects(question).items()}
        self.question, self.tree = question, get_object_tree(question)
        self.store = InMemoryObjectStore()
        self.left: dict[str, bytes] = {}
        self.heads: list[Message] = []
        self.gateway = Gateway(folder, wait_s=0.2)

    def ask(self) -> None:
        """Let the question in."""
        ways = self.gateway.remembering(
            lambda: (self.question, self.tree), lambda _, name: self.objects[name], self.store
        )
        ways[0]()
        for name in self.objects:
            ways[1](1, name)

    def answer(self, reply: Message, *, lost: int = 0) -> Message:
        """Hand an app's answer over, as its process does, and read what left."""
        reply.metadata.__dict__["_message_id"] = reply.object_id
        tree = get_object_tree(reply)
        self.store.preregister(1, tree)
        for name, part in list(get_all_nested_objects(reply).items())[lost:]:
            self.store.put(name, part.deflate())
        send = self.gateway.checked(
            self.send, lambda run, session, name, content: self.left.update({name: content}), self.store
        )
        wanted, _ = send(reply, tree, 17.25)
        assert not wanted
        return message_from_objects(self.heads[-1].metadata.message_id, self.left, math.inf)

    def send(self, message: Message, tree: Any, seconds: float) -> tuple[set[str], str]:
        """Flower's: keep the head of a message, and want everything below it."""
        assert seconds == 0.0
        self.heads.append(message)
        return set(get_all_nested_objects(message)), "session"


PATCHED = [
    *(
        (flower, name)
        for name in ("_init_connection", "_pull_and_store_message", "_push_messages", "_verify_fab", "time")
    ),
    (supernode.command, "start_client_internal"),
    (InMemoryNodeState, "finish_task"),
]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / NODE_TOML).write_text(CONFIG)
    return tmp_path


values = st.one_of(
    st.integers(-(2**40), 2**40), st.floats(), texts, st.just(SECRET.encode()), st.lists(texts, max_size=3)
)
written = st.dictionaries(keys, ndarrays.map(Array), max_size=3).map(ArrayRecord)
records = st.one_of(
    st.dictionaries(keys, values, max_size=3).map(lambda some: ConfigRecord({**some})),
    st.dictionaries(keys, st.one_of(st.integers(0, 99), st.floats()), max_size=3).map(
        lambda some: MetricRecord({**some})
    ),
    written,
)
names = st.one_of(st.sampled_from(["refusal", "hello", "metrics", "statistics", "holding", "arrays", "logs"]), texts)
right = st.sampled_from([*KINDS, "refusal"]).map(
    lambda kind: {
        "train": lambda: {"arrays": wire.encode_head(whole_head(0.5))},
        "evaluate": lambda: {"metrics": MetricRecord({"accuracy": 0.5})},
        wire.QUERY_HELLO: lambda: {"hello": ConfigRecord({"name": NAME, "declared-size": SIZE})},
        wire.QUERY_STATISTICS: lambda: {"statistics": ArrayRecord({"statistics": Array(np.zeros(WIDTH))})},
        wire.QUERY_BACKBONE: lambda: {"holding": ConfigRecord({"digest": DIGEST, "received": PIECE})},
        "refusal": lambda: {"refusal": ConfigRecord({"reason": "budget"})},
    }[kind]()
)
contents = st.builds(
    lambda one, others: {**others, **one}, st.one_of(st.just({}), right), st.dictionaries(names, records, max_size=2)
)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(kind=st.sampled_from(KINDS), content=contents, group=texts, failed=st.booleans())
def test_whatever_an_app_writes_the_supernode_passes_on_listed_values_only(
    kind: str, content: Any, group: str, failed: bool, folder: Path
) -> None:
    connection = Connection(asked(kind), folder)
    connection.ask()
    reply = Message(Error(2, SECRET) if failed else RecordDict(content), reply_to=connection.question)
    reply.metadata.__dict__["_group_id"] = group
    came = connection.answer(reply)
    assert SECRET.encode() not in b"".join(connection.left.values()) + str(connection.heads).encode()
    assert came.metadata.group_id == connection.heads[-1].metadata.group_id == ""
    if failed:
        assert came.error.reason == "the node's own log says why"
    else:
        assert is_listed(came, kind, exact=False, name=NAME, size=SIZE)


@pytest.mark.parametrize("kind", ["train", wire.QUERY_HELLO, wire.QUERY_STATISTICS, wire.QUERY_BACKBONE])
def test_a_right_answer_passes_unchanged(kind: str, folder: Path) -> None:
    connection = Connection(asked(kind), folder)
    connection.ask()
    right = wire.encode_reply(RELEASED[kind], connection.question)
    assert connection.answer(right).content.object_id == right.content.object_id


def test_a_masked_vector_of_twice_the_heads_bytes_passes_and_a_longer_one_does_not(folder: Path) -> None:
    numbers, offer = 400_000, small_offer(rounds=1)
    terms = replace(offer.terms, trust="secagg", nodes=3, colluders=1, largest_node=100_000)
    summed, session = sum_terms(terms, numbers), "ab" * 32
    assert word_type(summed).itemsize == 8
    task = SumTask(replace(offer, terms=terms), 1, Stage.VECTOR, b"a request", {"weight": torch.zeros(numbers)})
    for length in (numbers, 2 * numbers):
        connection = Connection(Message(wire.encode_sum_task(task), dst_node_id=1, message_type=wire.TRAIN_SUM), folder)
        connection.ask()
        head = VectorHead(session=session, name=NAME, sharers=session)
        answer = SumAnswer(MaskedVector(head, np.zeros(length, word_type(summed))).to_bytes())
        came = wire.decode_reply(connection.answer(wire.encode_reply(answer, connection.question)))
        assert came == (answer if length == numbers else Refusal(Reason.INTERNAL))


@pytest.mark.parametrize("size", [SIZE, SIZE + 1])
def test_a_size_that_the_operator_did_not_declare_is_kept_back(size: int, folder: Path) -> None:
    connection = Connection(asked(wire.QUERY_HELLO), folder)
    connection.ask()
    came = connection.answer(wire.encode_reply(Hello(NAME, size), connection.question))
    expected = Hello(NAME, SIZE) if size == SIZE else Refusal(Reason.INTERNAL)
    assert wire.decode_reply(came) == expected


@pytest.mark.parametrize("held", [*HELD, -1, 1, PIECE - 1, PIECE + 1, 3 * PIECE, 2 * PIECE + 701])
def test_what_a_node_has_of_a_backbone_is_told_in_whole_pieces_alone(held: int, folder: Path) -> None:
    connection = Connection(asked(wire.QUERY_BACKBONE), folder)
    connection.ask()
    came = connection.answer(wire.encode_reply(Holding(DIGEST, held), connection.question))
    assert wire.decode_reply(came) == (Holding(DIGEST, held) if held in HELD else Refusal(Reason.INTERNAL))


@pytest.mark.parametrize("said", [{"path": SECRET}, {"others": 3}, {"digest": "cd" * 32}, {"digest": SECRET}])
def test_of_a_backbone_nothing_else_is_told(said: dict[str, Any], folder: Path) -> None:
    connection = Connection(asked(wire.QUERY_BACKBONE), folder)
    connection.ask()
    record = ConfigRecord({"digest": DIGEST, "received": PIECE, **said})
    came = connection.answer(Message(RecordDict({"holding": record}), reply_to=connection.question))
    expected = Refusal(Reason.INTERNAL) if "digest" in said else Holding(DIGEST, PIECE)
    assert wire.decode_reply(came) == expected
    assert SECRET.encode() not in b"".join(connection.left.values())


def test_half_an_answer_becomes_a_refusal(folder: Path) -> None:
    connection = Connection(asked("train"), folder)
    connection.ask()
    came = connection.answer(wire.encode_reply(RELEASED["train"], connection.question), lost=1)
    assert wire.decode_reply(came) == Refusal(Reason.INTERNAL)


def test_an_answer_to_nothing_is_not_sent(folder: Path) -> None:
    connection = Connection(asked("train"), folder)
    with pytest.raises(ProtocolError, match="it was not sent"):
        connection.answer(wire.encode_reply(RELEASED["train"], connection.question))
    assert not connection.heads


def _unknown(_: int) -> Any:
    raise LookupError


@pytest.mark.parametrize("extra", [False, True])
def test_what_flowers_loop_sends_was_made_by_the_gateway(
    extra: bool, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module, name in PATCHED:
        monkeypatch.setattr(module, name, getattr(module, name))
    supernode.patch(folder)
    connection = Connection(asked("train"), folder)
    connection.store.preregister(1, connection.tree)
    for name, content in connection.objects.items():
        connection.store.put(name, content)
    state = InMemoryNodeState(connection.store)
    state.set_node_id(2)
    written = {"logs": ConfigRecord({"x": SECRET})} if extra else {}
    head = {wire.ARRAYS: wire.encode_head(whole_head(0.5))}
    reply = Message(RecordDict({**head, **written}), reply_to=connection.question)
    parts: dict[str, Any] = dict.fromkeys(
        ("node_config", "get_fab", "pull_object", "confirm_message_received", "trusted_entities")
    )
    ways: dict[str, Any] = {"state": state, "object_store": connection.store}
    with pytest.raises(LookupError):  # it asks which run that is, and this is as far as it need go
        flower._pull_and_store_message(
            **ways, **parts, receive=lambda: (connection.question, connection.tree), get_run=_unknown
        )
    flower._insert_message(reply, state, connection.store)
    flower._push_messages(
        **ways, send=connection.send, push_object=lambda _, __, name, content: connection.left.update({name: content})
    )
    came = message_from_objects(connection.heads[0].metadata.message_id, connection.left, math.inf)
    assert list(came.content) == [wire.ARRAYS]
    assert isinstance(wire.decode_reply(came), Update)

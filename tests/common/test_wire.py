"""The wire: what is sent arrives, and what is malformed is refused in a sentence."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from flwr.app import Array, ArrayRecord, ConfigRecord, Error, Message, MetricRecord, RecordDict
from flwr.common.serde import message_from_proto, message_to_proto
from hypothesis import given
from hypothesis import strategies as st

from common import wire
from common.errors import PrivacyError, ProtocolError
from common.messages import Hello, Metrics, Reason, Refusal, Reply, Statistics, Update
from common.noised_moments import Sketch, StatisticsTask
from simulations.engine import task_identity
from tests.federations import small_offer, small_task


@pytest.fixture(autouse=True)
def identity() -> Iterator[None]:
    with task_identity():
        yield


def over_the_wire(message: Message) -> Message:
    return message_from_proto(message_to_proto(message))


def train_message(config: ConfigRecord | None = None, arrays: ArrayRecord | None = None, round_: float = 1) -> Message:
    task = small_task()
    record = config if config is not None else wire.encode_task(task.offer, task.learning_rate)
    record[wire.ROUND] = round_
    head = arrays if arrays is not None else wire.encode_head(task.head)
    return over_the_wire(Message(RecordDict({wire.CONFIG: record, wire.ARRAYS: head}), 5, "train"))


def test_a_task_arrives_as_it_was_sent() -> None:
    sent, came = small_task(), wire.decode_train_task(train_message())
    assert came.offer == sent.offer
    assert (came.round, came.learning_rate, came.proximal_mu) == (1, sent.learning_rate, 0.0)
    assert {name: value.tolist() for name, value in came.head.items()} == {
        name: value.tolist() for name, value in sent.head.items()
    }


def test_a_head_is_written_as_flower_writes_it() -> None:
    """It is put together by fewer calls than Flower's own; what is sent must be the same, byte for byte."""
    head = {"weight": torch.arange(6.0).reshape(2, 3).T, "bias": torch.tensor(0.5)}
    ours = wire.encode_head(head)
    flowers = ArrayRecord({name: Array(value.contiguous().numpy()) for name, value in head.items()})
    contents = [RecordDict({wire.ARRAYS: ours}), RecordDict({wire.ARRAYS: flowers})]
    assert wire.filled(RecordDict(), {wire.ARRAYS: ours}) == contents[0] == contents[1]
    sent = [message_to_proto(Message(content, 5, "train")).content.SerializeToString() for content in contents]
    assert sent[0] == sent[1]
    assert contents[0].object_id == contents[1].object_id


def statistics_message(config: ConfigRecord) -> Message:
    return over_the_wire(Message(RecordDict({wire.CONFIG: config}), 5, wire.QUERY_STATISTICS))


def test_a_question_about_a_candidate_arrives_as_it_was_asked() -> None:
    task = StatisticsTask(small_offer(), 2, Sketch(2**40, 16))
    assert wire.decode_statistics_task(statistics_message(wire.encode_statistics_task(task))) == task


@pytest.mark.parametrize(
    "change", [{"sketch": {"seed": -1, "width": 4}}, {"candidate": 1.5}, {"learning_rate": 1.0}, {"sketch": None}]
)
def test_a_malformed_question_is_refused(change: dict[str, Any]) -> None:
    body = json.loads(str(wire.encode_statistics_task(StatisticsTask(small_offer(), 2, Sketch(0, 16)))[wire.TASK]))
    with pytest.raises(ProtocolError, match="expected a fedgraft task"):
        wire.decode_statistics_task(statistics_message(ConfigRecord({wire.TASK: json.dumps({**body, **change})})))
    with pytest.raises(ProtocolError, match="expected a fedgraft task"):
        wire.decode_statistics_task(statistics_message(ConfigRecord({"other": 1})))


@pytest.mark.parametrize("values", [np.zeros(3, np.float32), np.array([np.nan]), np.zeros((2, 2))])
def test_statistics_that_are_no_vector_of_finite_numbers_are_refused(values: Any) -> None:
    content = RecordDict({wire.STATISTICS: ArrayRecord({wire.STATISTICS: Array(values)})})
    with pytest.raises(ProtocolError, match="got another reply"):
        wire.decode_reply(over_the_wire(Message(content, reply_to=train_message())))


replies = st.one_of(
    st.builds(Hello, st.text(min_size=1, max_size=20), st.integers(1, 2**40)),
    st.builds(Metrics, st.floats(0, 1)),
    st.builds(Refusal, st.sampled_from(Reason)),
    st.lists(st.floats(allow_nan=False, allow_infinity=False), min_size=1, max_size=9).map(
        lambda values: Statistics(np.array(values))
    ),
    st.lists(st.floats(width=32, allow_nan=False, allow_infinity=False), min_size=1, max_size=9).map(
        lambda values: Update({"weight": torch.tensor(values)})
    ),
)


@given(reply=replies)
def test_every_reply_arrives_as_it_was_sent(reply: Reply) -> None:
    came = wire.decode_reply(over_the_wire(wire.encode_reply(reply, train_message())))
    if isinstance(reply, Update):
        assert isinstance(came, Update)
        assert torch.equal(came.head["weight"], reply.head["weight"])
    elif isinstance(reply, Statistics):
        assert isinstance(came, Statistics)
        assert came.values.tolist() == reply.values.tolist()
    else:
        assert came == reply


def test_an_error_of_flower_is_a_refusal_without_its_text() -> None:
    message = Message(Error(1, "patient 4711 is missing"), reply_to=train_message())
    assert wire.decode_reply(message) == Refusal(Reason.INTERNAL)
    for code, reason in ((7, Reason.APP), (5, Reason.ABSENT)):
        message = Message(Error(code, "anything"), reply_to=train_message())
        assert wire.decode_reply(message) == Refusal(reason)


def changed(**changes: Any) -> ConfigRecord:
    body = json.loads(str(wire.encode_task(small_offer(), 0.5)[wire.TASK]))
    return ConfigRecord({wire.TASK: json.dumps({**body, **changes})})


@pytest.mark.parametrize(
    "config",
    [
        ConfigRecord(),
        ConfigRecord({wire.TASK: "not json"}),
        ConfigRecord({wire.TASK: "[]"}),
        changed(surprise=1),
        changed(run_id=""),
        changed(run_id="\ud800"),
        changed(run_id="<b>"),
        changed(learning_rate=-1.0),
        changed(learning_rate=None),
        changed(model={"backbone": "pixels/8"}),
        changed(seed=1),
    ],
)
def test_a_malformed_task_is_refused(config: ConfigRecord) -> None:
    with pytest.raises(ProtocolError, match="expected a"):
        wire.decode_train_task(train_message(config))


@pytest.mark.parametrize("round_", [1.5, 1e300])
def test_a_round_that_is_no_whole_number_is_refused(round_: float) -> None:
    with pytest.raises(ProtocolError, match="whole number"):
        wire.decode_train_task(train_message(round_=round_))


@pytest.mark.parametrize(
    "change", [{"noise_multiplier": 0.0}, {"sampling_rate": 1.5}, {"delta": 0.9}, {"unit": "pixel"}]
)
def test_terms_that_promise_nothing_are_refused(change: dict[str, Any]) -> None:
    terms = {**small_offer().terms.to_dict(), **change}
    with pytest.raises((PrivacyError, ProtocolError)):
        wire.decode_train_task(train_message(changed(terms=terms)))


@pytest.mark.parametrize(
    "array",
    [
        np.array([1.0, np.nan], dtype=np.float32),
        np.array([np.inf], dtype=np.float32),
        np.array([1e300], dtype=np.float64),
        np.array([1, 2], dtype=np.int64),
        np.array(["a"]),
    ],
)
def test_a_head_of_anything_but_finite_floats_is_refused(array: np.ndarray) -> None:
    with pytest.raises(ProtocolError, match="finite floats"):
        wire.decode_train_task(train_message(arrays=ArrayRecord({"weight": Array(array)})))


def test_a_pickled_array_is_not_unpickled() -> None:
    import io

    buffer = io.BytesIO()
    np.save(buffer, np.array([{"a": 1}], dtype=object), allow_pickle=True)
    array = Array(dtype="float32", shape=(1,), stype="numpy.ndarray", data=buffer.getvalue())
    with pytest.raises(ProtocolError, match="cannot be read"):
        wire.decode_head(ArrayRecord({"weight": array}))


@pytest.mark.parametrize(
    "content",
    [
        RecordDict(),
        RecordDict({"refusal": ConfigRecord({"reason": "a patient named Smith"})}),
        RecordDict({"hello": ConfigRecord({"name": "a"})}),
        RecordDict({"hello": ConfigRecord({"name": "a", "declared-size": True})}),
        RecordDict({"metrics": MetricRecord({"accuracy": float("nan")})}),
    ],
)
def test_a_malformed_reply_is_refused(content: RecordDict) -> None:
    with pytest.raises(ProtocolError):
        wire.decode_reply(Message(content, reply_to=train_message()))


@given(
    shape=st.lists(st.integers(0, 5), max_size=3).map(tuple),
    by_columns=st.booleans(),
    kind=st.sampled_from([np.float32, np.float64]),
)
def test_arrays_are_read_as_numpy_reads_them(shape: tuple[int, ...], by_columns: bool, kind: type) -> None:
    values: np.ndarray = np.arange(np.prod(shape), dtype=kind).reshape(shape)
    array = Array(np.asfortranarray(values) if by_columns else values)
    assert np.array_equal(wire.decode_head(ArrayRecord({"weight": array}))["weight"].numpy(), array.numpy())


@pytest.mark.parametrize("cut", [0, 5, 9, 40, 130])
def test_an_array_that_was_cut_short_is_refused(cut: int) -> None:
    whole = Array(np.ones((3, 4), dtype=np.float32))
    array = Array(dtype="float32", shape=(3, 4), stype=whole.stype, data=whole.data[:cut])
    with pytest.raises(ProtocolError, match="cannot be read"):
        wire.decode_head(ArrayRecord({"weight": array}))

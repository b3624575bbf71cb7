"""The egress gate: nothing but what is listed leaves, whatever comes in."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.numpy
import safetensors.torch
import torch
from flwr.app import Array, ArrayRecord, ConfigRecord, Context, Message, RecordDict
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import nn

import client.app
from client import egress
from client.simulated_node import simulated_in_process
from common import wire
from common.config import to_flat
from common.errors import BackboneMismatchError, BudgetSpentError, ConfigError, PrivacyError, ProtocolError
from common.messages import Reason, Refusal, Statistics, Update
from common.noised_moments import SENSITIVITY, Sketch, StatisticsTask, packed_size
from simulations.engine import task_identity
from tests.federations import small_config, small_offer, small_task


@pytest.fixture(autouse=True)
def identity() -> Iterator[None]:
    with task_identity():
        yield


SENT = {"weight": torch.zeros(2, 3), "bias": torch.zeros(2)}


def test_an_update_shaped_as_what_was_sent_leaves() -> None:
    assert isinstance(egress.release_update({name: value + 1 for name, value in SENT.items()}, SENT), Update)


@pytest.mark.parametrize("kind", [torch.clone, lambda value: nn.Parameter(value.clone()), lambda value: value.numpy()])
def test_what_leaves_is_a_copy_of_the_kind_that_came(kind: Callable[[torch.Tensor], Any]) -> None:
    head = {name: kind(value + 1) for name, value in SENT.items()}
    update = egress.release_shaped(head, {name: tuple(value.shape) for name, value in SENT.items()})
    with torch.no_grad():
        for value in head.values():
            value[...] = 7
    assert all((value == 1).all() for value in update.head.values())
    assert {type(value) for value in update.head.values()} == {
        np.ndarray if isinstance(head["weight"], np.ndarray) else torch.Tensor
    }


NOT_ALLOWED: list[Any] = [
    {},
    {"weight": torch.zeros(2, 3)},
    {**SENT, "running_mean": torch.zeros(3)},
    {"weight": torch.zeros(3, 2), "bias": torch.zeros(2)},
    {"weight": torch.zeros(2, 3, dtype=torch.float64), "bias": torch.zeros(2)},
    {"weight": torch.zeros(2, 3, dtype=torch.float16), "bias": torch.zeros(2)},
    {"weight": torch.full((2, 3), float("nan")), "bias": torch.zeros(2)},
    {"weight": torch.zeros(2, 3), "bias": torch.full((2,), -float("inf"))},
    {"weight": "patient-4711", "bias": torch.zeros(2)},
    "patient-4711",
    None,
]


@pytest.mark.parametrize("head", NOT_ALLOWED)
def test_any_other_update_stays(head: Any) -> None:
    with pytest.raises(PrivacyError, match="nothing was released"):
        egress.release_update(head, SENT)


def moved(by: float) -> dict[str, torch.Tensor]:
    return {name: value + by for name, value in SENT.items()}


@pytest.mark.parametrize("place", range(3))
@pytest.mark.parametrize("head", NOT_ALLOWED)
def test_any_other_update_stays_in_company_too(head: Any, place: int) -> None:
    heads = [moved(1), moved(2)]
    heads.insert(place, head)
    with pytest.raises(PrivacyError, match="nothing was released"):
        egress.release_updates([egress.Leaving.like(each, SENT) for each in heads])


def test_updates_that_leave_together_are_copies_and_each_is_its_own() -> None:
    heads: list[dict[str, torch.Tensor]] = [moved(1), {"bias": SENT["bias"] + 2, "weight": SENT["weight"] + 2}]
    heads[1] = {name: nn.Parameter(value) for name, value in heads[1].items()}  # of another class: looked at alone
    for together in (heads, [moved(1), moved(2)]):
        updates = egress.release_updates([egress.Leaving.like(each, SENT) for each in together])
        with torch.no_grad():
            for value in together[0].values():
                value[...] = 7
        updates[0].head["weight"][...] = 5
        assert all((value == 2).all() for value in updates[1].head.values())
        assert (updates[0].head["bias"] == 1).all()
        assert [list(each.head) for each in updates] == [list(SENT)] * 2
        assert not any(value.requires_grad for each in updates for value in each.head.values())


def test_updates_to_heads_of_different_shapes_leave_together() -> None:
    other = {"weight": torch.zeros(4, 1), "bias": torch.zeros(4)}
    leaving = [egress.Leaving.like(moved(1), SENT), egress.Leaving.like(other, other)]
    assert [tuple(each.head["weight"].shape) for each in egress.release_updates(leaving)] == [(2, 3), (4, 1)]


def test_updates_that_leave_together_are_laid_out_as_each_by_itself() -> None:
    """Ledgers store the bytes in the order of memory."""
    sent = {"kernel": torch.zeros(2, 4, 3, 2)}
    head = {"kernel": torch.arange(48.0).view(2, 4, 3, 2).contiguous(memory_format=torch.channels_last)}
    for company in (1, 2):
        update = egress.release_updates([egress.Leaving.like(head, sent)] * company)[0]
        saved = safetensors.numpy.save({name: value.numpy() for name, value in update.head.items()})
        assert torch.equal(safetensors.torch.load(saved)["kernel"], head["kernel"])


def test_an_update_that_leaves_in_company_holds_no_value_of_another() -> None:
    for update in egress.release_updates([egress.Leaving.like(moved(by), SENT) for by in (1, 2)]):
        assert all(value.untyped_storage().nbytes() == 4 * value.numel() for value in update.head.values())


def test_names_keep_the_order_that_each_was_sent() -> None:
    reverse = dict(reversed(SENT.items()))
    leaving = [egress.Leaving.like(moved(1), SENT), egress.Leaving.like(moved(2), reverse)]
    assert [list(each.head) for each in egress.release_updates(leaving)] == [list(SENT), list(reverse)]


def test_what_needs_a_gradient_leaves_without_it() -> None:
    heads = [{name: value.requires_grad_() for name, value in moved(by).items()} for by in (1, 2)]
    updates = egress.release_updates([egress.Leaving.like(each, SENT) for each in heads])
    assert not any(value.requires_grad for each in updates for value in each.head.values())


class Disguised(dict[str, torch.Tensor]):
    """Shows the gate other values than it hands out."""

    def values(self) -> Any:
        """What was sent."""
        return SENT.values()

    def items(self) -> Any:
        """What was sent."""
        return SENT.items()


def test_a_head_in_disguise_stays_alone_and_in_company() -> None:
    head = Disguised({name: value + math.nan for name, value in SENT.items()})
    for company in ([], [moved(1)]):
        with pytest.raises(PrivacyError, match="finite"):
            egress.release_updates([egress.Leaving.like(each, SENT) for each in [head, *company]])


class Misshapen(torch.Tensor):
    """Says that it has the shape of what was sent."""

    @property
    def shape(self) -> Any:  # type: ignore[override]
        """Of the weight that was sent."""
        return SENT["weight"].shape


class Longer(dict[str, torch.Tensor]):
    """Hands out more than it shows."""

    def __getitem__(self, name: str) -> torch.Tensor:
        """As many numbers as one likes."""
        return torch.zeros(77)


@pytest.mark.parametrize("head", [{**SENT, "weight": torch.zeros(50, 3).as_subclass(Misshapen)}, Longer(SENT)])
def test_shapes_are_those_of_what_leaves(head: Any) -> None:
    for company in ([], [moved(1)]):
        with pytest.raises(PrivacyError, match="shaped"):
            egress.release_updates([egress.Leaving.like(each, SENT) for each in [head, *company]])


@pytest.mark.parametrize(("policy", "simulated"), [("none", True), ("none", False), ("exact", False)])
def test_exact_metrics_leave_only_a_simulation_that_asks_for_them(policy: Any, simulated: bool) -> None:
    with pytest.raises(PrivacyError, match="metrics policy"):
        egress.release_metrics(0.5, policy, simulated=simulated)
    assert egress.release_metrics(0.5, "exact", simulated=True).accuracy == 0.5


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (BudgetSpentError("4711"), Reason.BUDGET),
        (PrivacyError("4711"), Reason.POLICY),
        (BackboneMismatchError("4711"), Reason.BACKBONE),
        (ConfigError("4711"), Reason.DATA),
        (ProtocolError("4711"), Reason.PROTOCOL),
        (RuntimeError("4711"), Reason.INTERNAL),
    ],
)
def test_an_error_leaves_as_one_word(error: Exception, reason: Reason) -> None:
    refusal = egress.refuse(error)
    assert refusal == Refusal(reason)
    assert "4711" not in repr(refusal)


ALLOWED = {
    wire.ARRAYS: {"weight", "bias"},
    "hello": {"name", "declared-size"},
    "metrics": {"accuracy"},
    wire.STATISTICS: {wire.STATISTICS},
    "refusal": {"reason"},
}

values = st.one_of(
    st.integers(-(2**40), 2**40), st.floats(), st.text(max_size=20), st.binary(max_size=20), st.booleans()
)
settings_of = st.dictionaries(st.text(min_size=1, max_size=12), values, max_size=4)
KINDS = ["train", "evaluate", wire.QUERY_HELLO, wire.QUERY_STATISTICS]
question = StatisticsTask(small_offer(rounds=2, sampling_rate=1.0, clipping_norm=SENSITIVITY), 1, Sketch(0, 8))
configs = settings_of.map(lambda values: ConfigRecord({**values}))
shapes = st.lists(st.integers(0, 4), max_size=3).map(tuple)
arrays = shapes.map(lambda shape: ArrayRecord({"weight": Array(np.ones(shape, dtype=np.float32))}))
asks = [lambda: wire.encode_task(small_task().offer, 0.5), lambda: wire.encode_statistics_task(question)]
well_formed = st.sampled_from(asks).map(lambda ask: ask())
heads = st.just(None).map(lambda _: wire.encode_head(small_task().head))
contents = st.builds(
    lambda config, head, extra: RecordDict(
        {**({wire.CONFIG: config} if config else {}), **({wire.ARRAYS: head} if head else {}), "extra": extra}
    ),
    st.one_of(st.none(), configs, well_formed),
    st.one_of(st.none(), arrays, heads),
    configs,
)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(content=contents, kind=st.sampled_from(KINDS), partition=st.integers(-1, 5))
def test_whatever_comes_in_only_listed_values_go_out(
    content: RecordDict, kind: str, partition: int, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    context = Context(1, 2, {"partition-id": partition}, RecordDict(), to_flat(small_config()))
    with simulated_in_process(tmp_path), caplog.at_level(logging.CRITICAL + 1, logger="fedgraft.node"):
        reply = client.app.app(Message(content, 2, kind), context)
    assert not reply.has_error()
    assert len(reply.content) == 1
    ((name, record),) = reply.content.items()
    assert set(record) <= ALLOWED[name]
    assert name != wire.STATISTICS or kind == wire.QUERY_STATISTICS
    if name == "refusal":
        assert record["reason"] in {reason.value for reason in Reason}


def test_an_unforeseen_error_leaves_no_text_and_is_logged_here(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    broken = {**to_flat(small_config()), "data.source": str(tmp_path / "secret-patients.npz")}
    context = Context(1, 2, {"partition-id": 0}, RecordDict(), broken)
    task = small_task()
    record = wire.encode_task(task.offer, 0.5)
    message = Message(RecordDict({wire.CONFIG: record, wire.ARRAYS: wire.encode_head(task.head)}), 2, "train")
    with simulated_in_process(tmp_path):
        reply = client.app.app(message, context)
    assert wire.decode_reply(reply) == Refusal(Reason.DATA)
    assert "secret" not in str(reply)
    assert "secret" in caplog.text


def test_a_real_node_is_not_mistaken_for_a_simulated_one() -> None:
    context = Context(1, 2, {"partition-id": 0, "num-partitions": 4}, RecordDict(), to_flat(small_config()))
    task = small_task()
    record = wire.encode_task(task.offer, 0.5)
    message = Message(RecordDict({wire.CONFIG: record, wire.ARRAYS: wire.encode_head(task.head)}), 2, "train")
    assert wire.decode_reply(client.app.app(message, context)) == Refusal(Reason.DATA)


def test_a_question_about_a_candidate_is_answered_with_noised_statistics(tmp_path: Path) -> None:
    context = Context(1, 2, {"partition-id": 0}, RecordDict(), to_flat(small_config()))
    message = Message(RecordDict({wire.CONFIG: wire.encode_statistics_task(question)}), 2, wire.QUERY_STATISTICS)
    with simulated_in_process(tmp_path):
        reply = wire.decode_reply(client.app.app(message, context))
    assert isinstance(reply, Statistics)
    assert reply.values.shape == (packed_size(8, "classification", 10),)

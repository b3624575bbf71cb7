"""Aggregation: Flower's strategies, weights that are constants, memory that survives a resume."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
import torch
from flwr.app import ConfigRecord, Message, MetricRecord, RecordDict

from client.app import app
from common import wire
from common.errors import ConfigError
from common.messages import Update
from server.aggregation import aggregate, build_strategy, restore_strategy, strategy_state
from server.link import CohortView
from simulations.engine import InProcessGrid, task_identity
from tests.federations import small_config

HEADS = {1: [1.0, 2.0], 2: [3.0, -2.0], 3: [8.0, 6.0]}


@pytest.fixture(autouse=True)
def identity() -> Iterator[None]:
    with task_identity():
        yield


def replies() -> list[Message]:
    answers = []
    for node, values in HEADS.items():
        asked = Message(RecordDict({wire.CONFIG: ConfigRecord()}), node, "train")
        answers.append(wire.encode_reply(Update({"weight": torch.tensor(values)}), asked))
    return answers


def test_fedavg_is_the_weighted_mean_of_three_hand_computed_nodes() -> None:
    head = aggregate(build_strategy("fedavg"), 1, replies(), {1: 1.0, 2: 1.0, 3: 2.0})
    assert head is not None
    assert head["weight"].tolist() == [5.0, 3.0]


@pytest.mark.parametrize("name", ["krum", "multikrum", "bulyan"])
def test_one_malicious_node_is_left_out_where_it_is_expected(name: str) -> None:
    """Six nodes agree to a hundredth, the seventh sends what it likes."""
    sent = [[1.0 + node / 100, 2.0 - node / 100] for node in range(6)] + [[1e3, -1e3]]
    answers = []
    for node, values in enumerate(sent):
        asked = Message(RecordDict({wire.CONFIG: ConfigRecord()}), node + 1, "train")
        answers.append(wire.encode_reply(Update({"weight": torch.tensor(values)}), asked))
    head = aggregate(build_strategy(name, malicious=1), 1, answers, dict.fromkeys(range(1, 8), 1.0))
    assert head is not None
    weight = head["weight"].tolist()
    assert 1 <= weight[0] <= 1.05
    assert 1.95 <= weight[1] <= 2
    if name == "multikrum":
        assert weight == pytest.approx(np.mean(sent[:6], axis=0))
    if name == "krum":
        assert any(weight == pytest.approx(one) for one in sent[:6])


def test_fedmedian_takes_the_median() -> None:
    head = aggregate(build_strategy("fedmedian"), 1, replies(), dict.fromkeys(HEADS, 1.0))
    assert head is not None
    assert head["weight"].tolist() == [3.0, 2.0]


def rounds(strategy_name: str, count: int, interrupted_after: int | None) -> list[float]:
    """Rounds with the same replies each; optionally with a new strategy object in between."""
    strategy, head = build_strategy(strategy_name), {"weight": torch.zeros(2)}
    grid = InProcessGrid(app, small_config(), [0], run_folder=None)  # type: ignore[arg-type]  # no message is sent
    for round_ in range(1, count + 1):
        strategy.configure_train(round_, wire.encode_head(head), ConfigRecord(), CohortView(grid, list(HEADS)))
        aggregated = aggregate(strategy, round_, replies(), dict.fromkeys(HEADS, 1.0))
        assert aggregated is not None
        head = aggregated
        if round_ == interrupted_after:
            state = strategy_state(strategy)
            strategy = build_strategy(strategy_name)
            restore_strategy(strategy, state)
    return [float(value) for value in head["weight"]]


@pytest.mark.parametrize("name", ["fedavg", "fedavgm", "fedadam", "fedyogi", "fedadagrad"])
def test_a_strategy_goes_on_after_a_resume_as_if_nothing_had_happened(name: str) -> None:
    assert rounds(name, 4, interrupted_after=2) == rounds(name, 4, interrupted_after=None)


def test_the_control_that_forgets_its_memory_differs() -> None:
    strategy = build_strategy("fedadam")
    assert strategy_state(strategy) == {}
    assert rounds("fedadam", 4, None) != rounds("fedadam", 2, None)


def test_the_head_stays_float32_whatever_the_strategy_computes_in() -> None:
    for name in ("fedadam", "fedtrimmedavg", "krum", "multikrum"):
        strategy = build_strategy(name)
        grid = InProcessGrid(app, small_config(), [0], run_folder=None)  # type: ignore[arg-type]
        start = wire.encode_head({"weight": torch.zeros(2)})
        strategy.configure_train(1, start, ConfigRecord(), CohortView(grid, list(HEADS)))
        head = aggregate(strategy, 1, replies(), dict.fromkeys(HEADS, 1.0))
        assert head is not None
        assert head["weight"].dtype == torch.float32


def test_an_option_of_another_strategy_is_refused() -> None:
    with pytest.raises(ConfigError, match="proximal_mu is no option of the strategy 'fedavg'"):
        build_strategy("fedavg", proximal_mu=0.1)
    with pytest.raises(ConfigError, match="must be one of"):
        build_strategy("fedsgd")


def test_options_reach_flower() -> None:
    assert build_strategy("fedprox", proximal_mu=0.3).proximal_mu == 0.3  # type: ignore[attr-defined]
    adam = build_strategy("fedadam", server_learning_rate=0.02, server_momentum=0.5)
    assert (adam.eta, adam.beta_1) == (0.02, 0.5)  # type: ignore[attr-defined]


def test_a_reply_that_brings_its_own_weight_is_not_listened_to() -> None:
    answers = replies()
    from flwr.app import MetricRecord

    answers[0].content["metrics"] = MetricRecord({"weight": 1e9})
    head = aggregate(build_strategy("fedavg"), 1, answers, dict.fromkeys(HEADS, 1.0))
    assert head is not None
    assert np.allclose(head["weight"].numpy(), [4.0, 2.0])


@pytest.mark.parametrize("name", ["fedavg", "fedmedian", "fedtrimmedavg", "krum", "multikrum", "fedadam"])
def test_what_a_strategy_is_shown_gives_what_flowers_own_records_give(name: str) -> None:
    """Oracle: the same replies as plain records, read by Flower's own code."""
    weights = {1: 1.0, 2: 0.5, 3: 2.0}
    results = []
    for plain in (False, True):
        strategy = build_strategy(name)
        if name == "fedadam":
            strategy.current_arrays = {"weight": np.zeros(2, dtype=np.float32)}  # type: ignore[attr-defined]
        if not plain:
            head = aggregate(strategy, 1, replies(), weights)
            assert head is not None
            results.append(head["weight"].numpy())
            continue
        shown = replies()
        for reply in shown:
            metrics = MetricRecord({"weight": weights[reply.metadata.src_node_id]})
            reply.content = RecordDict({wire.ARRAYS: reply.content[wire.ARRAYS], "metrics": metrics})
        arrays, _ = strategy.aggregate_train(1, shown)
        assert arrays is not None
        results.append(arrays["weight"].numpy().astype(np.float32))
    assert results[0].tobytes() == results[1].tobytes()

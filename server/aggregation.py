"""Aggregation by Flower's own strategies, with weights that are public constants."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, cast

import numpy as np
from flwr.app import ArrayRecord, Message, MessageType, MetricRecord, RecordDict
from flwr.app.message.typeddict import TypedDict
from flwr.serverapp.strategy import (
    Bulyan,
    FedAdagrad,
    FedAdam,
    FedAvg,
    FedAvgM,
    FedMedian,
    FedProx,
    FedTrimmedAvg,
    FedYogi,
    Krum,
    MultiKrum,
)
from numpy.typing import NDArray
from torch import Tensor

from common import wire
from common.errors import ConfigError

WEIGHT = "weight"
METRICS = "metrics"


class _AllButTheMalicious(MultiKrum):
    """Multi-Krum over the n - f nearest to each other of n updates, f of them malicious (arXiv:1703.02757)."""

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Flower's, with as many updates selected as this round's can bear."""
        received = list(replies)
        self.num_nodes_to_select = max(1, len(received) - self.num_malicious_nodes)
        return super().aggregate_train(server_round, received)


_STRATEGIES: dict[str, type[FedAvg]] = {
    "fedavg": FedAvg,
    "fedavgm": FedAvgM,
    "fedprox": FedProx,
    "fedadam": FedAdam,
    "fedyogi": FedYogi,
    "fedadagrad": FedAdagrad,
    "fedmedian": FedMedian,
    "fedtrimmedavg": FedTrimmedAvg,
    "krum": Krum,
    "multikrum": _AllButTheMalicious,
    "bulyan": Bulyan,
}
_STATE = ("m_t", "v_t", "momentum_vector")  # what Flower's strategies carry from one round to the next


def build_strategy(
    name: str,
    *,
    server_learning_rate: float | None = None,
    server_momentum: float | None = None,
    proximal_mu: float | None = None,
    malicious: int | None = None,
) -> FedAvg:
    """Make a Flower strategy that trains on every node it is shown.

    Args:
        name: key of the strategy, as ``federation.strategy`` names it.
        server_learning_rate: of FedAvgM, FedAdam, FedYogi and FedAdagrad; None takes Flower's default.
        server_momentum: of FedAvgM (default 0.9 here), beta_1 of FedAdam and FedYogi.
        proximal_mu: of FedProx, required there.
        malicious: updates of a round that Krum, MultiKrum and Bulyan withstand; None is 0.

    Raises:
        ConfigError: an option that the strategy does not have, or an unknown strategy.
    """
    if name not in _STRATEGIES:
        raise ConfigError(f"federation.strategy must be one of {', '.join(_STRATEGIES)}, got {name!r}; choose one")
    names = _OPTIONS.get(name, {})
    given = {
        "server_learning_rate": server_learning_rate,
        "server_momentum": server_momentum,
        "proximal_mu": proximal_mu,
        "malicious": malicious,
    }
    options = {names[key]: value for key, value in given.items() if value is not None and key in names}
    for key, value in given.items():
        if value is not None and key not in names:
            raise ConfigError(f"federation.{key} is no option of the strategy {name!r}; leave it out")
    everybody = {"min_train_nodes": 1, "min_evaluate_nodes": 1, "min_available_nodes": 1, "weighted_by_key": WEIGHT}
    arguments: dict[str, Any] = {**everybody, **_DEFAULTS.get(name, {}), **options}
    return _STRATEGIES[name](**arguments)


_OPTIONS: dict[str, dict[str, str]] = {
    "fedavgm": {"server_learning_rate": "server_learning_rate", "server_momentum": "server_momentum"},
    "fedprox": {"proximal_mu": "proximal_mu"},
    "fedadam": {"server_learning_rate": "eta", "server_momentum": "beta_1"},
    "fedyogi": {"server_learning_rate": "eta", "server_momentum": "beta_1"},
    "fedadagrad": {"server_learning_rate": "eta"},
    "krum": {"malicious": "num_malicious_nodes"},
    "multikrum": {"malicious": "num_malicious_nodes"},
    "bulyan": {"malicious": "num_malicious_nodes"},
}
_DEFAULTS: dict[str, dict[str, float]] = {"fedavgm": {"server_momentum": 0.9}}


def aggregate(
    strategy: FedAvg, round_: int, replies: Iterable[Message], weights: Mapping[int, float]
) -> dict[str, Tensor] | None:
    """Combine the nodes' heads into the next global head.

    Args:
        strategy: as it configured this round.
        round_: 1-based.
        replies: updates, in an order that does not depend on who answered first.
        weights: node id to a public constant, never something the node measured.

    Returns:
        Name to float32 tensor; None when the strategy makes nothing of so few replies.
    """
    metrics = {weight: MetricRecord({WEIGHT: weight}) for weight in set(weights.values())}
    weighted = [_with_weight(reply, metrics[weights[reply.metadata.src_node_id]]) for reply in replies]
    arrays, _ = strategy.aggregate_train(round_, weighted)
    return None if arrays is None else wire.decode_head(arrays)


def apply_step(strategy: FedAvg, round_: int, head: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Let a strategy's optimiser make the next global head of one step that all nodes took together.

    Args:
        strategy: as it configured this round.
        round_: 1-based.
        head: the global head after the plain step.
    """
    content = RecordDict({wire.ARRAYS: wire.encode_head(head)})
    step = _with_weight(Message(content, dst_node_id=0, message_type=MessageType.TRAIN), MetricRecord({WEIGHT: 1.0}))
    arrays, _ = strategy.aggregate_train(round_, [step])
    assert arrays is not None  # of the strategies that a configuration allows, none wants more than one
    return wire.decode_head(arrays)


def strategy_state(strategy: FedAvg) -> dict[str, NDArray[np.floating[Any]]]:
    """What the strategy must not forget between rounds, flat: ``m_t/<array>`` or ``momentum_vector/<position>``."""
    state = {}
    for attribute in _STATE:
        value = getattr(strategy, attribute, None)
        items = value.items() if isinstance(value, dict) else enumerate(value or [])
        state.update({f"{attribute}/{key}": np.asarray(array) for key, array in items})
    return state


def restore_strategy(strategy: FedAvg, state: Mapping[str, NDArray[np.floating[Any]]]) -> None:
    """Give a new strategy the memory that ``strategy_state`` took from an old one."""
    found: dict[str, dict[str, NDArray[np.floating[Any]]]] = {}
    for key, array in state.items():
        attribute, _, name = key.partition("/")
        found.setdefault(attribute, {})[name] = array
    for attribute, arrays in found.items():
        in_order = [arrays[str(index)] for index in range(len(arrays))] if attribute == "momentum_vector" else arrays
        setattr(strategy, attribute, in_order)


class _Weighted(RecordDict):
    """An update and its weight. Flower's own views by kind check and copy all records, several times a reply."""

    @property
    def array_records(self) -> TypedDict[str, ArrayRecord]:
        """The update."""
        return cast("TypedDict[str, ArrayRecord]", {wire.ARRAYS: self[wire.ARRAYS]})

    @property
    def metric_records(self) -> TypedDict[str, MetricRecord]:
        """The weight."""
        return cast("TypedDict[str, MetricRecord]", {METRICS: self[METRICS]})


def _with_weight(reply: Message, weight: MetricRecord) -> Message:
    update = wire.record(reply.content, wire.ARRAYS, ArrayRecord)
    arrays = wire.filled(ArrayRecord(), {name: wire.ReadArray.of(array) for name, array in update.items()})
    reply.content = wire.filled(_Weighted(), {wire.ARRAYS: arrays, METRICS: weight})
    return reply

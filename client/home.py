"""A node's own place: its name, its records, its policy, its ledger and its randomness.

None of it comes from the server. That a node is simulated, so that a seed may replace cryptographic randomness, is
known from the engine around it (a context variable set in this very process, or a Ray worker), never from a message or
a configuration that was received.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from client.last_look import Speaker
from client.ledger import Ledger
from client.open_ledgers import OpenLedgers
from client.policy import Policy
from client.secagg_node import SumNode
from client.secagg_record import SECAGG_RECORDS
from common import places
from common.config import RunConfig, from_flat
from common.data.federation import Federation, assemble, source_features, source_targets
from common.data.patients import numbered
from common.errors import BackboneMismatchError, ConfigError, PrivacyError
from common.features import as_tensor, cached_backbone
from common.messages import ModelSpec
from common.privacy.noise import Randomness, SeededRandomness, SystemRandomness, WordSource
from common.privacy.statement import Balance
from common.secagg.simulated import simulated_roster, simulated_sign

NODE_LOG = "nodes.log"
_in_process: ContextVar[Path | None] = ContextVar("in_process", default=None)
_kept_open: ContextVar[OpenLedgers | None] = ContextVar("kept_open", default=None)


@dataclass(frozen=True)
class Records:
    """A node's records as the head sees them.

    Attributes:
        features: float32, shape (N, D) or more rows, read-only, possibly memory-mapped.
        rows: which rows of ``features`` are this node's, shape (n,).
        targets: of this node's records, shape (n, ...).
        patients: number of the patient of each record, shape (n,), 0 … P-1; None where the data name none.
    """

    features: NDArray[np.float32]
    rows: NDArray[np.int64]
    targets: Tensor
    patients: NDArray[np.int64] | None = None

    def __len__(self) -> int:
        """Number of records (sensitive)."""
        return len(self.rows)

    def take(self, sampled: NDArray[np.bool_] | NDArray[np.int64]) -> tuple[Tensor, Tensor]:
        """Features (B, D) and targets (B, ...) of the sampled records: by flags, or by their places."""
        targets = torch.from_numpy(self.targets.numpy()[sampled])  # NumPy takes a fifth of torch's time for a few
        return as_tensor(self.features, self.rows[sampled]), targets

    def everything(self) -> tuple[Tensor, Tensor]:
        """Features (n, D) and targets (n, ...) of all records."""
        return as_tensor(self.features, self.rows), self.targets


def _no_sums() -> SumNode:
    raise PrivacyError("this node is not set up for secure aggregation; take part in runs of local trust")


@dataclass(frozen=True)
class Node:
    """What a round at this node needs.

    Attributes:
        name: as the server knows the node.
        declared_size: number of units (records, or patients) that the operator declares; public.
        classes: label names of its data, in the order of the labels; public.
        task: what its labels say; public.
        policy: what the operator allows.
        simulated: whether an engine on one machine plays this node.
        open_ledger: opens the budget of the data set.
        records: computes, or finds in the cache, the features that a model needs.
        randomness: for a round's sampling and noise, in this order.
        own: the model with its backbone named as this node knows it; refuses one that nobody approved.
        sums: this node's half of secure aggregation.
        share_of_noise: for a round's share of the noise in a sum.
        untouched: what the ledger would say that is not there yet; None where there is one, or one is made at once.
        answer_after_s: answers that records went into leave at a multiple of so many seconds; 0 for at once.
    """

    name: str
    declared_size: int
    classes: tuple[str, ...]
    task: str
    policy: Policy
    simulated: bool
    open_ledger: Callable[[], AbstractContextManager[Ledger]]
    records: Callable[[ModelSpec], Records]
    randomness: Callable[[int], tuple[Randomness, Randomness]]
    own: Callable[[ModelSpec], ModelSpec] = lambda model: model
    sums: Callable[[], SumNode] = _no_sums
    share_of_noise: Callable[[int], WordSource] = lambda _: SystemRandomness()
    untouched: Callable[[], Balance | None] = lambda: None
    answer_after_s: float = 0.0

    @property
    def speaker(self) -> Speaker:
        """Who answers, and whether exact metrics may leave."""
        return Speaker(self.name, self.declared_size, exact=self.simulated and self.policy.metrics == "exact")


@contextmanager
def simulated_in_process(run_folder: Path, ledgers: OpenLedgers | None = None) -> Iterator[None]:
    """Mark, for the calls inside the block, that this process itself plays the nodes.

    Args:
        run_folder: where their ledgers are.
        ledgers: keeps them open from one call to the next; without, each call opens its own.
    """
    tokens = _in_process.set(run_folder), _kept_open.set(ledgers)
    try:
        yield
    finally:
        _in_process.reset(tokens[0])
        _kept_open.reset(tokens[1])


def open_node(
    run_id: int, run_config: Mapping[str, str | int | float | bool], node_config: Mapping[str, object]
) -> Node:
    """Find out which node this process is.

    Args:
        run_id: Flower's id of the run.
        run_config: Flower's run configuration, as received.
        node_config: Flower's node configuration, given by the engine or by the operator's command.

    Raises:
        ConfigError: this is no simulation, and the operator has not set up a node here.
    """
    run_folder, folder = _simulation_folder(run_id), places.node_folder()
    if run_folder is None and folder is not None:
        from client.own_node import open_own_node  # it is made of what is defined here

        return open_own_node(folder)
    if run_folder is None:
        raise ConfigError(
            "expected a node set up by its operator, found none; set one up with `fedgraft node init`, or simulate "
            "with `fedgraft simulate`"
        )
    try:
        partition = int(str(node_config["partition-id"]))
    except (KeyError, ValueError):
        raise ConfigError(
            "expected a partition-id from the simulation engine, got none; use `fedgraft simulate`"
        ) from None
    return _simulated_node(tuple(run_config.items()), partition, run_folder)


@lru_cache(maxsize=16_384)
def _simulated_node(flat: tuple[tuple[str, str | int | float | bool], ...], partition: int, run_folder: Path) -> Node:
    config = _config(flat)
    federation = assemble(config)
    if not 0 <= partition < len(federation.names):
        raise ConfigError(
            f"expected a partition-id below {len(federation.names)}, the number of nodes in the configuration, got "
            f"{partition}; start as many nodes as it names"
        )
    name = federation.names[partition]
    share = federation.shares[name]
    privacy = config.privacy
    return Node(
        name=name,
        declared_size=federation.units(share, privacy.unit),
        classes=federation.data.classes,
        task=federation.data.task,
        policy=Policy(
            privacy.epsilon,
            privacy.delta,
            privacy.unit,
            metrics=config.evaluation.node_metrics,
            trusts=frozenset({privacy.trust}),
            min_colluders=privacy.most_colluders,
        ),
        simulated=True,
        open_ledger=lambda: _simulated_ledger(run_folder, name, config),
        records=lambda model: _simulated_records(federation, share, model),
        randomness=lambda round_: _randomness(config.federation.seed, name, round_),
        sums=lambda: SumNode(
            name,
            simulated_sign(name),
            simulated_roster(federation.names),
            run_folder / SECAGG_RECORDS / name,
            durable=False,
        ),
        share_of_noise=lambda round_: _share_of_noise(config.federation.seed, name, round_),
        untouched=lambda: untouched_ledger(run_folder, name, config),
    )


def _simulated_ledger(run_folder: Path, name: str, config: RunConfig) -> AbstractContextManager[Ledger]:
    kept = _kept_open.get()
    if kept is None:
        return open_simulated_ledger(run_folder, name, config)
    return kept.borrow(name, lambda: open_simulated_ledger(run_folder, name, config, alone=True))


def open_simulated_ledger(run_folder: Path, name: str, config: RunConfig, *, alone: bool = False) -> Ledger:
    """Open the ledger of a simulated node, which survives kill -9 but not a power cut.

    Whoever simulates is the operator of every node: the cap of the configuration is signed off with it.
    """
    path = _ledger_file(run_folder, name)
    path.parent.mkdir(mode=0o700, exist_ok=True)
    ledger = Ledger.open(
        path,
        f"simulated/{name}",
        delta=config.privacy.delta,
        epsilon_cap=config.privacy.epsilon,
        durable=False,
        alone=alone,
    )
    ledger.raise_cap("the simulation's configuration")
    return ledger


def untouched_ledger(run_folder: Path, name: str, config: RunConfig) -> Balance | None:
    """What the ledger of a simulated node would say that was never charged, and so was not made; None if it is there.

    Of many nodes a server asks few in a round: the others need no file.
    """
    if _ledger_file(run_folder, name).exists():
        return None
    return Balance(dataset_id=f"simulated/{name}", delta=config.privacy.delta, epsilon_cap=config.privacy.epsilon)


def _ledger_file(run_folder: Path, name: str) -> Path:
    return run_folder / "ledgers" / f"{name}.sqlite"


def _randomness(seed: int | None, name: str, round_: int) -> tuple[Randomness, Randomness]:
    if seed is None:
        return SystemRandomness(), SystemRandomness()
    return SeededRandomness(seed, name, round_, "sampling"), SeededRandomness(seed, name, round_, "noise")


def _share_of_noise(seed: int | None, name: str, round_: int) -> WordSource:
    return SystemRandomness() if seed is None else SeededRandomness(seed, name, round_, "share of noise")


def _simulated_records(federation: Federation, share: NDArray[np.int64], model: ModelSpec) -> Records:
    check_backbone(model)
    features = source_features(federation, model.backbone, model.cut, model.precision)
    targets = source_targets(federation, model.backbone)
    own = torch.from_numpy(targets.numpy()[share])
    return Records(features, share, own, numbered(federation.data.patient, share))


def check_backbone(model: ModelSpec) -> None:
    """Make sure that this node's copy of a backbone is the one that a model means.

    Raises:
        BackboneMismatchError: this node's copy has another digest.
    """
    backbone = cached_backbone(model.backbone)
    if backbone.digest != model.backbone_digest:
        raise BackboneMismatchError(
            f"expected the backbone {model.backbone} with digest {model.backbone_digest}, this node has "
            f"{backbone.digest}; install the same release on both sides"
        )


@lru_cache(maxsize=16)
def _config(flat: tuple[tuple[str, str | int | float | bool], ...]) -> RunConfig:
    return from_flat(dict(flat))


def _simulation_folder(run_id: int) -> Path | None:
    folder = _in_process.get()
    if folder is None and _inside_ray():
        folder = places.run_folder(run_id)
        _log_into(folder)
    return folder


@lru_cache(maxsize=1)
def _log_into(run_folder: Path) -> None:
    """Keep what the nodes of a Ray worker say of their refusals; in process, the simulation itself does it."""
    handler = logging.FileHandler(run_folder / NODE_LOG, delay=True)
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    log = logging.getLogger("fedgraft.node")
    log.addHandler(handler)
    log.propagate = False


def _inside_ray() -> bool:
    # a Ray worker has imported and initialised it long before our code; a SuperNode never does
    ray = sys.modules.get("ray")
    return ray is not None and bool(ray.is_initialized())

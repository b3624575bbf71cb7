"""A node that an engine plays: its share of the configuration's data, and a ledger in the run's folder.

The engine is known from a context variable set in this very process, or from a Ray worker around it.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from contextvars import ContextVar
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from client.ledger import Ledger
from client.node import Node, Records, check_backbone
from client.open_ledgers import OpenLedgers
from client.policy import Policy
from client.secagg_node import SumNode
from client.secagg_record import SECAGG_RECORDS
from common import paths
from common.config import RunConfig, from_flat
from common.data.federation import Federation, assemble, source_features, source_targets
from common.data.patients import numbered
from common.errors import ConfigError
from common.messages import ModelSpec
from common.privacy.noise import Randomness, SeededRandomness, SystemRandomness, WordSource
from common.privacy.statement import Balance
from common.secagg.simulated import simulated_roster, simulated_sign

NODE_LOG = "nodes.log"
_in_process: ContextVar[Path | None] = ContextVar("in_process", default=None)
_kept_open: ContextVar[OpenLedgers | None] = ContextVar("kept_open", default=None)


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


@lru_cache(maxsize=16)
def _config(flat: tuple[tuple[str, str | int | float | bool], ...]) -> RunConfig:
    return from_flat(dict(flat))


def simulation_folder(run_id: int) -> Path | None:
    """The run folder of the engine that plays this process's nodes; None where there is no engine.

    Args:
        run_id: Flower's id of the run.
    """
    folder = _in_process.get()
    if folder is None and _inside_ray():
        folder = paths.run_folder(run_id)
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


@lru_cache(maxsize=16_384)
def simulated_node(flat: tuple[tuple[str, str | int | float | bool], ...], partition: int, run_folder: Path) -> Node:
    """A node of a simulation.

    Args:
        flat: the run's configuration, as Flower carries it.
        partition: number of the node.
        run_folder: where its ledger is.

    Raises:
        ConfigError: the configuration names fewer nodes.
    """
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

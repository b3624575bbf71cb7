"""A real node: its folder, its records, its durable ledger, and randomness from the operating system alone."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path

import numpy as np

from client.approvals import read_approvals
from client.home import Node, Records
from client.ledger import Ledger
from client.node_config import NodeConfig, load_node_config
from client.node_folder import is_paused
from client.policy import Policy
from common.data.agreed import load_agreed
from common.data.local import LocalData
from common.errors import PrivacyError
from common.features import cached_backbone, default_cache
from common.messages import ModelSpec
from common.privacy.noise import SystemRandomness
from common.targets import make_targets

LEDGERS = "ledgers"


def open_own_node(folder: Path) -> Node:
    """The node whose folder this is; nothing in it comes from a server, and nothing is remembered between messages.

    Raises:
        ConfigError: its configuration, approvals or records cannot be used.
        PrivacyError: its records name patients, and nobody acknowledged that single records are protected.
    """
    config, approvals = load_node_config(folder), read_approvals(folder)
    if is_paused(folder):
        raise PrivacyError("the operator has paused this node; run `fedgraft node resume` to take part again")
    data = records_of(folder, config)
    privacy = config.privacy
    return Node(
        name=config.node.name,
        declared_size=config.data.declared_size,
        classes=data.classes,
        task=data.task,
        policy=Policy(
            max_epsilon=privacy.max_epsilon,
            delta=privacy.delta,
            unit=privacy.unit,
            min_noise_multiplier=privacy.min_noise_multiplier,
            max_clipping_norm=privacy.max_clipping_norm,
            backbones=frozenset(approvals.backbones),
            partial=privacy.partial,
        ),
        simulated=False,
        open_ledger=lambda: open_own_ledger(folder, config),
        records=lambda model: _records(data, model),
        randomness=lambda _: (SystemRandomness(), SystemRandomness()),
        own=approvals.own,
    )


def records_of(folder: Path, config: NodeConfig) -> LocalData:
    """The records that a node's configuration names; read anew when its files change.

    Raises:
        ConfigError: they cannot be read, or have classes that nobody agreed on.
        PrivacyError: they name patients, and nobody acknowledged that single records are protected.
    """
    section = config.data
    source = folder / Path(section.source).expanduser()
    data = _load(str(source), tuple(sorted(section.keys.items())), section.classes, _age(source))
    if data.patient is not None and not config.privacy.acknowledge_record_unit:
        raise PrivacyError(
            "the data name patients, and this release protects one record of a patient only; set "
            "privacy.acknowledge_record_unit = true in node.toml if that is what you mean"
        )
    return data


def open_own_ledger(folder: Path, config: NodeConfig) -> Ledger:
    """Open the ledger of a node's data set, which survives a power cut.

    Raises:
        PrivacyError: its chain is broken, or it is another data set's.
        ConfigError: it cannot be read or written.
    """
    place = folder / LEDGERS
    place.mkdir(mode=0o700, exist_ok=True)
    name, privacy = config.data.id, config.privacy
    return Ledger.open(place / f"{name}.sqlite", name, delta=privacy.delta, epsilon_cap=privacy.max_epsilon)


@lru_cache(maxsize=2)
def _load(source: str, keys: tuple[tuple[str, str], ...], classes: tuple[str, ...], _: tuple[float, int]) -> LocalData:
    return load_agreed(source, dict(keys), classes, Path())


def _age(source: Path) -> tuple[float, int]:
    """When a file or anything in a folder changed last, and how many files there are."""
    files = [source, *source.rglob("*")] if source.is_dir() else [source]
    times = [path.stat().st_mtime for path in files if path.exists()]
    return max(times, default=0.0), len(times)


def _records(data: LocalData, model: ModelSpec) -> Records:
    backbone = cached_backbone(model.backbone)
    features = default_cache().features(backbone, model.cut, data, precision=model.precision)
    return Records(features, np.arange(len(data), dtype=np.int64), make_targets(data, backbone))

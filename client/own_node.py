"""A real node: its folder, its records, its durable ledger, and randomness from the operating system alone."""

from __future__ import annotations

from pathlib import Path

from client.approvals import read_approvals
from client.home import Node
from client.ledger import Ledger
from client.node_config import NodeConfig, load_node_config
from client.node_folder import is_paused
from client.own_records import OwnRecords
from client.policy import Policy
from common.errors import PrivacyError
from common.privacy.noise import SystemRandomness

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
    records, privacy = OwnRecords(folder, config), config.privacy
    records.check_unit()
    return Node(
        name=config.node.name,
        declared_size=config.data.declared_size,
        classes=config.data.classes,
        task=records.facts["task"],
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
        records=records.of,
        randomness=lambda _: (SystemRandomness(), SystemRandomness()),
        own=approvals.own,
    )


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

"""A real node: its folder, its records, its durable ledger, and randomness from the operating system alone."""

from __future__ import annotations

from functools import partial
from pathlib import Path

from client.anchor import ANCHORS, older_ledger, read_anchor
from client.approvals import read_approvals
from client.ledger import Ledger
from client.node import Node
from client.node_config import NodeConfig, load_node_config
from client.node_folder import check_awake
from client.own_records import OwnRecords
from client.peers import approved_peers
from client.policy import Policy
from client.secagg_node import SumNode
from client.secagg_record import SECAGG_RECORDS
from client.signer import ask_signer
from common.errors import ConfigError
from common.privacy.noise import SystemRandomness
from common.privacy.statement import Balance, Statement


def open_own_node(folder: Path) -> Node:
    """The node whose folder this is; nothing in it comes from a server, and nothing is remembered between messages.

    Raises:
        ConfigError: its configuration, approvals or records cannot be used.
        PrivacyError: its records name patients, and nobody acknowledged that single records are protected.
    """
    config, approvals = load_node_config(folder), read_approvals(folder)
    check_awake(folder)
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
            backbones=frozenset({*approvals.backbones, *approvals.sent}),
            partial=privacy.partial,
            plans=frozenset(approvals.plans) if privacy.approved_plans_only else None,
            trusts=frozenset(privacy.trusts),
            min_nodes=privacy.min_nodes,
            min_colluders=privacy.min_colluders,
        ),
        simulated=False,
        open_ledger=lambda: open_own_ledger(folder, config),
        records=records.of,
        randomness=lambda _: (SystemRandomness(), SystemRandomness()),
        own=lambda model: approvals.own(model, folder),
        sums=lambda: SumNode(
            config.node.name, partial(ask_signer, folder), approved_peers(folder), folder / SECAGG_RECORDS
        ),
        answer_after_s=privacy.answer_after_s,
    )


def open_own_ledger(folder: Path, config: NodeConfig) -> Ledger:
    """Open the ledger of a node's data set, which survives a power cut.

    Raises:
        PrivacyError: its chain is broken, or it is another data set's, or lacks what this node has seen of it.
        ConfigError: it cannot be read or written.
    """
    path, privacy = ledger_file(folder, config), config.privacy
    anchor = anchor_file(folder, config)
    if (seen := read_anchor(anchor)) is not None and not path.exists():
        raise older_ledger(path, anchor, seen)
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(
            f"the folder of ledgers {path.parent} cannot be made ({error.strerror}); see data.ledgers"
        ) from error
    return Ledger.open(path, config.data.id, delta=privacy.delta, epsilon_cap=privacy.max_epsilon, anchor=anchor)


def ledger_file(folder: Path, config: NodeConfig) -> Path:
    """Where the ledger of a node's data set is; nodes of several federations on the same data must share it."""
    return folder / Path(config.data.ledgers).expanduser() / f"{config.data.id}.sqlite"


def anchor_file(folder: Path, config: NodeConfig) -> Path:
    """Where a node keeps how far it has seen that ledger."""
    return folder / ANCHORS / f"{config.data.id}.json"


def has_ledger(folder: Path, config: NodeConfig) -> bool:
    """Whether there is a ledger, or was one."""
    return ledger_file(folder, config).exists() or anchor_file(folder, config).exists()


def spent_so_far(folder: Path, config: NodeConfig) -> Statement:
    """What a node's ledger says; of one that is not there yet, that nothing was spent, and none is made.

    Raises:
        PrivacyError: its chain is broken, or it is another data set's, or lacks what this node has seen of it.
        ConfigError: it cannot be read.
    """
    if has_ledger(folder, config):
        with open_own_ledger(folder, config) as ledger:
            return ledger.statement()
    privacy = config.privacy
    none = Balance(dataset_id=config.data.id, delta=privacy.delta, epsilon_cap=privacy.max_epsilon)
    return none.statement()

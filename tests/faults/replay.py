"""What a run's head must be, worked out again in this process from who took part in each round."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from client.node_config import load_node_config
from client.own_node import open_own_node, spent_so_far
from client.training import private_update
from common.config import load_config
from common.data.federation import held_by_server
from common.durable import read_lines
from common.messages import TrainTask
from common.model import trained_head
from common.privacy.noise import SeededRandomness
from server.checkpoints import ASKED, RunStore
from server.coordinator import propose
from server.run_folder import CONFIG, run_identity
from tests.faults.steps import SEED


@dataclass(frozen=True)
class Excess:
    """What a node paid for in a run, and the server does not have.

    Attributes:
        node: its name.
        open: rounds that are reserved, and were never committed.
        unused: rounds that are committed, but whose reply the server did not use.
    """

    node: str
    open: tuple[int, ...]
    unused: tuple[int, ...]

    def __str__(self) -> str:
        parts = [f"{len(self.open)} open"] if self.open else []
        parts += [f"{len(self.unused)} unused"] if self.unused else []
        return f"{self.node}: {', '.join(parts)}"


def cohorts(run: Path) -> list[list[str]]:
    """Who took part in each round, as the run's folder documents it."""
    asked = {line["round"]: line["nodes"] for line in read_lines(run / ASKED)}  # the last try of a round counts
    return [
        sorted(name for name in asked[line["round"]] if name not in line["failed"])
        for line in read_lines(run / "rounds.jsonl")
    ]


def replayed(run: Path, homes: Mapping[str, Path]) -> dict[str, Tensor]:
    """The head after the last round, if each documented cohort's nodes train undisturbed; nodes weigh the same."""
    config = load_config(run / CONFIG)
    proposal = propose(config, run_identity(run), held_by_server(config))
    nodes = {name: open_own_node(home) for name, home in homes.items()}
    offer, head = proposal.plan.offer, proposal.start
    for line, names in zip(read_lines(run / "rounds.jsonl"), cohorts(run), strict=True):
        heads = []
        for name in names:
            node, module = nodes[name], trained_head(offer.model, head)
            task = TrainTask(offer, line["round"], head, line["learning_rate"])
            draws = [SeededRandomness(SEED, name, line["round"], use) for use in ("sampling", "noise")]
            plan = node.policy.accept(offer, node.declared_size)
            heads.append(private_update(module, task, node.records(node.own(offer.model)), plan, (draws[0], draws[1])))
        head = {key: torch.stack([one[key] for one in heads]).mean(0) for key in head}
    return head


def same(run: Path, homes: Mapping[str, Path]) -> bool:
    """Whether the run's head is the documented cohorts', but for the last bits of sums in another order."""
    final = RunStore(run, run_identity(run)).latest()
    assert final is not None
    wanted = replayed(run, homes)
    return all(torch.allclose(final.head[key], value, atol=1e-5) for key, value in wanted.items())


def uncovered(run: Path, homes: Mapping[str, Path]) -> list[str]:
    """What the server has and a ledger does not: must be nothing."""
    names, run_id = cohorts(run), run_identity(run)
    return [
        f"{name} round {round_}"
        for name, home in homes.items()
        for round_, taken in enumerate(names, start=1)
        if name in taken and (run_id, round_) not in _statement(home).committed
    ]


def excesses(run: Path, homes: Mapping[str, Path]) -> list[Excess]:
    """What each ledger holds beyond what the server has."""
    names, run_id = cohorts(run), run_identity(run)
    found = []
    for name, home in homes.items():
        said = _statement(home)
        received = {round_ for round_, taken in enumerate(names, start=1) if name in taken}
        mine = [round_ for one, round_ in said.committed if one == run_id]
        opened = tuple(round_ for one, round_ in said.open_reservations if one == run_id)
        unused = tuple(round_ for round_ in mine if round_ not in received)
        if opened or unused:
            found.append(Excess(name, opened, unused))
    return found


def failures(run: Path) -> list[str]:
    """Each node's reason for each round that it missed."""
    lines: Sequence[dict[str, Any]] = read_lines(run / "rounds.jsonl")
    return [f"{name} {reason}" for line in lines for name, reason in line["failed"].items()]


def failure(run: Path) -> str:
    """What the run says that it ended with; empty where it did not fail."""
    path = run / "failure.json"
    return str(json.loads(path.read_text())["message"]) if path.exists() else ""


def _statement(home: Path) -> Any:
    return spent_so_far(home, load_node_config(home))

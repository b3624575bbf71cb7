"""Runs whose head is solved from one noised sum, from configuration to predictions, under both trust models."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pydantic import ValidationError

from client.simulated_node import open_simulated_ledger
from common.config import RunConfig
from common.errors import PrivacyError, ProtocolError
from common.heads import head_arrays
from common.messages import SumTask
from common.model import make_head
from common.model_folder import load_model
from server.checkpoints import Checkpoint, RunStore
from server.coordinator import propose
from server.run_folder import run_identity
from simulations.engine import run_in_process
from simulations.preflight import check
from simulations.run import Watcher, simulate
from simulations.without_privacy import train_without_privacy
from tests.federations import small_config

QUIET = Watcher(lambda line: None, lambda name, done, total: None)


def config(head: str, trust: str = "local", **privacy: Any) -> RunConfig:
    terms = {"trust": trust, "sampling_rate": 1.0, "clipping_norm": "auto", "epsilon": 8.0, **privacy}
    return small_config(federation={"rounds": 1}, model={"head": head}, privacy=terms)


@pytest.mark.parametrize("trust", ["local", "secagg"])
@pytest.mark.parametrize("head", ["prototype", "ridge"])
def test_a_run_ends_with_a_linear_head_that_predicts(tmp_path: Path, head: str, trust: str) -> None:
    chosen = config(head, trust)
    result = simulate(chosen, check(chosen), tmp_path, "inprocess", QUIET)
    privacy = result["privacy"]
    assert result["accuracy"]["federated"] > 0.8
    assert (result["head"], result["rounds"], privacy["steps"], privacy["trust"]) == (head, 1, 1, trust)
    assert all(7.9 < epsilon <= 8.0 for epsilon in privacy["epsilon_per_node"].values())
    model = load_model(tmp_path / "model")
    assert model.facts.model.head == "linear"
    assert {name: tuple(value.shape) for name, value in model.head.named_parameters()} == {
        "weight": (10, 64),
        "bias": (10,),
    }
    with open_simulated_ledger(tmp_path, "node-000", chosen) as ledger:
        said = ledger.statement()
    assert (said.steps, len(said.committed), said.open_reservations) == (1, 1, ())


@pytest.mark.parametrize(
    ("key", "changes"),
    [
        ("federation.rounds: expected 1", {"federation": {"rounds": 2}}),
        ("federation.strategy: expected", {"federation": {"rounds": 1, "strategy": "fedmedian"}}),
        ("training.local_steps: expected 1", {"training": {"local_steps": 3}}),
        ("training.learning_rate: expected", {"training": {"learning_rate": 0.5}}),
        (
            "evaluation.patience: expected nothing",
            {"evaluation": {"patience": 2}, "data": {"validation_fraction": 0.1}},
        ),
    ],
)
def test_what_has_no_meaning_is_refused(key: str, changes: dict[str, dict[str, Any]]) -> None:
    base: dict[str, dict[str, Any]] = {"federation": {"rounds": 1}, "model": {"head": "ridge"}}
    with pytest.raises(ValidationError, match=key):
        small_config(**{**base, **changes})


def test_patients_are_a_unit_like_any_other(tmp_path: Path) -> None:
    generator = np.random.default_rng(0)
    labels = np.arange(240) % 3
    images = (labels[:, None, None] * 60 + generator.integers(0, 40, (240, 4, 4))).astype(np.uint8)
    patients = np.repeat(np.arange(80), 3)
    np.savez(tmp_path / "some.npz", images=images, labels=np.repeat(labels[:80], 3), patient=patients)
    chosen = small_config(
        federation={"rounds": 1, "nodes": 3},
        data={"source": str(tmp_path / "some.npz")},
        model={"head": "prototype", "backbone": "pixels/4"},
        privacy={"unit": "patient", "sampling_rate": 1.0, "clipping_norm": "auto"},
    )
    (tmp_path / "run").mkdir()
    result = simulate(chosen, check(chosen), tmp_path / "run", "inprocess", QUIET)
    assert result["privacy"]["unit"] == "patient"


def test_the_world_without_privacy_is_solved_exactly() -> None:
    ready = check(config("ridge"))
    head = train_without_privacy(ready)
    assert ready.proposal.evaluate(head).accuracy > 0.9


def test_a_lost_sum_leaves_no_head_and_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import client.app
    from client.summing import answer_stage

    def absent(task: SumTask, node: Any) -> Any:
        if node.name == "node-000" and task.head:
            raise PrivacyError("no")
        return answer_stage(task, node)

    monkeypatch.setattr(client.app, "answer_stage", absent)
    with pytest.raises((ProtocolError, PrivacyError), match="only round of a head"):
        run_in_process(config("prototype", "secagg"), tmp_path, [0, 1, 2, 3], workers=1)
    assert RunStore(tmp_path, run_identity(tmp_path)).latest() is None


def test_what_is_sent_are_zeros_in_the_shape_of_the_statistics() -> None:
    proposal = propose(config("ridge"), "run")
    assert {name: tuple(value.shape) for name, value in proposal.start.items()} == {
        "products": (65 * 66 // 2,),
        "sums": (10, 65),
    }
    assert not any(bool(value.any()) for value in proposal.start.values())
    assert head_arrays(make_head(proposal.plan.offer.model)).keys() == proposal.start.keys()
    assert proposal.plan.learning_rate == 1.0
    assert isinstance(Checkpoint(0, proposal.start, {}, {}, {}).head["sums"], torch.Tensor)

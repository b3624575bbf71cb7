"""Patients of several hospitals, from the configuration to result, card, report and audit."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydantic import ValidationError

from common.config import RunConfig
from simulations.audits.config_match import plan_differences
from simulations.audits.ledger_history import AcceptedPlan
from simulations.preflight import check
from simulations.report import write_report
from simulations.run import Watcher, simulate
from tests.federations import small_config

QUIET = Watcher(lambda line: None, lambda name, done, total: None)


def visiting(folder: Path, hospitals: int | None, trust: str = "local") -> RunConfig:
    """Three nodes, 80 patients with three tiny pictures each."""
    labels = np.repeat(np.arange(80) % 2, 3)
    images = (labels[:, None, None] * 90 + np.random.default_rng(0).integers(0, 40, (240, 4, 4))).astype(np.uint8)
    np.savez(folder / "some.npz", images=images, labels=labels, patient=np.repeat(np.arange(80), 3))
    privacy: dict[str, Any] = {"unit": "patient", "trust": trust, "sampling_rate": 1.0, "epsilon": 4.0}
    return small_config(
        federation={"rounds": 2, "nodes": 3},
        data={"source": str(folder / "some.npz")},
        model={"backbone": "pixels/4"},
        privacy={**privacy, "hospitals_per_patient": hospitals},
    )


@pytest.mark.parametrize("trust", ["local", "secagg"])
def test_both_figures_are_stated_and_the_budget_is_the_patients(tmp_path: Path, trust: str) -> None:
    config = visiting(tmp_path, 2, trust)
    (tmp_path / "run").mkdir()
    privacy = simulate(config, check(config), tmp_path / "run", "inprocess", QUIET)["privacy"]
    assert privacy["hospitals_per_patient"] == 2
    assert max(privacy["epsilon_per_node"].values()) < privacy["epsilon_across_hospitals"] <= 4.0
    assert privacy["epsilon_across_hospitals"] > 3.95
    assert ("epsilon_across_hospitals_against_model" in privacy) == (trust == "secagg")
    assert f"{privacy['epsilon_across_hospitals']:.3f} at the same delta" in " ".join(
        (tmp_path / "run" / "model" / "MODEL_CARD.md").read_text().split()
    )
    assert "ε across hospitals" in write_report(tmp_path / "run").read_text()


def test_plans_of_one_hospital_say_nothing_of_it(tmp_path: Path) -> None:
    none, one, two = (check(visiting(tmp_path, hospitals)).proposal.plan.offer.terms for hospitals in (None, 1, 2))
    assert none == one
    assert none.digest == one.digest != two.digest
    assert "hospitals_per_unit" not in json.dumps(none.to_dict())
    assert two.noise_multiplier > none.noise_multiplier


@pytest.mark.parametrize("trust", ["local", "secagg"])
def test_an_audit_compares_the_declared_number_and_the_noise_made_for_it(tmp_path: Path, trust: str) -> None:
    two, one = visiting(tmp_path, 2, trust), visiting(tmp_path, None, trust)
    plan = AcceptedPlan(0, "run", check(two).proposal.plan.offer.terms.for_node(27), None)
    assert plan_differences(two, plan) == []
    assert any("hospitals_per_patient" in each for each in plan_differences(one, plan))
    weak = AcceptedPlan(0, "run", check(one).proposal.plan.offer.terms.for_node(27), None)
    assert any("hospitals_per_patient" in each for each in plan_differences(two, weak))


def test_with_records_as_the_unit_it_is_refused() -> None:
    with pytest.raises(ValidationError, match='expected only beside unit "patient"'):
        small_config(privacy={"hospitals_per_patient": 2})

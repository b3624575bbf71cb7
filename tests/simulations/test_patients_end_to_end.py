"""A federation that protects patients: from data that name them to a report that says so."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import fedgraft
from common.config import dump_toml
from common.data import load_source
from common.privacy.accountant import epsilon_by_round
from common.privacy.entries import read_entries
from common.privacy.plan import PrivacyPlan
from server.coordinator import privacy_terms
from tests.federations import small_config


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run on 600 digits of 150 patients, who have one to nine records each."""
    place = tmp_path_factory.mktemp("patients")
    digits, rng = load_source("digits"), np.random.default_rng(0)
    who = np.sort(np.concatenate([np.arange(150), rng.integers(0, 150, 450)]))
    images = np.stack([np.asarray(image) for image in digits.inputs[:600]])
    names = np.array([f"patient {number}" for number in who])
    np.savez(place / "digits.npz", images=images, labels=digits.labels[:600], patient=names)
    config = written(place, place / "digits.npz")
    assert (
        fedgraft.main(["simulate", str(config), "--out", str(place / "run"), "--baselines", "pooled,local_mean"]) == 0
    )
    return place


def written(place: Path, source: Path, **privacy: Any) -> Path:
    terms = {"unit": "patient", "delta": 1e-3, "epsilon": 8.0, **privacy}
    if terms["unit"] == "patient":
        terms["records_per_patient"] = 3
    tree = small_config(data={"source": str(source)}, federation={"nodes": 3, "rounds": 4}, privacy=terms)
    (place / "config.toml").write_text(dump_toml(tree))
    return place / "config.toml"


def test_plans_ledgers_result_and_report_speak_of_patients(finished: Path) -> None:
    run = finished / "run"
    result = json.loads((run / "result.json").read_text())
    assert result["privacy"]["unit"] == "patient"
    held = {name: node["patients"] for name, node in result["partition"].items()}
    declared = 0
    for name, patients in held.items():
        entries = read_entries(run / "ledgers" / f"{name}.sqlite")
        (plan,) = (PrivacyPlan.from_dict(each.body["plan"]) for each in entries if each.kind == "plan")
        assert plan.terms.unit == "patient"
        assert plan.terms.records_per_unit == 3
        assert plan.declared_size == patients
        declared += patients
        assert result["privacy"]["epsilon_per_node"][name] == epsilon_by_round(plan.terms)[4]
    assert declared <= 150  # the held-out patients are on no node
    assert "all of a patient" in (run / "report.html").read_text()
    assert "one patient" in (run / "model" / "MODEL_CARD.md").read_text()


def test_the_audits_read_its_ledgers_and_plant_patients(finished: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = finished / "run"
    (ledger, *_) = sorted((run / "ledgers").glob("*.sqlite"))
    config = run / "config.toml"
    assert fedgraft.main(["audit", "ledger", str(ledger), "--config", str(config)]) == 0
    assert "patient" in capsys.readouterr().out
    few = ["--method", "clopper-pearson", "--threat", "server", "--heads", "800"]
    assert fedgraft.main(["audit", "attack", str(config), "--canary", "gradient", *few]) == 0
    assert "per patient" in capsys.readouterr().out
    assert fedgraft.main(["audit", "attack", str(config), "--canary", "records", *few]) == 2
    assert "a patient's records belong together" in capsys.readouterr().err
    other = finished / "other.toml"
    other.write_text(config.read_text().replace("records_per_patient = 3", "records_per_patient = 4"))
    assert fedgraft.main(["audit", "ledger", str(ledger), "--config", str(other)]) == 3
    assert "privacy.records_per_patient = 3 (configuration: 4)" in capsys.readouterr().err


def test_patients_and_records_are_not_mixed_up(finished: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = finished / "digits.npz"
    for unit, words in (("record", "protects one record of a patient only"), ("patient", "delta must be at most")):
        config = written(finished, source, unit=unit, delta=1e-3 if unit == "record" else 0.05)
        assert fedgraft.main(["simulate", str(config), "--out", str(finished / "refused")]) == 3
        assert words in capsys.readouterr().err
    assert not (finished / "refused").exists()


def test_private_ranking_is_refused(finished: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = written(finished, finished / "digits.npz")
    assert (
        fedgraft.main(
            ["backbones", "rank", str(config), "--private", "--epsilon", "1", "--out", str(finished / "ranked")]
        )
        == 3
    )
    assert "clips record by record" in capsys.readouterr().err


def test_patients_need_no_more_noise_than_records(finished: Path) -> None:
    """The accountant sees units: with the same rate, steps and epsilon, the noise is the same."""
    config = small_config(privacy={"unit": "patient", "epsilon": 3.0})
    patients, records = (privacy_terms(each, 64) for each in (config, small_config(privacy={"epsilon": 3.0})))
    assert patients.noise_multiplier == records.noise_multiplier

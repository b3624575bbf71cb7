"""A federation whose nodes share the noise out: from a configuration to a report that says both figures."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

import fedgraft
from common.config import dump_toml
from common.privacy.accountant import epsilon_by_round
from common.privacy.entries import read_entries
from common.privacy.plan import PrivacyPlan
from tests.federations import small_config

SUMS = {"trust": "secagg", "dropouts": 1, "colluders": 1, "largest_node": 2000}


def written(place: Path, **sections: dict[str, Any]) -> Path:
    privacy = {**SUMS, **sections.pop("privacy", {})}
    (place / "config.toml").write_text(dump_toml(small_config(privacy=privacy, **sections)))
    return place / "config.toml"


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run, with nodes that train alone and with all records in one place to compare with."""
    place = tmp_path_factory.mktemp("secagg")
    config = written(place, federation={"seed": None})
    assert (
        fedgraft.main(["simulate", str(config), "--out", str(place / "run"), "--baselines", "pooled,local_mean"]) == 0
    )
    return place / "run"


def test_both_figures_are_the_ledgers_and_hold(finished: Path) -> None:
    privacy = json.loads((finished / "result.json").read_text())["privacy"]
    assert (privacy["trust"], privacy["nodes"], privacy["dropouts"], privacy["colluders"]) == ("secagg", 4, 1, 1)
    assert privacy["epsilon_is_guarantee"]
    for name, epsilon in privacy["epsilon_per_node"].items():
        entries = read_entries(finished / "ledgers" / f"{name}.sqlite")
        (plan,) = (PrivacyPlan.from_dict(each.body["plan"]) for each in entries if each.kind == "plan")
        assert plan.terms.trust == "secagg"
        assert epsilon == epsilon_by_round(plan.terms)[3] <= 8.0
        assert 0 < privacy["epsilon_against_model_per_node"][name] < epsilon


def test_report_and_model_card_say_against_whom(finished: Path) -> None:
    report, card = (finished / "report.html").read_text(), (finished / "model" / "MODEL_CARD.md").read_text()
    assert "Colluders allowed for" in report
    assert "against the model" in report
    assert "trust model:\nsecagg" in card
    assert "together with up to 1 of the nodes" in card


def test_a_node_alone_and_pooled_records_have_nobody_to_sum_with(finished: Path) -> None:
    accuracy = json.loads((finished / "result.json").read_text())["accuracy"]
    assert accuracy["pooled"] > 0.3
    assert accuracy["local_mean"] > 0.3


@pytest.mark.parametrize(
    ("sections", "said"),
    [
        ({"training": {"local_steps": 2}}, "training.local_steps: expected 1"),
        ({"federation": {"strategy": "krum"}}, "federation.strategy: expected one of fedavg, fedavgm"),
    ],
)
def test_what_makes_no_sense_for_sums_is_refused(
    sections: dict[str, Any], said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    ((section, changes),) = sections.items()
    pairs = [f"{section}.{key}={value}" for key, value in changes.items()]
    arguments = [word for pair in pairs for word in ("--set", pair)]
    assert fedgraft.main(["simulate", str(written(tmp_path)), "--out", str(tmp_path / "run"), *arguments]) == 2
    assert said in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("privacy", "said"),
    [
        ({"dropouts": 2}, "at most 1 drop-outs are safe"),
        ({"colluders": 3}, "at least two of 4 nodes must not collude"),
        ({"largest_node": 100}, "privacy.largest_node must be at least the declared size"),
    ],
)
def test_sums_that_protect_too_little_are_refused_before_anything_is_written(
    privacy: dict[str, Any], said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = written(tmp_path, privacy=privacy)
    assert fedgraft.main(["simulate", str(config), "--out", str(tmp_path / "run")]) == 3
    err = capsys.readouterr().err
    assert said in err
    assert err.count("\n") == 1
    assert not (tmp_path / "run").exists()

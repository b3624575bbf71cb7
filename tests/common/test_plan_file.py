"""Plans as files: the digest covers what matters to a node, and a file that says something else is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import tomli_w

import fedgraft
from common.data.federation import held_by_server
from common.errors import ConfigError, FederationError
from common.plan_file import plan_digest, plan_in_words, read_plan, write_plan
from common.privacy.accountant import epsilon_by_round
from server.coordinator import propose
from tests.federations import small_config, small_offer, small_terms


def test_a_plan_comes_back_as_it_was_written(tmp_path: Path) -> None:
    offer = small_offer()
    write_plan(tmp_path / "plan.json", offer.model, offer.terms)
    assert read_plan(tmp_path / "plan.json") == (offer.model, offer.terms)


def test_the_digest_covers_everything_but_the_backbones_name() -> None:
    offer = small_offer()
    digest = plan_digest(offer.model, offer.terms)
    assert plan_digest(offer.model.model_copy(update={"backbone": "package/x"}), offer.terms) == digest
    changes: dict[str, Any] = {"backbone_digest": "ab" * 32, "cut": "x", "head": "mlp", "hidden": 9, "train": "biases"}
    changes |= {"classes": ("b", "a"), "task": "multilabel", "precision": "bfloat16"}
    assert set(changes) == set(offer.model.model_dump()) - {"backbone"}
    others = [plan_digest(offer.model.model_copy(update={key: value}), offer.terms) for key, value in changes.items()]
    terms: dict[str, Any] = {"sampling_rate": 0.4, "rounds": 4, "steps_per_round": 2, "clipping_norm": 2.0}
    terms |= {"noise_multiplier": 1.5, "delta": 1e-6}
    others += [plan_digest(offer.model, small_terms(**{key: value})) for key, value in terms.items()]
    assert len({digest, *others}) == len(others) + 1


def test_words_say_what_it_costs_and_let_no_server_write_lines() -> None:
    offer = small_offer()
    words = plan_in_words(offer.model.model_copy(update={"cut": "x\u2028y" * 99}), offer.terms)
    assert f"epsilon {epsilon_by_round(offer.terms)[3]:.4g} at delta 1e-05" in words
    assert words.isascii()
    assert len(words) < 500


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (lambda plan: plan["terms"].update(rounds=30), "it holds another"),
        (lambda plan: plan["model"].update(head="mlp"), "it holds another"),
        (lambda plan: plan.update(format="x"), "got something else"),
        (lambda plan: plan["terms"].pop("delta"), "wrong are delta"),
        (lambda plan: plan["model"].update(hidden="8"), "got something else"),
        (lambda plan: plan["terms"].update(noise_multiplier=0.0), "must be between"),
    ],
)
def test_a_file_that_is_not_what_it_says_is_refused(spoil: Any, words: str, tmp_path: Path) -> None:
    offer, path = small_offer(), tmp_path / "plan.json"
    write_plan(path, offer.model, offer.terms)
    found = json.loads(path.read_text())
    spoil(found)
    path.write_text(json.dumps(found))
    with pytest.raises(FederationError, match=words):
        read_plan(path)


def test_a_file_that_is_none_is_refused(tmp_path: Path) -> None:
    for text in ("", "[]", "{", '{"format": "fedgraft plan 1"}'):
        (tmp_path / "x").write_text(text)
        with pytest.raises(ConfigError, match="got something else"):
            read_plan(tmp_path / "x")
    with pytest.raises(ConfigError, match="No such file"):
        read_plan(tmp_path / "none")


def test_the_coordinator_writes_the_plan_that_a_run_offers(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = small_config()
    values = {name: part for name, part in config.model_dump(exclude_none=True).items() if part}
    (tmp_path / "run.toml").write_text(tomli_w.dumps(values))
    out = tmp_path / "plan.json"
    command = ["server", "plan", str(tmp_path / "run.toml"), "--out", str(out), "--set", "federation.rounds=4"]
    assert fedgraft.main(command) == 0
    chosen = small_config(federation={"rounds": 4})
    offer = propose(chosen, "some-run", held_by_server(chosen)).plan.offer
    assert read_plan(out) == (offer.model, offer.terms)
    assert plan_digest(offer.model, offer.terms) in capsys.readouterr().out
    command[command.index(str(out))] = str(tmp_path / "run.toml")
    assert fedgraft.main(command) == 2

"""``fedgraft backbones rank``: from a configuration to an order of candidates, exact and private."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import fedgraft
from common.config import dump_toml
from common.data.federation import assemble
from common.privacy.accountant import Event, epsilon_pld, epsilon_rdp
from common.privacy.entries import read_entries
from common.privacy.statement import statement_of
from simulations.rank import Candidate, draw, parse_candidate, rank
from tests.federations import small_config

THREE = ["--candidate", "embedded/glyph", "--candidate", "pixels/8", "--candidate", "embedded/glyph#stem"]


@pytest.fixture
def config(tmp_path: Path) -> Path:
    path = tmp_path / "run.toml"
    path.write_text(dump_toml(small_config()))
    return path


def ranked(config: Path, capsys: Any, *more: str) -> dict[str, Any]:
    assert fedgraft.main(["backbones", "rank", str(config), *more, "--json"]) == 0
    said: dict[str, Any] = json.loads(capsys.readouterr().out)
    return said


def refused(capsys: Any, *arguments: str) -> tuple[int, str]:
    status = fedgraft.main(["backbones", "rank", *arguments])
    said = capsys.readouterr().err
    assert said.startswith("error: ")
    assert said.count("\n") == 1
    return status, said


def test_candidates_come_best_first(config, capsys):
    said = ranked(config, capsys, *THREE)
    scores = [one["score"] for one in said["ranked"]]
    assert scores == sorted(scores, reverse=True)
    assert [one["backbone"] for one in said["ranked"]][-1] == "pixels/8"
    assert {one["cut"] for one in said["ranked"]} == {"pool", "pixels", "stem"}
    assert said["spending"] is None


def test_without_a_candidate_every_cut_of_the_configured_backbone_is_scored(config, capsys):
    said = ranked(config, capsys, "--set", "model.backbone=embedded/glyph")
    assert {one["cut"] for one in said["ranked"]} == {"stem", "stage1", "stage2", "stage3", "pool"}
    said = ranked(config, capsys, "--set", "model.backbone=embedded/glyph", "--set", "model.cut=stage3")
    assert [one["cut"] for one in said["ranked"]] == ["stage3"]


def test_only_training_records_are_looked_at():
    """Held-out labels that are turned round change no score."""
    federation = assemble(small_config())
    before = rank(small_config(), [Candidate("pixels/8")], "last", 5000, lambda *_: None)
    labels = federation.data.labels
    kept = labels[federation.test].copy()
    try:
        labels[federation.test] = (kept + 1) % 10
        after = rank(small_config(), [Candidate("pixels/8")], "last", 5000, lambda *_: None)
    finally:
        labels[federation.test] = kept
    assert after == before
    assert before.records == before.training_records == len(labels) - len(kept)


def test_a_sample_is_drawn_by_the_seed_without_repetition():
    rows = np.arange(100, 300)
    assert np.array_equal(draw(rows, 50, 1), draw(rows, 50, 1))
    assert len(set(draw(rows, 50, 1).tolist())) == 50
    assert np.array_equal(draw(rows, 500, 1), rows)


def test_private_scores_cost_what_one_plan_of_as_many_steps_costs(config, capsys, tmp_path):
    said = ranked(config, capsys, *THREE, "--private", "--epsilon", "4", "--out", str(tmp_path / "ledgers-of"))
    spending = said["spending"]
    assert spending["epsilon"] == pytest.approx(epsilon_pld([Event(spending["noise_multiplier"], 1.0, 3)], 1e-5))
    assert 3.99 < spending["epsilon"] <= 4
    assert (spending["epsilon_in_ledger"], spending["accountant"]) == (spending["epsilon"], "PLD")
    assert not spending["epsilon_is_guarantee"]
    assert all(one["private_score"] is not None and one["private_error"] > 0 for one in said["ranked"])
    files = sorted((tmp_path / "ledgers-of" / "ledgers").glob("*.sqlite"))
    assert len(files) == 4
    for path in files:
        assert statement_of(read_entries(path)).epsilon == pytest.approx(spending["epsilon"])


def test_with_little_noise_the_private_order_is_that_of_the_truth(tmp_path):
    config = small_config(privacy={"epsilon": 5000.0}, federation={"nodes": 1})
    wanted = [Candidate("embedded/glyph"), Candidate("pixels/2"), Candidate("pixels/4")]
    ranking = rank(config, wanted, "last", 5000, lambda *_: None, (5000.0, tmp_path))
    assert [one.backbone for one in ranking.ranked] == ["embedded/glyph", "pixels/4", "pixels/2"]
    assert [one.score for one in ranking.ranked] == sorted((one.score for one in ranking.ranked), reverse=True)


def test_a_runs_own_ledgers_are_charged_on_top_of_its_training(config, capsys, tmp_path):
    folder = tmp_path / "run"
    assert fedgraft.main(["simulate", str(config), "--out", str(folder), "--set", "federation.rounds=2"]) == 0
    capsys.readouterr()
    config.write_text(config.read_text().replace("epsilon = 8.0", "epsilon = 20.0"))
    said = ranked(config, capsys, *THREE, "--private", "--epsilon", "2", "--out", str(folder))
    spending = said["spending"]
    assert spending["accountant"] == "RDP (adaptive)"
    plan = json.loads((folder / "result.json").read_text())["privacy"]
    trained = Event(plan["noise_multiplier"], plan["sampling_rate"], plan["steps"])
    asked = Event(spending["noise_multiplier"], 1.0, 3)
    assert spending["epsilon_in_ledger"] == pytest.approx(epsilon_rdp([trained, asked], 1e-5))


def test_a_spent_budget_refuses_the_ranking(config, capsys, caplog, tmp_path):
    folder = tmp_path / "run"
    assert fedgraft.main(["simulate", str(config), "--out", str(folder)]) == 0
    capsys.readouterr()
    status, said = refused(capsys, str(config), *THREE, "--private", "--epsilon", "2", "--out", str(folder))
    assert status == 3
    assert "got: budget (4 nodes); the nodes' own logs say why" in said
    assert "node-000 refuses: the privacy budget" in caplog.text


@pytest.mark.parametrize(
    ("arguments", "status", "words"),
    [
        (["--cuts", "some"], 2, "--cuts must be all or last"),
        (["--candidate", "#pool"], 2, "REFERENCE or REFERENCE#CUT"),
        (["--candidate", "embedded/glyph#"], 2, "REFERENCE or REFERENCE#CUT"),
        (["--candidate", "embedded/glyph#stage9"], 2, "model.cut must be a stage"),
        (["--candidate", "nothing"], 2, "model.backbone must be"),
        (["--private"], 2, "--private needs --epsilon"),
        (["--private", "--epsilon", "-1"], 2, "--private needs --epsilon"),
        (["--private", "--epsilon", "nan"], 2, "--private needs --epsilon"),
        (["--epsilon", "1"], 2, "belong to --private"),
        (["--private", "--epsilon", "9"], 3, "at most privacy.epsilon = 8"),
        (["--private", "--epsilon", "1", "--set", "privacy.trust=secagg"], 3, "adds all noise at each node"),
        (["--candidate", "vectors/nothing.txt"], 2, "nothing.txt"),
    ],
)
def test_what_cannot_be_ranked_is_one_sentence(config, capsys, arguments, status, words):
    found, said = refused(capsys, str(config), *arguments)
    assert found == status
    assert words in said


def test_a_candidate_may_hold_the_mark_in_its_path():
    assert parse_candidate("hf/a#b#layer.1") == Candidate("hf/a#b", "layer.1")


def test_the_table_says_what_was_spent(config, capsys):
    assert fedgraft.main(["backbones", "rank", str(config), *THREE, "--private", "--epsilon", "1"]) == 0
    said = capsys.readouterr().out
    assert "±" in said
    assert "ε = 1 at each node by this ranking, at δ = 1e-05, one record, local trust; nominal: seeded" in said


WORDS = ("fever", "cough", "pain", "rash", "daily", "aspirin", "the", "patient")


def sentence(rng: np.random.Generator) -> list[str]:
    return [WORDS[at] for at in rng.integers(0, len(WORDS), 6)]


def tags(words: list[str]) -> dict[str, Any]:
    return {"tokens": words, "tags": ["B-Drug" if word == "aspirin" else "O" for word in words]}


def labels(words: list[str]) -> dict[str, Any]:
    found = [word for word in ("fever", "cough", "pain") if word in words]
    return {"text": " ".join(words), "labels": "|".join(found)}


def answers(words: list[str]) -> dict[str, Any]:
    context = " ".join(words)
    start = context.find("fever")
    found = {"text": ["fever"], "answer_start": [start]} if start >= 0 else {"text": [], "answer_start": []}
    return {"question": "what", "context": context, "answers": found}


@pytest.mark.parametrize("made", [tags, labels, answers])
def test_every_task_is_ranked_and_a_telling_backbone_beats_an_untrained_one(made, tmp_path):
    """One-hot word vectors tell each word; the rival knows another word for all of them."""
    rng = np.random.default_rng(0)
    source = tmp_path / "records.jsonl"
    source.write_text("".join(json.dumps(made(sentence(rng))) + "\n" for _ in range(300)))
    references = []
    for name, rows in {"telling": np.eye(8), "mute": np.tile(rng.normal(size=8), (8, 1))}.items():
        file = tmp_path / f"{name}.txt"
        file.write_text("".join(f"{word} {' '.join(map(str, row))}\n" for word, row in zip(WORDS, rows, strict=True)))
        references.append(f"vectors/{file}:16")
    config = small_config(
        data={"source": str(source)}, privacy={"epsilon": 2000.0, "delta": 1e-3}, federation={"nodes": 2}
    )
    wanted = [Candidate(reference) for reference in references]
    ranking = rank(config, wanted, "last", 1000, lambda *_: None, (2000.0, tmp_path / "ledgers-of"))
    telling, mute = ranking.ranked
    assert telling.backbone == references[0]
    assert telling.score > mute.score
    assert telling.private_score is not None
    assert mute.private_score is not None
    assert telling.private_score > mute.private_score

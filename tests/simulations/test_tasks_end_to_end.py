"""Every task from a file to a prediction, through the commands: simulate under DP, save, load, predict."""

from __future__ import annotations

import json
import wave
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import fedgraft
from common.config import dump_toml, load_config
from common.data.federation import assemble
from common.metrics import entities
from common.model_folder import load_model
from common.prediction import predict_records
from tests.federations import small_config
from tests.models import minilm_folder

WORDS = ("fever", "cough", "pain", "rash", "daily", "aspirin", "ibuprofen", "the", "took", "had", "patient", "and")


@pytest.fixture
def vectors(tmp_path: Path) -> str:
    """Word vectors of eight numbers for a dozen words."""
    rng = np.random.default_rng(0)
    rows = [" ".join([word, *[f"{value:.4f}" for value in rng.normal(size=8)]]) for word in WORDS]
    (tmp_path / "tiny.txt").write_text("\n".join(rows) + "\n")
    return f"vectors/{tmp_path / 'tiny.txt'}:16"


def lines(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def simulated(folder: Path, source: Path, backbone: str, **model: Any) -> Path:
    """Run a small federation; its folder, with a result that is whole."""
    sections = {"data": {"source": str(source), **model.pop("data", {})}, "model": {"backbone": backbone, **model}}
    sections |= {"federation": {"nodes": 2, "rounds": 2}, "evaluation": {"baselines": "no_dp,local_mean"}}
    config = folder / "config.toml"
    config.write_text(dump_toml(small_config(**sections)))
    assert fedgraft.main(["simulate", str(config), "--out", str(folder / "run")]) == 0
    result = json.loads((folder / "run" / "result.json").read_text())
    assert result["privacy"]["epsilon_per_node"].keys() == {"node-0", "node-1"} or result["nodes"] == 2
    assert 0 < max(result["privacy"]["epsilon_per_node"].values()) <= 8
    assert (folder / "run" / "report.html").stat().st_size > 10_000
    return folder / "run"


def predicted(run: Path, capsys: pytest.CaptureFixture[str], *files: Path) -> list[dict[str, Any]]:
    capsys.readouterr()
    assert fedgraft.main(["predict", str(run / "model"), *map(str, files)]) == 0
    assert "Traceback" not in capsys.readouterr().out
    assert fedgraft.main(["predict", str(run / "model"), *map(str, files), "--json"]) == 0
    found: list[dict[str, Any]] = json.loads(capsys.readouterr().out)
    return found


def metrics(run: Path) -> dict[str, float | None]:
    found: dict[str, float | None] = json.loads((run / "result.json").read_text())["metrics"]
    return found


def sentences(count: int) -> list[dict[str, Any]]:
    rng = np.random.default_rng(1)
    kinds = (("fever", "cough"), ("aspirin", "ibuprofen"))
    return [
        {
            "text": f"the patient had {kinds[k % 2][rng.integers(2)]} daily and took the {rng.choice(WORDS)}",
            "label": k % 2,
        }
        for k in range(count)
    ]


def test_texts_are_classified(tmp_path: Path, vectors: str, capsys: pytest.CaptureFixture[str]) -> None:
    run = simulated(tmp_path, lines(tmp_path / "texts.jsonl", sentences(80)), vectors)
    new = tmp_path / "new.txt"
    new.write_text("the patient had fever\nthe patient took aspirin\n")
    found = predicted(run, capsys, new)
    assert [row["class"] in ("0", "1") for row in found] == [True, True]
    assert metrics(run).keys() >= {"auroc", "macro_f1", "balanced_accuracy", "loss"}


def test_texts_are_classified_by_a_real_encoder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    backbone = f"hf/{minilm_folder()}:16"
    run = simulated(tmp_path, lines(tmp_path / "texts.jsonl", sentences(60)), backbone)
    new = tmp_path / "new.txt"
    new.write_text("she complained of a high temperature\n")
    assert set(predicted(run, capsys, new)[0]["probabilities"]) == {"0", "1"}


def test_words_are_tagged(tmp_path: Path, vectors: str, capsys: pytest.CaptureFixture[str]) -> None:
    rows = [
        {"tokens": ["the", "patient", "took", drug, "daily"], "tags": ["O", "O", "O", "B-Drug", "O"]}
        for drug in ("aspirin", "ibuprofen")
        for _ in range(30)
    ]
    rows += [{"tokens": ["had", "fever"], "tags": ["O", "O"]} for _ in range(20)]
    run = simulated(tmp_path, lines(tmp_path / "words.jsonl", rows), vectors)
    new = tmp_path / "new.txt"
    new.write_text("the patient took aspirin daily\n")
    found = predicted(run, capsys, new)[0]
    assert found["words"] == ["the", "patient", "took", "aspirin", "daily"]
    assert len(found["tags"]) == 5
    assert metrics(run).keys() >= {"entity_f1", "entity_precision", "entity_recall"}


def test_the_recall_is_that_of_the_predictions_on_whole_sentences(tmp_path: Path, vectors: str) -> None:
    drugs = ("aspirin", "ibuprofen")
    rows = [
        {
            "tokens": ["took", drugs[k % 2], *["the"] * (k % 9), *drugs],
            "tags": ["O", "B-Drug", *["O"] * (k % 9), "B-Drug", "I-Drug"],
        }
        for k in range(90)
    ]
    run = simulated(tmp_path, lines(tmp_path / "words.jsonl", rows), vectors.replace(":16", ":8"))
    federation = assemble(load_config(run / "config.toml"))
    data = federation.data.take(federation.test)
    true, both = 0, 0
    for predicted_one, tags in zip(predict_records(load_model(run / "model"), data.inputs), data.labels, strict=True):
        wanted = entities([data.classes[tag] for tag in tags if tag >= 0])
        true += len(wanted)
        both += len(wanted & entities([tag or "O" for tag in predicted_one["tags"]]))
    assert metrics(run)["entity_recall"] == pytest.approx(both / true)
    assert 0 < both < true


def test_answers_are_found(tmp_path: Path, vectors: str, capsys: pytest.CaptureFixture[str]) -> None:
    context = "the patient had {} and took {} daily"
    rows = [
        {
            "title": f"case {k}",
            "question": "took what",
            "context": context.format("pain", drug),
            "answers": [{"text": drug, "answer_start": context.format("pain", drug).index(drug)}],
        }
        for k, drug in enumerate(("aspirin", "ibuprofen") * 30)
    ]
    run = simulated(tmp_path, lines(tmp_path / "answers.jsonl", rows), vectors)
    new = lines(tmp_path / "new.jsonl", [{"question": "took what", "context": context.format("rash", "aspirin")}])
    found = predicted(run, capsys, new)[0]
    assert found["answer"] is None or found["answer"] in context.format("rash", "aspirin")
    assert 0 <= found["score"] <= 1
    assert metrics(run).keys() >= {"exact_match", "token_f1"}


def test_several_labels_a_record(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 2, (80, 3))
    images = (np.repeat(labels[:, :, None], 4, axis=2).reshape(80, 3, 4) * 200).astype(np.uint8)
    np.savez(tmp_path / "several.npz", images=images, labels=labels, classes=np.array(["mass", "edema", "fracture"]))
    run = simulated(tmp_path, tmp_path / "several.npz", "pixels/8")
    Image.fromarray(images[0]).save(tmp_path / "new.png")
    assert set(predicted(run, capsys, tmp_path / "new.png")[0]["probabilities"]) == {"mass", "edema", "fracture"}
    assert metrics(run).keys() >= {"auroc", "macro_f1", "exact_match"}


def test_sounds_become_pictures(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name, hertz in (("low", 220), ("high", 1760)):
        (tmp_path / "clips" / name).mkdir(parents=True)
        for number in range(24):
            time = np.arange(2000) / 8000
            samples = (9000 * np.sin(2 * np.pi * (hertz + 5 * number) * time)).astype("<i2")
            with wave.open(str(tmp_path / "clips" / name / f"{number}.wav"), "wb") as file:
                file.setnchannels(1)
                file.setsampwidth(2)
                file.setframerate(8000)
                file.writeframes(samples.tobytes())
    run = simulated(tmp_path, tmp_path / "clips", "spectrogram/embedded/glyph")
    found = predicted(run, capsys, tmp_path / "clips" / "low" / "0.wav")
    assert found[0]["class"] in ("low", "high")


def test_rows_of_a_table(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rng = np.random.default_rng(0)
    age, pressure = rng.integers(20, 90, 80), rng.integers(90, 180, 80)
    rows = [f"{a},{'' if a % 7 == 0 else p},{int(a > 55)}" for a, p in zip(age, pressure, strict=True)]
    (tmp_path / "heart.csv").write_text("\n".join(["age,pressure,target", *rows]) + "\n")
    run = simulated(tmp_path, tmp_path / "heart.csv", "tabular/identity", data={"keys": {"label": "target"}})
    new = tmp_path / "new.csv"
    new.write_text("age,pressure\n80,150\n30,\n")
    assert [row["class"] in ("0", "1") for row in predicted(run, capsys, new)] == [True, True]


def refusal(folder: Path, source: Path, backbone: str, capsys: pytest.CaptureFixture[str], **model: Any) -> str:
    sections = {"data": {"source": str(source), **model.pop("data", {})}, "model": {"backbone": backbone, **model}}
    config = folder / "config.toml"
    config.write_text(dump_toml(small_config(**sections)))
    capsys.readouterr()
    assert fedgraft.main(["simulate", str(config), "--out", str(folder / "run")]) == 2
    assert not (folder / "run").exists()
    return " ".join(capsys.readouterr().err.split())


Refused = Callable[[str], str]


def test_what_does_not_fit_together_is_refused_before_the_run(
    tmp_path: Path, vectors: str, capsys: pytest.CaptureFixture[str]
) -> None:
    texts = lines(tmp_path / "texts.jsonl", sentences(80))
    assert "records of the kind 'text'" in refusal(tmp_path, texts, "embedded/glyph", capsys)
    digits = Path("digits")
    assert "takes" in refusal(tmp_path, digits, vectors, capsys)
    assert 'head = "upper"' in refusal(tmp_path, digits, "embedded/glyph", capsys, head="upper")
    tagged = [{"tokens": ["took", "aspirin"], "tags": ["O", "B-Drug"]}] * 40
    words = lines(tmp_path / "words.jsonl", tagged)
    assert "a vector for each token" in refusal(tmp_path, words, vectors, capsys, cut="pool")

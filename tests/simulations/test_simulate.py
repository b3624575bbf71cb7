"""The command `fedgraft simulate`, from what the user types to what lies in the run folder."""

from __future__ import annotations

import json
import os
import shutil
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from safetensors.numpy import load_file, save_file

import fedgraft
from common import durable
from common.backbones.controls import raw_pixels
from common.config import dump_toml
from common.data import load_source
from common.features import default_cache
from common.privacy.accountant import Event, epsilon_rdp
from common.privacy.entries import read_entries
from common.privacy.statement import statement_of
from simulations import run, session
from simulations.engine import run_in_process
from simulations.result import Result, mean_result
from tests.federations import digest_of, small_config
from tests.processes import lines_in, wait_until

RESULT_KEYS = {
    "accuracy", "accuracy_std", "metrics", "privacy", "bytes", "timing_s", "rounds", "nodes", "seed", "versions",
}  # fmt: skip
PRIVACY_KEYS = {
    "unit", "delta", "epsilon_per_node", "epsilon_budget", "noise_multiplier", "sampling_rate", "steps",
    "clipping_norm", "accountant", "trust", "noise_source", "epsilon_is_guarantee",
}  # fmt: skip


def written(folder: Path, **sections: dict[str, Any]) -> Path:
    """A configuration file of a small run."""
    path = folder / "config.toml"
    path.write_text(dump_toml(small_config(**sections)))
    return path


def result_of(folder: Path) -> Result:
    found: Result = json.loads((folder / "result.json").read_text())
    return found


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run with all baselines."""
    place = tmp_path_factory.mktemp("finished")
    config = written(place, evaluation={"baselines": "all", "node_metrics": "exact"})
    assert fedgraft.main(["simulate", str(config), "--out", str(place / "run")]) == 0
    return place / "run"


def test_the_run_folder_holds_what_is_promised(finished: Path) -> None:
    result = result_of(finished)
    assert result.keys() >= RESULT_KEYS
    assert result["privacy"].keys() >= PRIVACY_KEYS
    assert all(0 <= value <= 1 for value in result["accuracy"].values())
    assert set(result["accuracy"]) == {"federated", "pooled", "local_mean", "no_dp", "no_transfer", "raw_pixels"}
    names = {path.name for path in finished.iterdir()}
    assert names >= {"config.toml", "result.json", "rounds.jsonl", "checkpoints", "model", "ledgers", "report.html"}
    assert {path.name for path in (finished / "model").iterdir()} == {"head.safetensors", "model.json", "MODEL_CARD.md"}
    assert len((finished / "rounds.jsonl").read_text().splitlines()) == 3
    assert set(json.loads((finished / "node_metrics.json").read_text())) == set(result["node_names"])


def test_epsilon_in_the_result_is_the_ledgers_and_below_rdp(finished: Path) -> None:
    privacy = result_of(finished)["privacy"]
    assert len(privacy["epsilon_per_node"]) == 4
    events = [Event(privacy["noise_multiplier"], privacy["sampling_rate"], privacy["steps"])]
    for name, epsilon in privacy["epsilon_per_node"].items():
        assert epsilon == statement_of(read_entries(finished / "ledgers" / f"{name}.sqlite")).epsilon
        assert 0.9 * privacy["epsilon_budget"] < epsilon <= privacy["epsilon_budget"]
        assert epsilon <= epsilon_rdp(events, privacy["delta"])


def test_a_seeded_run_says_that_it_guarantees_nothing(finished: Path) -> None:
    assert result_of(finished)["privacy"]["epsilon_is_guarantee"] is False
    assert "no guarantee: seeded" in (finished / "report.html").read_text().lower()
    assert "No guarantee: seeded" in (finished / "model" / "MODEL_CARD.md").read_text()


def test_an_unseeded_run_is_a_guarantee(tmp_path: Path) -> None:
    config = written(tmp_path, federation={"seed": None})
    assert fedgraft.main(["simulate", str(config), "--out", str(tmp_path / "run")]) == 0
    privacy = result_of(tmp_path / "run")["privacy"]
    assert (privacy["noise_source"], privacy["epsilon_is_guarantee"]) == ("system", True)


def test_what_was_not_computed_is_null(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["simulate", str(written(tmp_path)), "--out", str(tmp_path / "run"), "--json", "--baselines", "no_dp"]
    assert fedgraft.main(arguments) == 0
    printed = json.loads(capsys.readouterr().out)
    assert printed == result_of(tmp_path / "run")
    assert printed["accuracy"]["no_dp"] > 0.5
    assert printed["accuracy"]["pooled"] is None


def test_a_node_whose_classes_are_not_held_out_has_no_accuracy(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    digits = load_source("digits")
    rare, fifth = digits.labels == 9, np.arange(len(digits)) % 5 == 0
    np.savez(
        tmp_path / "digits.npz",
        images=np.stack([*digits.inputs]),
        labels=digits.labels,
        classes=np.array(digits.classes),
        site=np.where(rare, "rare", np.where(digits.labels % 2, "odd", "even")),
        split=np.where(fifth & ~rare, "test", "train"),
    )
    config = written(tmp_path, data={"source": str(tmp_path / "digits.npz"), "partition": "site"})
    arguments = ["simulate", str(config), "--out", str(tmp_path / "run"), "--baselines", "local_mean"]
    assert fedgraft.main([*arguments, "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == result_of(tmp_path / "run")
    accuracy = result_of(tmp_path / "run")["node_accuracy"]
    assert accuracy["rare"] == {"federated": None, "alone": None}
    assert 0 <= accuracy["odd"]["alone"] <= 1
    assert (tmp_path / "run" / "report.html").exists()
    assert fedgraft.main(["simulate", "--resume", str(tmp_path / "run")]) == 0  # and its table


def test_the_baselines_charge_nothing_to_the_nodes_of_the_run(finished: Path) -> None:
    ledgers = sorted(path.name for path in (finished / "ledgers").glob("*.sqlite"))
    assert ledgers == [f"node-{k:03d}.sqlite" for k in range(4)]
    for path in (finished / "ledgers").glob("*.sqlite"):
        with sqlite3.connect(path) as connection:
            entries = [json.loads(text) for (text,) in connection.execute("SELECT text FROM entries")]
        assert sum(entry["kind"] == "reserve" for entry in entries) == 3


@pytest.mark.parametrize("strategy", ["krum", "multikrum", "bulyan", "fedtrimmedavg", "fedmedian"])
def test_one_node_by_itself_is_averaged_whatever_the_strategy(strategy: str, tmp_path: Path) -> None:
    config = written(
        tmp_path,
        federation={"strategy": strategy, "nodes": 3, "rounds": 1},
        data={"partition": "quantity", "alpha": 2.0},
        evaluation={"baselines": "pooled,local_mean"},
    )
    assert fedgraft.main(["simulate", str(config), "--out", str(tmp_path / "run")]) == 0
    accuracy = result_of(tmp_path / "run")["accuracy"]
    assert min(accuracy["pooled"], accuracy["local_mean"]) > 0.2


def test_baselines_play_the_rounds_that_patience_left_and_say_their_epsilon(tmp_path: Path) -> None:
    config = written(
        tmp_path,
        federation={"rounds": 12},
        data={"validation_fraction": 0.2},
        training={"learning_rate": 50.0},  # far too large: the loss rises soon
        evaluation={"patience": 2, "baselines": "pooled,local_mean,no_transfer"},
    )
    assert fedgraft.main(["simulate", str(config), "--out", str(tmp_path / "run")]) == 0
    result = result_of(tmp_path / "run")
    worlds = ["pooled", "no_transfer", *(f"local_mean/{name}" for name in result["node_names"])]
    logs = [tmp_path / "run" / "baselines" / world / "rounds.jsonl" for world in worlds]
    assert {lines_in(log) for log in logs} == {result["rounds"]} != {12}
    assert {name for name, epsilon in result["epsilon"].items() if epsilon is None} == {"no_dp", "raw_pixels"}
    own = result["epsilon"]["federated"]
    assert own == max(result["privacy"]["epsilon_per_node"].values()) < 0.9 * result["privacy"]["epsilon_budget"]
    assert [result["epsilon"][name] for name in ("pooled", "local_mean", "no_transfer")] == pytest.approx([own] * 3)


def test_a_cohort_spends_less_than_its_baselines_and_the_report_says_so(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = written(tmp_path, federation={"cohort": 1}, evaluation={"baselines": "pooled,no_transfer"})
    assert fedgraft.main(["simulate", str(config), "--out", str(tmp_path / "run")]) == 0
    epsilon = result_of(tmp_path / "run")["epsilon"]
    assert epsilon["federated"] == epsilon["no_transfer"] < 0.9 * epsilon["pooled"]
    shown = " ".join(capsys.readouterr().out.split())
    report = (tmp_path / "run" / "report.html").read_text().replace("\N{NO-BREAK SPACE}", " ")
    for text in (shown, report):
        assert "random weights at the same ε" in text
        assert "one training at ε = " in text


def test_over_several_seeds_the_largest_epsilon_and_all_open_reservations_are_told(finished: Path) -> None:
    low, high = result_of(finished), result_of(finished)
    low["privacy"]["epsilon_per_node"]["node-001"] = 1.0
    low["open_reservations"], high["open_reservations"] = {"node-001": [2]}, {"node-001": [3], "node-002": [1]}
    for results in ([low, high], [high, low]):
        mean = mean_result(results)
        assert mean["privacy"]["epsilon_per_node"] == high["privacy"]["epsilon_per_node"]
        assert mean["open_reservations"] == {"node-001": [2, 3], "node-002": [1]}


def test_several_seeds_give_mean_and_spread(tmp_path: Path) -> None:
    arguments = ["simulate", str(written(tmp_path)), "--out", str(tmp_path / "run"), "--seeds", "2"]
    assert fedgraft.main(arguments) == 0
    whole = result_of(tmp_path / "run")
    parts = [result_of(tmp_path / "run" / f"seed-{seed}")["accuracy"]["federated"] for seed in (7, 8)]
    assert whole["accuracy"]["federated"] == pytest.approx(sum(parts) / 2)
    assert whole["accuracy_std"]["federated"] == pytest.approx(float(np.std(parts, ddof=1)))
    assert (tmp_path / "run" / "report.html").exists()
    assert fedgraft.main(["simulate", "--resume", str(tmp_path / "run")]) == 0
    assert result_of(tmp_path / "run")["accuracy"] == whole["accuracy"]


@pytest.mark.parametrize(
    ("model", "data"),
    [
        ({"head": "mlp", "hidden": 8}, {}),
        ({}, {"partition": "dirichlet", "alpha": 0.5}),
        ({}, {"partition": "shards"}),
        ({}, {"partition": "quantity", "alpha": 1.0}),
    ],
)
def test_every_head_and_partition_runs(model: dict[str, Any], data: dict[str, Any], tmp_path: Path) -> None:
    config = written(tmp_path, model=model, data=data, federation={"rounds": 2})
    assert fedgraft.main(["simulate", str(config), "--out", str(tmp_path / "run")]) == 0
    assert result_of(tmp_path / "run")["accuracy"]["federated"] > 0.15


@pytest.mark.slow
def test_a_run_goes_on_with_the_records_it_began_with_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    digits, source, folder = load_source("digits"), tmp_path / "digits.npz", tmp_path / "run"
    labels = np.asarray(digits.labels).copy()
    np.savez(source, images=digits.inputs, labels=labels, classes=np.array(digits.classes))
    config = written(tmp_path, data={"source": str(source)})
    waiting = [
        sys.executable,
        "-m",
        "tests.simulations.waiting_run",
        "2",
        "simulate",
        str(config),
        "--out",
        str(folder),
    ]
    child = subprocess.Popen(waiting, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    assert wait_until(lambda: lines_in(folder / "rounds.jsonl") >= 1)
    os.kill(child.pid, signal.SIGKILL)
    child.wait()
    labels[:2] = labels[1::-1]
    np.savez(source, images=digits.inputs, labels=labels, classes=np.array(digits.classes))
    assert "expected the records to be what the run" in refused(["simulate", "--resume", str(folder)], capsys)
    assert lines_in(folder / "rounds.jsonl") == 1


def digit_files(folder: Path, count: int) -> list[Path]:
    """Some digits as PNG files, in class folders, over two sites."""
    digits = load_source("digits")
    paths = []
    for index in range(count):
        place = folder / f"site-{index % 2}" / str(digits.labels[index])
        place.mkdir(parents=True, exist_ok=True)
        paths.append(place / f"{index}.png")
        Image.fromarray(np.asarray(digits.inputs[index])).save(paths[-1])
    return paths


def test_a_folder_with_sites_trains_and_its_model_predicts(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    files = digit_files(tmp_path / "images", 600)
    data = {"source": str(tmp_path / "images"), "partition": "site"}
    config = written(tmp_path, data=data, privacy={"sampling_rate": 1.0}, federation={"rounds": 10})
    assert fedgraft.main(["simulate", str(config), "--out", str(tmp_path / "run")]) == 0
    result = result_of(tmp_path / "run")
    assert result["node_names"] == ["site-0", "site-1"]
    assert result["confidential"] is True
    capsys.readouterr()
    assert fedgraft.main(["predict", str(tmp_path / "run" / "model"), *map(str, files[:200]), "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)
    right = [row["class"] == Path(row["file"]).parent.name for row in rows]
    assert np.mean(right) > 0.7
    assert all(sum(row["probabilities"].values()) == pytest.approx(1, abs=1e-5) for row in rows)


KILLED_AT_ROUND = 4


@pytest.mark.slow
def test_kill_9_and_resume_give_the_head_of_an_undisturbed_run(tmp_path: Path) -> None:
    config = written(tmp_path, federation={"rounds": 12, "strategy": "fedavgm"})
    assert fedgraft.main(["simulate", str(config), "--out", str(tmp_path / "whole")]) == 0
    folder = tmp_path / "killed"
    waiting = [sys.executable, "-m", "tests.simulations.waiting_run", str(KILLED_AT_ROUND + 1)]
    command = [*waiting, "simulate", str(config), "--out", str(folder)]
    child = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    assert wait_until(lambda: lines_in(folder / "rounds.jsonl") >= KILLED_AT_ROUND)
    os.kill(child.pid, signal.SIGKILL)
    child.wait()
    assert not (folder / "result.json").exists()
    assert fedgraft.main(["simulate", "--resume", str(folder)]) == 0
    assert digest_of(folder) == digest_of(tmp_path / "whole")
    spent, whole = (result_of(place)["privacy"]["epsilon_per_node"] for place in (folder, tmp_path / "whole"))
    assert all(spent[name] >= whole[name] for name in whole)
    assert [line["round"] for line in map(json.loads, (folder / "rounds.jsonl").read_text().splitlines())] == list(
        range(1, 13)
    )


def refused(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    """Run a command that must be refused in one line, and return that line."""
    status = fedgraft.main(arguments)
    lines = capsys.readouterr().err.strip().splitlines()
    assert status != 0
    assert lines[-1].startswith("error: ")
    assert not any("Traceback" in line for line in lines)
    return lines[-1]


MISTAKES: dict[str, tuple[dict[str, dict[str, Any]], str]] = {
    "delta above one over the declared size": ({"privacy": {"delta": 0.01}}, "delta"),
    "unknown backbone": ({"model": {"backbone": "embedded/glif"}}, "did you mean 'embedded/glyph'"),
    "unknown cut": ({"model": {"backbone": "pixels/8", "cut": "pixel"}}, "did you mean 'pixels'"),
    "missing file": ({"data": {"source": "/nowhere/images.npz"}}, "nowhere"),
    "patients that nobody names": ({"privacy": {"unit": "patient"}}, "needs data that name patients"),
    "sums over two nodes": ({"privacy": {"trust": "secagg"}, "federation": {"nodes": 2}}, "federation.nodes"),
    "empty nodes": ({"federation": {"nodes": 200}, "data": {"partition": "dirichlet", "alpha": 0.01}}, "node"),
    "more nodes than records": ({"federation": {"nodes": 5000}}, "5000"),
    "baseline of an unknown backbone": (
        {"model": {"backbone": "embedded/glyhp"}, "evaluation": {"baselines": "no_transfer"}},
        "did you mean 'embedded/glyph'",
    ),
}


@pytest.mark.parametrize("kind", MISTAKES)
def test_bad_input_is_one_sentence_and_leaves_nothing(
    kind: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sections, expected = MISTAKES[kind]
    line = refused(["simulate", str(written(tmp_path, **sections)), "--out", str(tmp_path / "run")], capsys)
    assert expected in line
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("privacy.epsilonn=3", "privacy.epsilon"),
        ("privacy.epsilon='three'", "privacy.epsilon"),
        ("privacy.epsilon=0", "privacy.epsilon"),
        ("privacy.epsilon=-1", "privacy.epsilon"),
        ("privacy.sampling_rate=1.5", "privacy.sampling_rate: expected a number from 1e-6 to 1"),
        ("privacy.sampling_rate=1e-300", "privacy.sampling_rate"),
        ("privacy.delta=0.6", "privacy.delta: expected a number from 1e-12 to 0.5"),
        ("privacy.clipping_norm=1e13", "privacy.clipping_norm: expected a number from 1e-12 to 1e12"),
        ("federation.seed=9223372036854775808", "from 0 to 9223372036854775807"),
        ("model.weights=random-x", "model.weights of pixels/8"),
        ("model.backbone=pixels/0", "got 0; choose another"),
        ("data.validation_fraction=0.9999", "lower data.validation_fraction"),
        ("privacy.clipping_norm=0", "privacy.clipping_norm"),
        ("federation.cohort=9", "cohort"),
    ],
)
def test_a_bad_key_is_named(override: str, expected: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["simulate", str(written(tmp_path)), "--out", str(tmp_path / "run"), "--set", override]
    assert expected in refused(arguments, capsys)
    assert not (tmp_path / "run").exists()


def test_an_interrupted_run_says_how_to_go_on(tmp_path: Path) -> None:
    def interrupt(folder: Path) -> Path:
        raise KeyboardInterrupt

    folder = tmp_path / "run"
    with pytest.raises(KeyboardInterrupt, match=f"fedgraft simulate --resume {folder}"):
        session.start(small_config(), folder, 1, "inprocess", interrupt)
    with pytest.raises(KeyboardInterrupt, match=f"fedgraft simulate --resume {folder}"):
        session.resume(None, folder, [], "inprocess", interrupt)


def test_an_unreadable_image_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    digit_files(tmp_path / "images", 100)[3].write_bytes(b"no image")
    config = written(tmp_path, data={"source": str(tmp_path / "images")})
    line = refused(["simulate", str(config), "--out", str(tmp_path / "run")], capsys)
    assert "3.png" in line


def test_a_strategy_for_more_nodes_than_there_are_sites_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    digit_files(tmp_path / "images", 100)
    data = {"source": str(tmp_path / "images"), "partition": "site"}
    config = written(tmp_path, data=data, federation={"strategy": "bulyan"})
    line = refused(["simulate", str(config), "--out", str(tmp_path / "run")], capsys)
    assert "'bulyan' needs at least 3 nodes with 0 malicious, got 2" in line
    assert not (tmp_path / "run").exists()


def test_a_class_without_an_example_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    digits = load_source("digits")
    np.savez(tmp_path / "d.npz", images=digits.inputs, labels=digits.labels, classes=np.array([*map(str, range(11))]))
    config = written(tmp_path, data={"source": str(tmp_path / "d.npz")})
    line = refused(["simulate", str(config), "--out", str(tmp_path / "run")], capsys)
    assert "10" in line
    assert "no" in line


def test_patients_need_an_acknowledged_unit(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    digits = load_source("digits")
    patients = np.array([f"p{index // 3}" for index in range(len(digits))])
    np.savez(tmp_path / "d.npz", images=digits.inputs, labels=digits.labels, patient=patients)
    data = {"source": str(tmp_path / "d.npz")}
    config = written(tmp_path, data=data)
    line = refused(["simulate", str(config), "--out", str(tmp_path / "run")], capsys)
    assert "acknowledge_record_unit" in line
    arguments = ["simulate", str(config), "--out", str(tmp_path / "run")]
    assert fedgraft.main([*arguments, "--set", "privacy.acknowledge_record_unit=true"]) == 0


def features_header(path: Path) -> tuple[int, dict[str, Any]]:
    """Where a safetensors file's values begin, and what it says of its features."""
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        return 8 + length, json.loads(file.read(length)).get("features", {})


def test_features_that_are_not_finite_are_found_before_anything_is_written(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    backbone, digits = raw_pixels(9), load_source("digits")
    cache = default_cache()
    cache.features(backbone, None, digits)
    headers = {path: features_header(path) for path in cache.folder.rglob("*.safetensors")}
    ((segment, (begin, header)),) = [each for each in headers.items() if each[1][1].get("shape") == [1797, 81]]
    content = bytearray(segment.read_bytes())
    end = begin + header["data_offsets"][1]
    content[end - 4 : end] = np.array([np.nan], dtype=np.float32).tobytes()
    durable.write_bytes(segment, bytes(content))
    try:
        config = written(tmp_path, model={"backbone": "pixels/9"})
        line = refused(["simulate", str(config), "--out", str(tmp_path / "run")], capsys)
        assert "record 1796" in line
        assert not (tmp_path / "run").exists()
    finally:
        segment.unlink()


def test_an_existing_run_is_not_overwritten(finished: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = (finished / "result.json").read_text()
    line = refused(["simulate", str(finished / "config.toml"), "--out", str(finished)], capsys)
    assert "--resume" in line
    assert (finished / "result.json").read_text() == before


def test_resume_with_a_changed_configuration_is_refused(finished: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["simulate", str(finished / "config.toml"), "--set", "privacy.epsilon=9", "--resume", str(finished)]
    assert "privacy.epsilon" in refused(arguments, capsys)


def test_resume_of_a_run_whose_configuration_was_edited_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run_in_process(small_config(), tmp_path, range(4))
    path = tmp_path / "config.toml"
    before = path.read_text()
    path.write_text(before.replace("rounds = 3", "rounds = 4"))
    assert f"{path} was changed since its run began" in refused(["simulate", "--resume", str(tmp_path)], capsys)


def test_resume_with_other_seeds_is_refused(finished: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "--seeds" in refused(["simulate", "--resume", str(finished), "--seeds", "3"], capsys)


def test_a_class_name_with_markup_stays_text_in_the_model_card(tmp_path: Path) -> None:
    digits = load_source("digits")
    names = np.array(["<b>zero</b> # One", *map(str, range(1, 10))])
    np.savez(tmp_path / "d.npz", images=digits.inputs, labels=digits.labels, classes=names)
    config = written(tmp_path, data={"source": str(tmp_path / "d.npz")}, federation={"rounds": 1})
    assert fedgraft.main(["simulate", str(config), "--out", str(tmp_path / "run")]) == 0
    card = (tmp_path / "run" / "model" / "MODEL_CARD.md").read_text()
    assert "&lt;b&gt;zero&lt;/b&gt; # One, 1, 2" in card


def test_the_pooled_baseline_needs_a_delta_for_all_records(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = written(tmp_path, privacy={"delta": 0.002}, evaluation={"baselines": "pooled"})
    assert "pooled" in refused(["simulate", str(config), "--out", str(tmp_path / "run")], capsys)
    assert not (tmp_path / "run").exists()


def test_resume_where_no_run_is(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "found no config.toml" in refused(["simulate", "--resume", str(tmp_path)], capsys)


def test_two_processes_cannot_work_in_one_run_folder(finished: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with run.alone_in(finished):
        assert "another process" in refused(["simulate", "--resume", str(finished)], capsys)


def test_a_run_killed_before_its_configuration_was_there_is_started_again(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    folder.mkdir()
    for left in (".config.toml.x1", ".seeds.json.x2", "seeds.json"):
        (folder / left).write_text('{"seeds": [7, 8]}')
    assert fedgraft.main(["simulate", str(written(tmp_path)), "--out", str(folder)]) == 0
    assert result_of(folder)["seeds"] == [7]
    assert fedgraft.main(["simulate", "--resume", str(folder)]) == 0
    assert result_of(folder)["seeds"] == [7]


def test_a_run_of_several_seeds_is_one_from_its_first_moment(tmp_path: Path) -> None:
    """Killed right after its configuration was written, it goes on with all of its seeds."""
    run.open_folder(tmp_path / "run", small_config(), [7, 8])
    assert fedgraft.main(["simulate", "--resume", str(tmp_path / "run")]) == 0
    assert result_of(tmp_path / "run")["seeds"] == [7, 8]


@pytest.mark.parametrize("name", ["x" * 300, "file/run", "file"])
def test_an_impossible_folder_is_refused(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").write_text("in the way")
    line = refused(["simulate", str(written(tmp_path)), "--out", str(tmp_path / name)], capsys)
    assert "choose another --out" in line
    assert "--resume" not in line


def test_seeds_beyond_the_largest_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = written(tmp_path, federation={"seed": 2**63 - 1})
    line = refused(["simulate", str(config), "--seeds", "2", "--out", str(tmp_path / "run")], capsys)
    assert "federation.seed" in line
    assert not (tmp_path / "run").exists()


def test_a_broken_ledger_stops_the_resumed_run(
    finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "run"
    shutil.copytree(finished, folder)
    with sqlite3.connect(folder / "ledgers" / "node-001.sqlite") as connection:
        connection.execute("DROP TRIGGER entries_no_update")
        connection.execute("UPDATE entries SET text = replace(text, '\"round\":1', '\"round\":9') WHERE position = 2")
    line = refused(["simulate", "--resume", str(folder)], capsys)
    assert "node-001" in line
    assert "chain" in line


def test_a_ledger_that_is_gone_is_no_epsilon_of_zero(
    finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "run"
    shutil.copytree(finished, folder)
    (folder / "ledgers" / "node-001.sqlite").unlink()
    line = refused(["simulate", "--resume", str(folder)], capsys)
    assert "node-001 must hold the 3 rounds" in line


def test_exact_metrics_of_the_nodes_leave_no_guarantee(tmp_path: Path) -> None:
    config = written(tmp_path, federation={"seed": None}, evaluation={"node_metrics": "exact"})
    assert fedgraft.main(["simulate", str(config), "--out", str(tmp_path / "run")]) == 0
    privacy = result_of(tmp_path / "run")["privacy"]
    assert (privacy["noise_source"], privacy["epsilon_is_guarantee"]) == ("system", False)
    assert "No guarantee: exact metrics" in (tmp_path / "run" / "model" / "MODEL_CARD.md").read_text()


def test_a_run_that_diverges_ends_with_a_report(tmp_path: Path) -> None:
    config = written(tmp_path, training={"learning_rate": 5e38}, privacy={"sampling_rate": 1.0})
    assert fedgraft.main(["simulate", str(config), "--out", str(tmp_path / "run")]) == 0
    assert result_of(tmp_path / "run")["metrics"]["loss"] is None


def test_a_model_on_another_backbone_is_refused(
    finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(finished / "model", tmp_path / "model")
    facts = json.loads((tmp_path / "model" / "model.json").read_text())
    facts["model"]["backbone_digest"] = "0" * 64
    (tmp_path / "model" / "model.json").write_text(json.dumps(facts))
    digit = digit_files(tmp_path / "images", 1)[0]
    assert "digest" in refused(["predict", str(tmp_path / "model"), str(digit)], capsys)
    assert "model folder" in refused(["predict", str(tmp_path), str(digit)], capsys)


@pytest.mark.parametrize("changed", [lambda value: value * np.nan, lambda value: value.astype(np.int64)])
def test_a_head_of_other_values_is_refused(
    changed: Callable[[Any], Any], finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(finished / "model", tmp_path / "model")
    path = tmp_path / "model" / "head.safetensors"
    save_file({name: changed(value) for name, value in load_file(path).items()}, path)
    digit = digit_files(tmp_path / "images", 1)[0]
    for flag in ([], ["--json"]):
        assert "expected finite numbers of type torch.float32 as bias" in refused(
            ["predict", str(tmp_path / "model"), str(digit), *flag], capsys
        )


def test_disk_full_while_checkpointing_keeps_the_checkpoint_before(tmp_path: Path) -> None:
    script = """
import resource, signal, sys
from pathlib import Path
import torch
from common.errors import ConfigError
from server.checkpoints import Checkpoint, RunStore
store = RunStore(Path(sys.argv[1]), "run")
def checkpoint(round_):
    return Checkpoint(round_, {"w": torch.full((100, 100), float(round_))}, {}, {}, {"round": round_})
store.save(checkpoint(1))
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (2000, 2000))
try:
    store.save(checkpoint(2))
except ConfigError as error:
    print(error, "|", store.latest().round)
"""
    child = subprocess.run([sys.executable, "-c", script, tmp_path], capture_output=True, text=True, check=True)
    assert "could not write" in child.stdout
    assert child.stdout.strip().endswith("| 1")
    assert not [path for path in (tmp_path / "checkpoints").iterdir() if path.name.startswith(".")]

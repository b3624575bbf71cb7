"""The Ray engine: the same head as in process, failures in their own words, and nothing left running."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import fedgraft
from common.config import dump_toml
from common.errors import BudgetSpentError, FederationError, PrivacyError
from common.paths import CACHE
from simulations.ray_engine import free_ports, raise_failure, run_on_ray
from tests.federations import digest_of, small_config
from tests.processes import left_behind, lines_in, wait_until
from tests.simulations.tiny_app import NODES, configuration, write_app

ROOT = Path(__file__).parents[2]
COHORT = {"nodes": 5, "cohort": 3}


def written(folder: Path, **sections: dict[str, Any]) -> Path:
    """A configuration file on the embedded backbone, with a cohort smaller than the federation."""
    path = folder / "config.toml"
    model = {"backbone": "embedded/glyph", **sections.pop("model", {})}
    federation = {**COHORT, **sections.pop("federation", {})}
    path.write_text(dump_toml(small_config(model=model, federation=federation, **sections)))
    return path


def epsilons(folder: Path) -> dict[str, float]:
    """What the ledgers of a finished run say."""
    found: dict[str, float] = json.loads((folder / "result.json").read_text())["privacy"]["epsilon_per_node"]
    return found


def interruptible() -> None:
    """Hear Ctrl-C, which what a shell started in the background does not."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def strike(command: list[str], folder: Path, blow: signal.Signals, moment: Callable[[], object]) -> int:
    """Run a module, with a feature cache of its own, until a moment; end it; return its status.

    What it says goes to this test's own stderr.
    """
    environment = {**os.environ, CACHE: str(folder.with_name("cache"))}
    with (
        folder.with_name("said").open("a+") as said,
        subprocess.Popen(
            [sys.executable, "-m", *command],
            env=environment,
            stdout=said,
            stderr=subprocess.STDOUT,
            cwd=ROOT,
            preexec_fn=interruptible,
        ) as child,
    ):
        assert wait_until(lambda: moment() or child.poll() is not None)
        child.send_signal(blow)
        child.wait()
    print(folder.with_name("said").read_text(), file=sys.stderr)
    assert wait_until(lambda: not left_behind(folder), look_s=0.2), left_behind(folder)
    assert not (folder / "result.json").exists()
    return child.returncode


@pytest.mark.slow
def test_after_any_blow_a_run_goes_on_in_either_engine_to_the_same_head(tmp_path):
    model = {"backbone": "pixels/8", "head": "mlp", "hidden": 8}
    config = written(tmp_path, model=model, federation={"rounds": 40}, privacy={"sampling_rate": 0.1})
    assert fedgraft.main(["simulate", str(config), "--out", str(tmp_path / "whole")]) == 0
    folder = tmp_path / "struck"
    log, on_ray = folder / "rounds.jsonl", ["fedgraft", "simulate", "--resume", str(folder), "--engine", "ray"]
    in_process = ["tests.simulations.waiting_run", "3", "simulate", str(config), "--out", str(folder)]

    assert strike(in_process, folder, signal.SIGKILL, lambda: lines_in(log) >= 2) < 0
    assert strike(on_ray, folder, signal.SIGINT, lambda: lines_in(log) >= 4) == fedgraft.INTERRUPTED
    done = lines_in(log)
    assert strike(on_ray, folder, signal.SIGKILL, lambda: lines_in(log) >= done + 2) < 0

    assert fedgraft.main(["simulate", "--resume", str(folder)]) == 0
    assert digest_of(folder) == digest_of(tmp_path / "whole")
    spent, undisturbed = epsilons(folder), epsilons(tmp_path / "whole")
    assert spent.keys() == undisturbed.keys()
    assert all(spent[name] >= undisturbed[name] for name in spent)


def by_hand(folder: Path, config: Path) -> str:
    """The commands of docs/ray.md, on a configuration of five nodes, with everything in a folder."""
    (block,) = re.findall(
        r"^```sh\n(export .*?)^```$", (ROOT / "docs" / "ray.md").read_text(), re.MULTILINE | re.DOTALL
    )
    ports = iter(free_ports(2))
    script = re.sub(r"(?<=_API_PORT=)\d+", lambda _: str(next(ports)), block).replace("$PWD/runs", str(folder))
    script = re.sub(r"(?<=--run-config )\S+", str(config), script)
    assert "num-supernodes=10" in script
    return script.replace("num-supernodes=10", "num-supernodes=5")


@pytest.mark.slow
def test_flwr_run_as_documented_takes_the_same_file_to_the_same_head(tmp_path):
    config, folder = written(tmp_path), tmp_path / "by-hand"
    assert fedgraft.main(["simulate", str(config), "--out", str(tmp_path / "whole")]) == 0
    scratch, log = tmp_path / "scratch", tmp_path / "log"
    scratch.mkdir()
    program = str(Path(sys.executable).parent)
    environment = {**os.environ, "PATH": f"{program}:{os.environ['PATH']}", CACHE: str(tmp_path / "cache")}
    keeper = [
        sys.executable,
        "-m",
        "simulations.keeper",
        str(scratch),
        str(log),
        "bash",
        "-ec",
        by_hand(tmp_path, config),
    ]
    with subprocess.Popen(keeper, stdin=subprocess.PIPE, env=environment, cwd=ROOT) as process:
        assert wait_until((scratch / "ended").exists), log.read_text()
        process.communicate()
    assert not left_behind(folder)
    assert digest_of(folder) == digest_of(tmp_path / "whole"), log.read_text()
    assert fedgraft.main(["simulate", "--resume", str(folder)]) == 0
    assert epsilons(folder) == epsilons(tmp_path / "whole")
    assert (folder / "report.html").exists()


def refusal(folder: Path, engine: str, capsys: pytest.CaptureFixture[str]) -> tuple[int, str, list[str]]:
    """Resume a run that cannot go on: exit status, the sentence that is printed, and what the nodes noted."""
    status = fedgraft.main(["simulate", "--resume", str(folder), "--engine", engine])
    sentence = capsys.readouterr().err.strip().splitlines()[-1]
    notes = (folder / "nodes.log").read_text().replace(str(folder), "RUN").splitlines()
    return status, sentence, sorted(line.split(" ", maxsplit=2)[2] for line in notes)


@pytest.mark.slow
def test_the_servers_sentence_its_status_and_the_nodes_notes_are_those_of_an_in_process_run(tmp_path, capsys):
    (tmp_path / "ray" / "ledgers").mkdir(parents=True)
    written(tmp_path / "ray", model={"backbone": "pixels/8"}, federation={"cohort": None})
    for node in range(COHORT["nodes"]):
        (tmp_path / "ray" / "ledgers" / f"node-{node:03d}.sqlite").write_text("no ledger")
    shutil.copytree(tmp_path / "ray", tmp_path / "inprocess")
    expected = refusal(tmp_path / "inprocess", "inprocess", capsys)
    assert refusal(tmp_path / "ray", "ray", capsys) == expected
    assert expected[0] in fedgraft.STATUS.values()
    assert len(expected[2]) == COHORT["nodes"]
    assert not left_behind(tmp_path / "ray")


@pytest.mark.slow
def test_both_apps_come_from_the_bundle_and_a_crash_is_told_in_flowers_words(tmp_path):
    with pytest.raises(FederationError, match="the server has had enough"):
        run_on_ray(configuration("crash"), tmp_path, NODES, app=write_app)
    assert not left_behind(tmp_path)
    entries = [json.loads(line) for line in (tmp_path / "rounds.jsonl").read_text().splitlines()]
    assert [entry["round"] for entry in entries] == [1, 2]
    assert entries[0]["epsilon"] == 3.0
    assert sorted(reply["partition"] for reply in entries[0]["replies"]) == [0, 1]
    for reply in entries[0]["replies"]:
        assert reply["on_ray"]
        assert reply["folder"] == str(tmp_path)
        assert "/apps/fedgraft.tiny" in reply["client"]
    assert "/apps/fedgraft.tiny" in entries[0]["server"]


def test_what_the_server_app_left_is_raised_as_its_kind(tmp_path):
    for name, kind in (("BudgetSpentError", BudgetSpentError), ("PrivacyError", PrivacyError), ("os", FederationError)):
        (tmp_path / "failure.json").write_text(json.dumps({"kind": name, "message": "no more"}))
        with pytest.raises(FederationError, match="no more") as caught:
            raise_failure({"status": "finished:failed", "status-details": "-"}, tmp_path)
        assert type(caught.value) is kind


def test_a_run_that_never_began_is_told_by_the_log(tmp_path):
    (tmp_path / "flower.log").write_text("fine\n╭─ Error ──╮\n│ [code: 15] Invalid run configuration │\n╰──────────╯\n")
    with pytest.raises(FederationError, match=r"\[code: 15\] Invalid run configuration; see "):
        raise_failure(None, tmp_path)


def test_a_completed_run_raises_nothing(tmp_path):
    raise_failure({"status": "finished:completed", "status-details": ""}, tmp_path)

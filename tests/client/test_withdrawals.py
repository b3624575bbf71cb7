"""A patient who withdraws: no later round sees their records, whatever the data folder still holds."""

from __future__ import annotations

import shutil
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import fedgraft
from client.approvals import Approvals, keep_approvals
from client.node_config import NODE_TOML, load_node_config
from client.own_node import open_own_node, spent_so_far
from client.own_records import OwnRecords
from client.training import train_round
from client.withdrawals import read_withdrawals, withdraw, withdrawals_file
from common import paths
from common.backbones.controls import load_reference
from common.data.local import LocalData
from common.errors import ConfigError, PrivacyError
from common.features import default_cache
from common.messages import Update
from common.segments import bytes_of
from tests.federations import small_offer, small_task

CONFIG = """
[node]
name = "st-mary"

[server]
address = "127.0.0.1:1"

[data]
id = "st-mary"
source = "records"
declared_size = 60
classes = ["0", "1", "2", "3", "4", "5", "6", "7", "8", "9"]

[privacy]
max_epsilon = 8.0
delta = 1e-5
"""
MODEL = small_offer().model


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A node with 60 images of their own content, five of each patient where a list names them."""
    folder = tmp_path / "node"
    pixels = np.random.default_rng(0).integers(0, 256, (60, 8, 8), dtype=np.uint8)
    for number in range(60):
        place = folder / "records" / str(number % 6)
        place.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels[number]).save(place / f"{number}.png")
    (folder / NODE_TOML).write_text(CONFIG)
    keep_approvals(folder, Approvals().with_backbone(load_reference("pixels/8").digest, "pixels/8"))
    monkeypatch.setenv(paths.CACHE, str(folder / "cache"))
    return folder


@pytest.fixture
def patients(home: Path) -> Path:
    """The same records, listed with their patients: p0 has those of the numbers 0 to 4."""
    rows = "".join(f"records/{n % 6}/{n}.png,{n % 6},p{n // 5}\n" for n in range(60))
    (home / "list.csv").write_text("path,label,patient\n" + rows)
    text = (home / NODE_TOML).read_text().replace('source = "records"', 'source = "list.csv"')
    (home / NODE_TOML).write_text(text.replace("delta = 1e-5", "delta = 1e-5\nacknowledge_record_unit = true"))
    return home


def own(home: Path) -> OwnRecords:
    return OwnRecords(home, load_node_config(home))


def typed(capsys: pytest.CaptureFixture[str], home: Path, *arguments: str) -> tuple[int, str]:
    capsys.readouterr()
    status = fedgraft.main(["node", "forget", *arguments, "--home", str(home)])
    told = capsys.readouterr()
    return status, told.out + told.err


def cached(data: LocalData) -> bool:
    """Whether the cache has all of these records' features."""
    return (
        default_cache().kept(load_reference("pixels/8"), MODEL.cut, data.record_digests(), MODEL.precision) is not None
    )


def test_a_patient_who_withdraws_is_in_no_later_round(patients: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = own(patients).of(MODEL)
    theirs = own(patients).data.take(range(5))
    others = own(patients).data.take(range(5, 60))
    assert cached(theirs)
    status, told = typed(capsys, patients, "p0")
    assert status == 0
    assert "5 records, by 1 IDs" in told
    assert "55 of 60" in told
    assert not cached(theirs)
    assert cached(others)  # nobody else's features were lost
    after = own(patients).of(MODEL)  # another process, as after a restart
    assert len(after) == 55
    assert np.array_equal(after.everything()[0], before.everything()[0][5:])
    assert torch.equal(after.targets, before.targets[5:])
    assert (patients / "records" / "0" / "0.png").exists()


def test_files_are_forgotten_by_their_paths_and_the_index_knows(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert len(own(home).of(MODEL)) == 60
    assert list((home / "index").iterdir())
    status, _ = typed(capsys, home, "5/5.png", str(home / "records" / "4" / "10.png"), "row:1", "file:3/3.png")
    assert status == 0
    assert len(own(home).of(MODEL)) == 56
    again = own(home)
    assert len(again.of(MODEL)) == 56
    assert "everything" not in again.__dict__  # from the index
    names = again.data.file
    assert names is not None
    assert not {"5/5.png", "4/10.png", "0/0.png", "3/3.png"} & set(names.tolist())


def test_a_record_stays_out_under_another_name_and_a_name_with_another_content(
    home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert typed(capsys, home, "5/5.png")[0] == 0
    first = home / "records" / "5"
    shutil.copy(first / "5.png", first / "renamed.png")
    shutil.copy(first / "11.png", first / "5.png")
    names = own(home).data.file
    assert names is not None
    assert len(names) == 59
    assert not {"5/5.png", "5/renamed.png"} & set(names.tolist())


def test_later_records_of_the_same_patient_stay_out(patients: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert typed(capsys, patients, "patient:p0")[0] == 0
    Image.fromarray(np.full((8, 8), 77, np.uint8)).save(patients / "records" / "0" / "later.png")
    with (patients / "list.csv").open("a") as file:
        file.write("records/0/later.png,0,p0\n")
    assert len(own(patients).everything) == 61
    assert len(own(patients).of(MODEL)) == 55


@pytest.mark.parametrize("ids", [["p77"], ["p0", "p77"], ["row:61"], ["row:0"], ["sha256:00"], ["group:p0"], []])
def test_an_id_that_names_nothing_is_said_and_nothing_is_written(
    ids: list[str], patients: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    status, told = typed(capsys, patients, *ids)
    assert status == 2
    assert "expected" in told
    assert not (patients / "ledgers").exists()
    assert len(own(patients).of(MODEL)) == 60


def test_an_id_that_names_two_things_is_refused(patients: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = (patients / "list.csv").read_text().replace(",p0\n", ",records/5/59.png\n")
    (patients / "list.csv").write_text(text)
    status, told = typed(capsys, patients, "records/5/59.png")
    assert status == 2
    assert "is a patient and a file; write patient:" in told
    assert typed(capsys, patients, "file:records/5/59.png")[0] == 0
    assert len(own(patients).data) == 59


def test_nobodys_name_is_written_and_the_files_are_the_owners_alone(
    patients: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (patients / "ids.txt").write_text("p0\n\nrecords/5/59.png\n")
    assert typed(capsys, patients, "--from", str(patients / "ids.txt"))[0] == 0
    path = withdrawals_file(patients, load_node_config(patients))
    for one in (path, path.with_suffix(".key")):
        assert stat.S_IMODE(one.stat().st_mode) == 0o600
    text = path.read_text()
    assert "p0" not in text
    assert ".png" not in text
    digest = own(patients).everything.record_digests()[0].tobytes().hex()
    assert digest not in text
    assert "2 names, 6 records" in typed(capsys, patients, "--list")[1]
    before = path.read_bytes()
    status, told = typed(capsys, patients, "p0")
    assert (status, "already" in told) == (0, True)
    assert path.read_bytes() == before


def test_what_was_spent_stays_spent_and_is_said(patients: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert isinstance(train_round(small_task(), open_own_node(patients)), Update)
    before = spent_so_far(patients, load_node_config(patients))
    told = typed(capsys, patients, "p0")[1]
    assert f"epsilon {before.epsilon:.4g} of 8 at delta 1e-05, in 1 rounds released" in told
    node = open_own_node(patients)
    assert node.declared_size == 60
    assert isinstance(train_round(small_task(2), node), Update)
    assert spent_so_far(patients, load_node_config(patients)).epsilon > before.epsilon


def test_who_withdraws_while_a_message_runs_is_not_left_in_the_cache(home: Path) -> None:
    running = own(home)
    assert len(running.data) == 60  # read before
    theirs = running.data.take([0])
    withdraw(withdrawals_file(home, running.config), [], theirs.record_digests())
    assert len(running.of(MODEL)) == 60  # that message alone
    assert not cached(theirs)
    assert not list((home / "index").glob("*"))
    assert len(own(home).of(MODEL)) == 59


@pytest.mark.parametrize(
    "spoil",
    [
        lambda path: path.unlink(),
        lambda path: path.with_suffix(".key").unlink(),
        lambda path: path.write_text("{}[]"),
        lambda path: path.with_suffix(".key").write_bytes(bytes(32)),
        lambda path: path.with_suffix(".key").write_bytes(b""),
    ],
)
def test_a_list_that_was_lost_or_changed_stops_the_node(
    spoil: Callable[[Path], Any], home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert typed(capsys, home, "5/5.png")[0] == 0
    spoil(withdrawals_file(home, load_node_config(home)))
    with pytest.raises(PrivacyError, match="withdrawn"):
        open_own_node(home)
    assert typed(capsys, home, "5/11.png")[0] == 3


def test_a_crash_while_the_first_list_is_made_stops_nobody(home: Path) -> None:
    path = withdrawals_file(home, load_node_config(home))
    path.parent.mkdir()
    path.write_text('{"format": 1}')
    assert not read_withdrawals(path).listed
    path.with_suffix(".key").write_bytes(bytes(range(32)))
    assert not read_withdrawals(path).listed
    withdraw(path, [("file", "5/5.png")], np.zeros((0, 32), np.uint8))
    assert len(own(home).data) == 59


def test_a_node_whose_every_record_was_withdrawn_takes_no_part(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    status, told = typed(capsys, home, *(f"row:{n}" for n in range(1, 61)))
    assert (status, "0 of 60" in told) == (0, True)
    with pytest.raises(ConfigError, match="nobody has withdrawn"):
        own(home).of(MODEL)


def test_nodes_that_share_a_ledger_share_what_was_withdrawn(
    home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    other = tmp_path / "other"
    shared = CONFIG.replace("[data]", f'[data]\nledgers = "{tmp_path / "shared"}"')
    (home / NODE_TOML).write_text(shared)
    shutil.copytree(home, other)
    assert typed(capsys, home, "5/5.png")[0] == 0
    monkeypatch.setenv(paths.CACHE, str(other / "cache"))
    assert len(own(other).of(MODEL)) == 59
    assert bytes_of(other / "cache") > 0

"""The operator's commands, as far as no server has to run."""

from __future__ import annotations

import io
import json
import stat
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import fedgraft
from client.approvals import Approvals, changing_approvals, keep_approvals, read_approvals
from client.keys import KEY, PUBLIC_KEY
from client.node_config import NODE_TOML, load_node_config
from client.node_folder import environment
from client.own_node import open_own_ledger
from common.bundle import app_digest
from common.plan_file import plan_digest, write_plan
from common.privacy.keys import load_private, load_public, openssh
from server.coordinator_folder import JOIN_FILE, ServerConfig, make_place
from tests.federations import small_offer


@pytest.fixture(scope="module")
def join(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("coordinator")
    make_place(folder, ServerConfig(names=["127.0.0.1"], port=1), "ab" * 32)
    return folder / JOIN_FILE


@pytest.fixture
def home(join: Path, tmp_path: Path) -> Path:
    for number in range(20):
        place = tmp_path / "records" / "ab"[number % 2]
        place.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.full((8, 8), number, np.uint8)).save(place / f"{number}.png")
    options = ["--name", "north", "--data", str(tmp_path / "records"), "--home", str(tmp_path / "node")]
    assert fedgraft.main(["node", "init", "--join", str(join), *options]) == 0
    return tmp_path / "node"


def typed(capsys: pytest.CaptureFixture[str], home: Path, *arguments: str) -> tuple[int, str]:
    capsys.readouterr()
    status = fedgraft.main(["node", *arguments, "--home", str(home)])
    told = capsys.readouterr()
    return status, told.out + told.err


def test_init_makes_a_key_and_a_configuration_that_fits_the_records(home: Path) -> None:
    config = load_node_config(home)
    assert (config.data.classes, config.data.declared_size) == (("a", "b"), 20)
    assert stat.S_IMODE(home.stat().st_mode) == 0o700
    assert stat.S_IMODE((home / KEY).stat().st_mode) == 0o600
    assert openssh(load_private(home / KEY).public_key()) == openssh(load_public(home / PUBLIC_KEY))
    assert "PRIVATE" not in (home / NODE_TOML).read_text()


def test_init_keeps_a_node_that_is_there(
    home: Path, join: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    before = (home / KEY).read_bytes()
    status, told = typed(capsys, home, "init", "--join", str(join), "--name", "other")
    assert status == 2
    assert "holds a node already" in told
    assert (home / KEY).read_bytes() == before


def test_init_without_records_writes_a_configuration_to_be_completed(
    join: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    status, told = typed(capsys, tmp_path / "other", "init", "--join", str(join), "--name", "south")
    assert status == 0
    assert "correct [data] in node.toml" in told
    assert load_node_config(tmp_path / "other").data.source == "/path/to/records"


@pytest.mark.parametrize(
    ("name", "words"), [(KEY, "expected an OpenSSH private key"), ("ca.crt", "expected a CA's certificate in")]
)
def test_a_damaged_key_or_certificate_is_told_before_anything_is_started(
    name: str, words: str, home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (home / name).write_bytes((home / name).read_bytes()[:100])
    status, told = typed(capsys, home, "start")
    assert status == 2
    assert told.startswith(f"error: {words}")
    status, told = typed(capsys, home, "check")
    assert status == 1
    assert words in told
    assert ("firewall" in told) == (name == KEY)  # which is good advice where only the key is damaged


@pytest.mark.parametrize(("text", "words"), [(None, "No such file"), ("{}", "got something else")])
def test_a_join_file_that_is_none_is_refused(
    text: str | None, words: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    if text is not None:
        (tmp_path / "x.join").write_text(text)
    status, told = typed(capsys, tmp_path / "node", "init", "--join", str(tmp_path / "x.join"), "--name", "n")
    assert status == 2
    assert words in told
    assert not (tmp_path / "node").exists()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--epsilon", "nan"], "max_epsilon"),
        (["--delta", "5"], "delta"),
        (["--size", "-3"], "declared_size"),
        (["--size", "200000"], "at most 1 / data.declared_size"),
        (["--name", "st mary"], "node.name"),
    ],
)
def test_values_that_no_configuration_may_have_make_no_node(
    options: list[str], words: str, join: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    usual = ["init", "--join", str(join), "--name", "n", "--classes", "a,b", "--size", "10"]
    status, told = typed(capsys, tmp_path / "node", *usual, *options)
    assert (status, words in told) == (2, True)
    assert not (tmp_path / "node").exists()


def test_no_proxy_stands_between_programs_of_one_machine(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HTTP_PROXY", "http://proxy.example.org:3128")
    monkeypatch.setenv("no_proxy", "internal.example.org")
    assert environment(home)["no_proxy"] == "internal.example.org,127.0.0.1,localhost,::1"
    assert environment(home)["NO_PROXY"] == environment(home)["no_proxy"]


def test_approvals(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert typed(capsys, home, "approve", "app")[0] == 0
    assert typed(capsys, home, "approve", "app", "CD" * 32)[0] == 0
    assert set(read_approvals(home).apps) == {app_digest(), "cd" * 32}
    status, told = typed(capsys, home, "approve", "app", "short")
    assert (status, "64 hexadecimal digits" in told) == (2, True)
    assert typed(capsys, home, "approve", "backbone", "pixels/8")[0] == 0
    status, told = typed(capsys, home, "approve", "backbone", "pixel/8")
    assert (status, "error:" in told) == (2, True)
    assert "pixels/8" in typed(capsys, home, "approve", "list")[1]


def test_a_plan_is_read_approved_and_withdrawn(home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    offer, path = small_offer(), tmp_path / "plan.json"
    write_plan(path, offer.model, offer.terms)
    digest = plan_digest(offer.model, offer.terms)
    status, told = typed(capsys, home, "approve", "plan", str(path), "--yes")
    assert (status, digest in told, "epsilon" in told, "approved_plans_only = true" in told) == (0, True, True, True)
    assert typed(capsys, home, "approve", "plan", "CD" * 32)[0] == 0
    assert set(read_approvals(home).plans) == {digest, "cd" * 32}
    assert f"plan      {digest}  classification" in typed(capsys, home, "approve", "list")[1]
    for wrong in ("ab" * 32, digest[:7], ""):
        assert typed(capsys, home, "approve", "withdraw", wrong)[0] == 2
    assert typed(capsys, home, "approve", "withdraw", digest[:8].upper())[0] == 0
    assert set(read_approvals(home).plans) == {"cd" * 32}


def test_neither_a_plan_nor_its_digest_is_said(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    status, told = typed(capsys, home, "approve", "plan", "missing.json")
    assert (status, "expected a file of `fedgraft server plan`, or a SHA-256" in told) == (2, True)


def test_an_approval_of_any_kind_is_withdrawn(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert typed(capsys, home, "approve", "app", "ab" * 32)[0] == 0
    assert typed(capsys, home, "approve", "backbone", "pixels/8")[0] == 0
    (backbone,) = read_approvals(home).backbones
    assert "withdrawn from apps" in typed(capsys, home, "approve", "withdraw", "ab" * 32)[1]
    assert "withdrawn from backbones" in typed(capsys, home, "approve", "withdraw", backbone)[1]
    assert read_approvals(home) == Approvals()


def test_of_approvals_at_once_none_is_lost(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with ThreadPoolExecutor() as pool, changing_approvals(home):
        before = read_approvals(home)
        other = pool.submit(fedgraft.main, ["node", "approve", "plan", "cd" * 32, "--home", str(home)])
        time.sleep(0.3)
        keep_approvals(home, before.with_plan("ab" * 32, "first"))
        assert not other.done()
    assert other.result() == 0
    assert set(read_approvals(home).plans) == {"ab" * 32, "cd" * 32}


def test_the_doctor_says_of_each_thing_what_to_do(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    status, told = typed(capsys, home, "check", "--json")
    assert status == 1
    found = {one["subject"]: one for one in json.loads(told)}
    assert {name for name, one in found.items() if one["state"] == "fail"} == {"server", "backbones", "apps"}
    assert "cannot reach 127.0.0.1:1" in found["server"]["words"]
    assert "fedgraft node approve app" in found["apps"]["words"]
    assert "20 records readable" in found["data"]["words"]
    assert (found["clock"]["state"], found["contact"]["state"]) == ("note", "ok")
    (home / KEY).chmod(0o644)
    (home / "ca.crt").write_text("nothing")
    home.chmod(0o755)
    next((home.parent / "records" / "a").iterdir()).write_bytes(b"broken")
    told = typed(capsys, home, "check")[1]
    for words in ("others can read", "expected a CA's certificate", "others can look into", "FAIL  data"):
        assert words in told


def test_status_says_what_is_left(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert typed(capsys, home, "pause")[0] == 0
    status, told = typed(capsys, home, "status", "--json")
    said = json.loads(told)
    assert (status, said["paused"], said["running"]) == (0, True, False)
    assert said["last_contact"] is None
    assert (said["epsilon"], said["epsilon_left"], said["rounds"]) == (0.0, 1.0, 0)
    assert typed(capsys, home, "resume")[0] == 0
    assert "not running" in typed(capsys, home, "status")[1]
    assert "it was not running" in typed(capsys, home, "stop")[1]


def test_the_ledger_is_verified_and_exported(home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "no ledger yet" in typed(capsys, home, "ledger", "verify")[1]
    status, told = typed(capsys, home, "ledger", "export", "--out", str(tmp_path / "none.json"))
    assert (status, "nothing was released from this data set" in told) == (2, True)
    assert not (home / "ledgers").exists()
    with open_own_ledger(home, load_node_config(home)):
        pass
    assert "intact: 1 entries" in typed(capsys, home, "ledger", "verify")[1]
    out = tmp_path / "ledger.json"
    assert typed(capsys, home, "ledger", "export", "--out", str(out))[0] == 0
    assert fedgraft.main(["audit", "ledger", str(out), "--key", str(home / PUBLIC_KEY)]) == 0


def test_a_higher_cap_is_refused_until_it_is_signed_off_and_the_auditor_reads_by_whom(
    home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO("n\n"))
    assert "no ledger yet" in typed(capsys, home, "ledger", "raise-cap", "4")[1]
    with open_own_ledger(home, load_node_config(home)):
        pass
    assert typed(capsys, home, "ledger", "raise-cap", "4")[0] == 2  # node.toml has 1
    path = home / NODE_TOML
    path.write_text(path.read_text().replace("max_epsilon = 1.0", "max_epsilon = 4.0"))
    assert "4 in node.toml: `fedgraft node ledger raise-cap`" in typed(capsys, home, "status")[1]
    assert json.loads(typed(capsys, home, "status", "--json")[1])["epsilon_cap"] == 1.0
    assert "run `fedgraft node ledger raise-cap 4.0`" in typed(capsys, home, "check")[1]
    assert "intact: 1 entries" in typed(capsys, home, "ledger", "verify")[1]
    assert typed(capsys, home, "ledger", "raise-cap", "5", "--yes")[0] == 2
    status, told = typed(capsys, home, "ledger", "raise-cap", "4")  # asks, and is answered no
    assert (status != 0, "Sign this off?" in told, "epsilon 1, to be raised to 4" in told) == (True, True, True)
    assert "intact: 1 entries" in typed(capsys, home, "ledger", "verify")[1]
    signed = ["--yes", "--by", "Dr. North", "--reason", "the board agreed"]
    assert "the cap is epsilon 4" in typed(capsys, home, "ledger", "raise-cap", "4", *signed)[1]
    assert "nothing to sign off" in typed(capsys, home, "ledger", "raise-cap", "4")[1]
    assert "refusing" not in typed(capsys, home, "status")[1]
    out = tmp_path / "ledger.json"
    typed(capsys, home, "ledger", "export", "--out", str(out))
    assert fedgraft.main(["audit", "ledger", str(out)]) == 0
    assert "Dr. North" in capsys.readouterr().out


def test_flowers_programs_get_an_environment_that_tells_nobody_anything(home: Path) -> None:
    around = environment(home)
    assert around["FLWR_TELEMETRY_ENABLED"] == "0"
    assert around["FEDGRAFT_CACHE"] == str(home / "cache")
    assert around["FEDGRAFT_NODE"] == str(home)


@pytest.mark.parametrize("command", [["status"], ["start"], ["ledger", "verify"], ["approve", "app"], ["pause"]])
def test_commands_without_a_node_say_what_to_do(
    command: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    status, told = typed(capsys, tmp_path / "none", *command)
    assert (status, "run `fedgraft node init` first" in told) == (2, True)
    assert not (tmp_path / "none").exists()

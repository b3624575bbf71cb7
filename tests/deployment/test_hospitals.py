"""A federation of real processes over TLS: it trains, each node's own caps hold, and what is killed comes back."""

from __future__ import annotations

import json
import stat
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil
import pytest
from cryptography.hazmat.primitives.asymmetric import ec

import fedgraft
from client.approvals import APPROVALS
from client.keys import KEY
from client.node_config import NODE_TOML
from client.secagg_record import SECAGG_RECORDS, forget_secrets
from common.backbones.controls import load_reference
from common.backbones.package import save
from common.backbones.parcel import PIECE_BYTES
from common.privacy.accountant import epsilon_by_round
from common.privacy.keys import openssh
from server.coordinator import privacy_terms
from server.run_folder import is_held
from tests.confining import can_confine
from tests.deployment.hospitals import Hospitals, write_digits
from tests.federations import small_config
from tests.processes import wait_until

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

NAMES = ("north", "south", "west")
SUMS: dict[str, Any] = {"trust": "secagg", "largest_node": 1000}
CONFINED = ("--isolation", "process") if can_confine() else ()  # its app has no network


@pytest.fixture(scope="module")
def hospitals(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Hospitals]:
    made = Hospitals(tmp_path_factory.mktemp("hospitals"))
    try:
        made.coordinate()
        for number, name in enumerate(NAMES):
            data = write_digits(made.folder / "data" / name, range(number * 100, number * 100 + 100))
            made.join_sums(made.admit(name, data), min_colluders=0)
            made.start("node", made.folder / name, *(CONFINED if name == "north" else ()))
        made.exchange_keys(NAMES)
        assert made.online(NAMES)
        yield made
    finally:
        made.end()


@pytest.fixture(scope="module")
def first(hospitals: Hospitals) -> Path:
    """The folder of a run of five rounds."""
    hospitals.run("server", "run", str(hospitals.configuration()), "--name", "first", home=hospitals.server)
    return hospitals.server / "runs" / "first"


def test_three_hospitals_train_a_head_that_predicts(hospitals: Hospitals, first: Path) -> None:
    lines = hospitals.lines("first")
    assert [line["nodes"] for line in lines] == [3] * 5
    assert not any(line["failed"] for line in lines)
    image = next((hospitals.folder / "data" / "north" / "7").iterdir())
    assert str(image) in hospitals.run("predict", str(first / "model"), str(image))


def test_the_same_federation_simulated_reaches_the_same_accuracy(hospitals: Hospitals, first: Path) -> None:
    """Two heads from 100 records a node, five noisy steps: they differ by noise alone."""
    simulated = hospitals.folder / "simulated.toml"
    simulated.write_text((first / "config.toml").read_text().replace("nodes = 3", "nodes = 3\nseed = 5"))
    out = hospitals.folder / "simulated"
    share = ("--set", "data.test_fraction=0.8", "--baselines", "none", "--seeds", "3")
    assert fedgraft.main(["simulate", str(simulated), "--out", str(out), *share]) == 0
    both = [json.loads((folder / "result.json").read_text())["accuracy"]["federated"] for folder in (first, out)]
    assert abs(both[0] - both[1]) < 0.2
    assert min(both) > 0.3  # guessing gives 0.1


def test_every_ledger_holds_what_was_released_and_an_auditor_verifies_it(hospitals: Hospitals, first: Path) -> None:
    terms = privacy_terms(small_config(federation={"rounds": 5}, privacy={"epsilon": 4.0}), 64)
    for name in NAMES:
        home = hospitals.folder / name
        said = hospitals.status(home)
        assert said["epsilon"] >= epsilon_by_round(terms)[5]
        assert not said["open_reservations"]
        out = hospitals.folder / f"{name}.ledger.json"
        hospitals.run("node", "ledger", "export", "--out", str(out), home=home)
        told = hospitals.run("audit", "ledger", str(out), "--key", str(home / "node.key.pub"))
        assert said["chain_head"] in told.replace("\n", "")
    assert fedgraft.main(["audit", "ledger", str(out), "--key", str(hospitals.folder / "north" / "node.key.pub")]) == 3


def test_the_doctor_finds_nothing_to_do(hospitals: Hospitals) -> None:
    told = hospitals.run("node", "check", home=hospitals.folder / "north")
    assert "FAIL" not in told
    assert "by the signed times that it accepts" in told
    assert "the coordinator last answered" in told


def test_a_node_whose_cap_does_not_suffice_refuses_or_stops_at_the_last_round_that_fits(hospitals: Hospitals) -> None:
    terms = privacy_terms(small_config(federation={"rounds": 5}, privacy={"epsilon": 3.0}), 64)
    spent = {name: hospitals.status(hospitals.folder / name)["epsilon"] for name in ("south", "west")}
    for name, partial in (("south", "false"), ("west", "true")):
        path = hospitals.folder / name / NODE_TOML
        cap = f"max_epsilon = {spent[name] + 1.3}\npartial = {partial} #"
        path.write_text(path.read_text().replace("max_epsilon =", cap))
    config = hospitals.configuration(privacy={"epsilon": 3.0})
    hospitals.run("server", "run", str(config), "--name", "capped", home=hospitals.server)
    lines = hospitals.lines("capped")
    assert len(lines) == terms.rounds
    assert all("south" not in line["failed"] for line in lines)  # refused at the offer: never asked
    assert "west" not in lines[0]["failed"]
    assert lines[-1]["failed"] == {"west": "budget"}
    assert lines[0]["nodes"] == 2
    assert lines[-1]["nodes"] == 1
    for name in ("south", "west"):
        said = hospitals.status(hospitals.folder / name)
        assert said["epsilon"] <= said["epsilon_cap"]
        log = (hospitals.folder / name / "logs" / "apps.log").read_text()
        assert f"{name} refuses: the privacy budget" in log
    assert hospitals.status(hospitals.folder / "south")["epsilon"] == spent["south"]


def test_an_app_a_backbone_or_a_key_that_nobody_approved_is_refused(hospitals: Hospitals) -> None:
    """North runs no app and south loads no backbone; east shows a key that nobody registered."""
    data = hospitals.folder / "data" / "north"
    approvals = {name: (hospitals.folder / name / APPROVALS).read_text() for name in ("north", "south")}
    (hospitals.folder / "north" / APPROVALS).write_text('{"apps": {}, "backbones": {}}')
    (hospitals.folder / "south" / APPROVALS).write_text(approvals["south"].replace('"pixels/8"', '"pixels/7"'))
    for name in ("south", "west"):
        hospitals.raise_cap(hospitals.folder / name, 50.0)
    east = hospitals.admit("east", data)
    (east / KEY).write_bytes(_other_key())
    hospitals.start("node", east)
    config = hospitals.configuration(federation={"rounds": 2}, privacy={"epsilon": 2.0})
    nodes = ("--nodes", "north,south,west")
    hospitals.run("server", "run", str(config), "--name", "refused", *nodes, home=hospitals.server)
    assert [line["nodes"] for line in hospitals.lines("refused")] == [1, 1]
    assert "nobody approved it on this node" in (hospitals.folder / "north" / "logs" / "supernode.log").read_text()
    assert "expected the backbone pixels/7" in (hospitals.folder / "south" / "logs" / "apps.log").read_text()
    assert "east" not in hospitals.connected()
    hospitals.run("node", "stop", home=east)  # it would start again and again
    for name, text in approvals.items():
        (hospitals.folder / name / APPROVALS).write_text(text)


def test_what_is_killed_comes_back_and_the_run_goes_on(hospitals: Hospitals) -> None:
    """First the SuperLink and a SuperNode, with the server app waiting for them; then the server app itself."""
    for name in NAMES:
        hospitals.raise_cap(hospitals.folder / name, 50.0)
    config = hospitals.configuration(federation={"rounds": 8, "round_timeout_s": 60.0})
    command = [sys.executable, "-m", "fedgraft", "server", "run", str(config), "--name", "killed"]
    command += ["--nodes", ",".join(NAMES), "--home", str(hospitals.server)]
    following = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        assert wait_until(lambda: len(hospitals.lines("killed")) >= 2)
        for home, words in ((hospitals.server, "server.superlink"), (hospitals.folder / "west", "client.supernode")):
            (process,) = hospitals.processes(home, words)
            process.kill()
        before = len(hospitals.lines("killed"))
        assert wait_until(lambda: len(hospitals.lines("killed")) >= before + 2)
        assert following.poll() is None  # it goes on while the SuperLink is away
        (app,) = hospitals.server_apps()
        app.kill()
    finally:
        following.terminate()
        following.wait()
    assert hospitals.online(NAMES)
    hospitals.run("server", "resume", "killed", home=hospitals.server)
    assert [line["round"] for line in hospitals.lines("killed")] == [1, 2, 3, 4, 5, 6, 7, 8]
    for name in NAMES:
        hospitals.run("node", "ledger", "verify", home=hospitals.folder / name)
        said = hospitals.status(hospitals.folder / name)
        assert max(said["runs"].values()) <= 8


def test_a_backbone_that_two_nodes_await_is_sent_to_them_and_used(hospitals: Hospitals) -> None:
    """Three pieces; north's app is confined, and writes nothing but what it receives."""
    packed, names = hospitals.folder / "packed", ("north", "south")
    digest = save(load_reference("torchvision/mobilenet_v2:32@random-3"), packed).digest
    size = sum(path.stat().st_size for path in packed.iterdir())
    assert size > 2 * PIECE_BYTES
    for name in names:
        home = hospitals.folder / name
        hospitals.raise_cap(home, 60.0)
        hospitals.run("node", "approve", "backbone", "--digest", digest, "--size-limit", "20", home=home)
    before = {name: (hospitals.folder / name / APPROVALS).read_bytes() for name in names}
    config = hospitals.configuration(
        federation={"nodes": 2, "rounds": 1}, model={"backbone": f"package/{packed}"}, privacy={"epsilon": 2.0}
    )
    nodes = ("--name", "sent", "--nodes", ",".join(names), "--home", str(hospitals.server))
    hospitals.run("server", "run", str(config), *nodes)
    assert [line["nodes"] for line in hospitals.lines("sent")] == [2]
    result = json.loads((hospitals.server / "runs" / "sent" / "result.json").read_text())
    assert result["bytes"]["backbone_once"] == 2 * size
    for name in names:
        home = hospitals.folder / name
        assert (home / APPROVALS).read_bytes() == before[name]
        assert f"the backbone {digest} has come" in (home / "logs" / "apps.log").read_text()
        assert "(sent)" in hospitals.run("node", "check", home=home)


def test_secure_sums_train_a_head_and_both_figures_of_epsilon_are_shown(hospitals: Hospitals) -> None:
    for name in NAMES:
        hospitals.raise_cap(hospitals.folder / name, 900.0)
    before = {name: hospitals.status(hospitals.folder / name)["rounds"] for name in NAMES}
    privacy = {**SUMS, "colluders": 1, "dropouts": 0, "epsilon": 100.0}  # one step, with hardly any noise
    config = hospitals.configuration(federation={"rounds": 1}, privacy=privacy)
    nodes = ("--name", "summed", "--nodes", ",".join(NAMES), "--home", str(hospitals.server))
    told = hospitals.run("server", "run", str(config), *nodes)
    assert "secagg trust, this run alone" in told
    assert "together with up to 1 of the nodes" in told
    (line,) = hospitals.lines("summed")
    assert (line["survivors"], line["failed"]) == ([*NAMES], {})
    result = json.loads((hospitals.server / "runs" / "summed" / "result.json").read_text())
    assert result["accuracy"]["federated"] > 0.25  # guessing gives 0.1; masks that stay in leave no more than that
    for name in NAMES:
        home = hospitals.folder / name
        figures, said = result["privacy"], hospitals.status(home)
        assert 0 < figures["epsilon_against_model_per_node"][name] < figures["epsilon_per_node"][name] <= 100.0
        assert 0 < said["epsilon_against_model"] < said["epsilon"]
        assert "secagg" in said["trusts"]
        assert said["rounds"] == before[name] + 1
        assert "against whoever sees the models" in hospitals.run("node", "status", home=home)
        hospitals.run("node", "ledger", "verify", home=home)
        assert {stat.S_IMODE(path.stat().st_mode) for path in (home / SECAGG_RECORDS).iterdir()} == {0o600}
        assert forget_secrets(home / SECAGG_RECORDS) == 0  # a round that is over leaves none
        assert "FAIL" not in hospitals.run("node", "check", home=home)


def test_a_round_of_sums_outlives_a_killed_app_and_a_killed_server(hospitals: Hospitals) -> None:
    """From the moment that all vectors are there west's apps are killed, until a round ends without its part."""
    privacy = {**SUMS, "colluders": 0, "dropouts": 1}
    config = hospitals.configuration(federation={"rounds": 2}, privacy=privacy)
    command = [sys.executable, "-m", "fedgraft", "server", "run", str(config), "--name", "broken"]
    command += ["--nodes", ",".join(NAMES), "--home", str(hospitals.server)]
    following = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    replies = hospitals.server / "runs" / "broken" / "sums"

    def west_is_missed() -> bool:
        time.sleep(0.1)  # an app lives longer, and looking for it is work
        for app in hospitals.apps(hospitals.folder / "west"):
            with suppress(psutil.NoSuchProcess):
                app.kill()
        return any("west" in line["failed"] for line in hospitals.lines("broken"))

    try:
        assert wait_until(lambda: list(replies.glob("round-*-vector.json")))
        assert wait_until(west_is_missed)
        for app in hospitals.server_apps():
            app.kill()
    finally:
        following.terminate()
        following.wait()
    assert wait_until(lambda: not is_held(replies.parent))
    if not (replies.parent / "result.json").exists():  # it was missed in the last round only
        hospitals.run("server", "resume", "broken", home=hospitals.server)
    lines = hospitals.lines("broken")
    assert [line["round"] for line in lines] == [1, 2]
    assert all({"north", "south"} <= set(line["survivors"]) for line in lines)  # none was discarded
    run = json.loads((hospitals.server / "runs" / "broken" / "run.json").read_text())["run_id"]
    for name in NAMES:
        hospitals.run("node", "ledger", "verify", home=hospitals.folder / name)
        released = hospitals.status(hospitals.folder / name)["runs"].get(run, 0)
        assert released == 2 if name != "west" else released <= 2


def test_a_node_sums_with_nobody_whose_key_its_operator_did_not_approve(hospitals: Hospitals) -> None:
    """South was given another key for west, as a coordinator in the middle would; north has no key of west at all."""
    peers = (hospitals.folder / "peers.pub").read_text()
    spent = {name: hospitals.status(hospitals.folder / name)["epsilon"] for name in NAMES}
    own = (hospitals.folder / "west" / "node.key.pub").read_text()
    other = openssh(ec.generate_private_key(ec.SECP384R1()).public_key())
    for name, west in (("south", f"{other} west\n"), ("north", "")):
        forged = hospitals.folder / f"{name}.peers"
        forged.write_text(peers.replace(f"{' '.join(own.split()[:2])} west\n", west))
        hospitals.run("node", "approve", "peers", str(forged), "--yes", home=hospitals.folder / name)
    config = hospitals.configuration(federation={"rounds": 1}, privacy={**SUMS, "colluders": 1, "dropouts": 0})
    nodes = ("--nodes", ",".join(NAMES), "--home", str(hospitals.server))
    told = hospitals.run("server", "run", str(config), "--name", "few", *nodes, status=4)
    assert "at least 3 nodes for a sum, only 2 accepted" in told
    log = (hospitals.folder / "north" / "logs" / "apps.log").read_text()
    assert "sums over 3 nodes need the approved keys of so many" in log
    hospitals.exchange_keys(["north"])
    hospitals.run("server", "run", str(config), "--name", "forged", *nodes)
    (line,) = hospitals.lines("forged")
    assert line["failed"] == {"south": "policy"}
    assert "nothing is unmasked" in line["discarded"]
    log = (hospitals.folder / "south" / "logs" / "apps.log").read_text()
    assert "the server names another key for west" in log
    assert {name: hospitals.status(hospitals.folder / name)["epsilon"] for name in NAMES} == spent


def test_a_key_that_is_replaced_or_removed_is_cut_off_while_it_is_connected(hospitals: Hospitals) -> None:
    """The last test: north is gone after it."""
    home = hospitals.folder / "north"
    log = home / "logs" / "supernode.log"

    def ids() -> list[str]:
        return [line.split()[-1] for line in log.read_text().splitlines() if "SuperNode ID" in line]

    assert hospitals.online(["north"])
    before = ids()[-1]
    hospitals.run("node", "rotate-key", home=home)
    replace = ("--key", str(home / "node.key.pub"), "--replace")
    hospitals.run("server", "add-node", "north", *replace, home=hospitals.server)
    assert wait_until(lambda: ids()[-1] != before)  # cut off by its old key, and started again with the new one
    assert hospitals.online(["north"])
    told = len(log.read_text())
    hospitals.run("server", "remove-node", "north", home=hospitals.server)
    assert wait_until(lambda: log.read_text()[told:].count("Starting Flower SuperNode") >= 2)
    assert "SuperNode ID" not in log.read_text()[told:]
    listed = json.loads(hospitals.run("server", "nodes", "--json", home=hospitals.server))
    assert [one["status"] for one in listed if one["name"] == "north"] == ["unregistered", "unregistered"]
    assert "already in use" in hospitals.run(
        "server", "add-node", "north", *replace[:2], home=hospitals.server, status=2
    )


def _other_key() -> bytes:
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    return ec.generate_private_key(ec.SECP384R1()).private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.OpenSSH, serialization.NoEncryption()
    )

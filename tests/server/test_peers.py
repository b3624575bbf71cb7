"""Whose keys a run of sums is about, and what is refused before a run is made."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import ec

import fedgraft
from common.config import RunConfig
from common.errors import ConfigError, PrivacyError
from common.privacy.keys import fingerprint, openssh
from common.secagg.roster import read_roster
from server.coordinator_folder import SERVER_TOML, Place, Registered, ServerConfig
from server.peers import PEERS, keep_peers, peers_of, registered_peers
from server.submission import open_run
from tests.federations import small_config

NAMES = ("east", "north", "south")


def registered(number: int) -> Registered:
    public = openssh(ec.generate_private_key(ec.SECP384R1()).public_key())
    return Registered(node_id=number, fingerprint=fingerprint(public), key=public)


@pytest.fixture
def place(tmp_path: Path) -> Place:
    made = Place(tmp_path, ServerConfig(names=["127.0.0.1"]))
    made.runs.mkdir()
    (tmp_path / SERVER_TOML).write_text('names = ["127.0.0.1"]\n')
    made.keep_nodes({name: registered(number) for number, name in enumerate(NAMES)})
    return made


def summing(nodes: int = 3, **privacy: Any) -> RunConfig:
    terms = {"trust": "secagg", "dropouts": 0, "colluders": 1, "largest_node": 1000, **privacy}
    return small_config(federation={"nodes": nodes}, privacy=terms)


def test_a_run_knows_its_nodes_by_the_keys_that_they_have_when_it_starts(place: Place) -> None:
    folder = open_run(place, summing(), "sums", [])
    keep_peers(place, folder, summing(), NAMES)
    assert peers_of(folder)(NAMES) == registered_peers(place, NAMES)
    rotated = registered(9)
    place.keep_nodes({**place.nodes(), "south": rotated})
    keep_peers(place, folder, summing(), NAMES)  # as a resume does
    assert peers_of(folder)(["south"]).keys == {"south": rotated.key}


def test_a_run_of_local_trust_needs_no_keys(place: Place) -> None:
    place.keep_nodes({"north": Registered(node_id=1, fingerprint="SHA256:x")})
    folder = open_run(place, small_config(), "local", [])
    keep_peers(place, folder, small_config(), ["north"])
    assert not (folder / PEERS).exists()


@pytest.mark.parametrize("key", ["", "another"])
def test_a_key_that_was_not_kept_or_is_another_is_asked_for(place: Place, key: str) -> None:
    nodes = place.nodes()
    other = registered(0).key if key else ""
    place.keep_nodes({**nodes, "north": nodes["north"].model_copy(update={"key": other})})
    folder = open_run(place, summing(), "sums", [])
    with pytest.raises(ConfigError, match="add-node north --key FILE --replace"):
        keep_peers(place, folder, summing(), NAMES)


@pytest.mark.parametrize(
    ("config", "nodes", "words"),
    [
        (summing(4), [], r"federation\.nodes: sums are over at least 4 nodes, and the run may reach 3 \(east, north"),
        (summing(3), ["north", "south"], "may reach 2"),
        (summing(2), [], "expected 3 to 200 nodes for a sum, came 2"),
    ],
)
def test_a_run_that_wants_other_nodes_than_there_are_is_refused(
    place: Place, config: RunConfig, nodes: list[str], words: str
) -> None:
    with pytest.raises(ConfigError, match=words):
        open_run(place, config, "sums", nodes)
    assert not (place.runs / "sums").exists()


def test_a_run_whose_sums_protect_too_little_is_refused_before_it_is_made(place: Place) -> None:
    with pytest.raises(PrivacyError, match="at most 0 drop-outs are safe"):
        open_run(place, summing(dropouts=1), "sums", [])
    with pytest.raises(PrivacyError, match="must not collude"):
        open_run(place, summing(colluders=2), "sums", [])
    assert not (place.runs / "sums").exists()


def test_the_keys_are_written_down_for_hospitals_and_over_nothing_else(
    place: Place, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "all.pub"
    for _ in range(2):
        assert fedgraft.main(["server", "peers", "--out", str(out), "--home", str(tmp_path)]) == 0
    assert read_roster(out) == registered_peers(place, NAMES)
    assert place.nodes()["south"].fingerprint in capsys.readouterr().out
    out.write_text("something else")
    assert fedgraft.main(["server", "peers", "--out", str(out), "--home", str(tmp_path)]) == 2
    assert out.read_text() == "something else"

"""A node whose features and index are encrypted at rest."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import fedgraft
from client.node_config import NODE_TOML, load_node_config
from client.own_records import OwnRecords
from common import paths
from common.errors import ConfigError
from tests.client.test_withdrawals import CONFIG, cached
from tests.federations import small_offer

MODEL = small_offer().model


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A node with 30 images; it has kept features without a key, and is told of one that is not made yet."""
    folder = tmp_path / "node"
    pixels = np.random.default_rng(0).integers(0, 256, (30, 8, 8), dtype=np.uint8)
    for number in range(30):
        place = folder / "records" / str(number % 6)
        place.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels[number]).save(place / f"{number}.png")
    (folder / NODE_TOML).write_text(CONFIG)
    monkeypatch.setenv(paths.CACHE, str(folder / "cache"))
    own(folder).of(MODEL)
    (folder / NODE_TOML).write_text(CONFIG.replace("[data]", f'[data]\ncache_key = "{tmp_path / "cache.key"}"'))
    return folder


def own(home: Path) -> OwnRecords:
    return OwnRecords(home, load_node_config(home))


def typed(home: Path, *arguments: str) -> int:
    return fedgraft.main(["node", *arguments, "--home", str(home)])


def state_of(home: Path, capsys: pytest.CaptureFixture[str]) -> str:
    capsys.readouterr()
    typed(home, "check", "--json")
    found = json.loads(capsys.readouterr().out)
    return next(f"{one['state']} {one['words']}" for one in found if one["subject"] == "cache")


def test_features_and_index_are_encrypted_and_what_was_kept_before_goes(
    home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    digest, suffixes = own(home).everything.record_digests()[0].tobytes(), {".safetensors"}
    assert {path.suffix for path in (home / "cache" / "features").glob("*/*")} == suffixes
    (plain_index,) = (home / "index").iterdir()
    assert digest in plain_index.read_bytes()  # it would be found
    with pytest.raises(ConfigError, match="expected the cache's key"):
        own(home).of(MODEL)
    assert typed(home, "cache-key") == 0
    first = own(home).of(MODEL)
    assert {path.suffix for path in (home / "cache" / "features").glob("*/*")} == {".sealed"}
    (index,) = (home / "index").iterdir()
    assert digest not in index.read_bytes()
    again = own(home)
    found = again.of(MODEL)
    assert "everything" not in again.__dict__  # from index and cache
    assert torch.equal(found.everything()[0], first.everything()[0])
    assert torch.equal(found.targets, first.targets)
    assert state_of(home, capsys) == "ok encrypted"


def test_another_key_is_refused_until_the_cache_is_purged(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    typed(home, "cache-key")
    own(home).of(MODEL)
    (home.parent / "cache.key").write_bytes(bytes(32))
    with pytest.raises(ConfigError, match="do not open"):
        own(home).of(MODEL)
    assert state_of(home, capsys).startswith("fail the sealed features")
    assert typed(home, "purge-cache") == 0
    assert len(own(home).of(MODEL)) == 30


def test_who_withdraws_leaves_encrypted_features_too_with_the_key_or_without(home: Path) -> None:
    typed(home, "cache-key")
    data = own(home).everything
    own(home).of(MODEL)
    assert typed(home, "forget", "5/5.png") == 0
    assert len(own(home).of(MODEL)) == 29
    (home.parent / "cache.key").rename(home.parent / "elsewhere")
    assert typed(home, "forget", "5/11.png") == 0
    assert not list((home / "cache" / "features").glob("*/*"))
    (home.parent / "elsewhere").rename(home.parent / "cache.key")
    assert len(own(home).of(MODEL)) == 28
    assert not cached(data)


def test_the_doctor_says_what_is_not_encrypted_or_has_its_key_beside_it(
    home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert state_of(home, capsys).startswith("fail expected the cache's key")
    (home / NODE_TOML).write_text(CONFIG)
    assert state_of(home, capsys).startswith("note features are kept unencrypted")
    assert typed(home, "cache-key") == 2
    (home / NODE_TOML).write_text(CONFIG.replace("[data]", '[data]\ncache_key = "cache.key"'))
    assert typed(home, "cache-key") == 0
    assert "who copies one has both" in state_of(home, capsys)

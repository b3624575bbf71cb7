"""The doctor finds a full disk where the ledger is, though the node's own folder has room."""

from __future__ import annotations

import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest

from client import doctor
from client.node_config import NODE_TOML, load_node_config
from tests.client.test_own_node import CONFIG


@pytest.mark.parametrize(
    ("left", "state", "words"), [(0, "fail", "where the ledger is"), (2**22, "ok", "8.0 GiB free")]
)
def test_a_full_disk_of_the_ledger_is_found(
    left: int, state: str, words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / NODE_TOML).write_text(CONFIG)
    config = load_node_config(tmp_path)
    ledgers = tmp_path / config.data.ledgers
    ledgers.mkdir(exist_ok=True)
    free = {tmp_path: 8 * 2**30, ledgers: left}
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=free[path]))
    found = doctor._disk(tmp_path, config)
    assert found.state == state
    assert words in found.words

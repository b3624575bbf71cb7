"""The SuperLink's requests wait for the one that writes, instead of failing after Flower's five seconds."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType

import pytest
from flwr.supercore import sql_mixin
from flwr.supercore.constant import SQLITE_PRAGMAS
from flwr.supercore.object_store.sql_object_store import SqlObjectStore

from server.database import BUSY_MS, wait_longer


@pytest.mark.filterwarnings("ignore:No path_separator:DeprecationWarning")  # of Flower's migrations
def test_connections_wait_longer_and_keep_flowers_other_settings(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sql_mixin, "SQLITE_PRAGMAS", SQLITE_PRAGMAS)  # put back afterwards
    wait_longer()
    store = SqlObjectStore(str(tmp_path / "state.db"))
    store.initialize()
    assert store.query("PRAGMA busy_timeout") == [{"timeout": BUSY_MS}]
    assert dict(vars(sql_mixin)["SQLITE_PRAGMAS"]) == {**dict(SQLITE_PRAGMAS), "busy_timeout": str(BUSY_MS)}


def test_another_flower_is_refused() -> None:
    other = ModuleType("other")
    other.SQLITE_PRAGMAS = ()  # type: ignore[attr-defined]
    with pytest.raises(RuntimeError, match=r"flwr 1\.39"):
        wait_longer(other)

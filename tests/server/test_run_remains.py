"""What a run leaves in Flower's database is deleted a little at a time, and nothing of other runs."""

from __future__ import annotations

from hashlib import sha256
from pathlib import Path

import pytest
from flwr.app.message.arraychunk import ArrayChunk
from flwr.proto.message_pb2 import ObjectTree
from flwr.supercore.inflatable.inflatable_object import get_object_id
from flwr.supercore.object_store.sql_object_store import SqlObjectStore

from server import run_remains

PIECES = 3 * run_remains.AT_ONCE


@pytest.mark.filterwarnings("ignore:No path_separator:DeprecationWarning")  # of Flower's migrations
def test_what_a_run_leaves_is_deleted_in_portions(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Store(SqlObjectStore):
        """Flower's, for this test alone."""

    run_remains.delete_gently(Store)
    portions: list[int] = []

    def noted(store: SqlObjectStore, run_id: int) -> bool:
        before = len(store)
        more = delete_some(store, run_id)
        portions.append(before - len(store))
        return more

    delete_some = run_remains._delete_some
    monkeypatch.setattr(run_remains, "_delete_some", noted)
    store = Store(str(tmp_path / "state.db"))
    store.initialize()
    for run_id in (1, 2):
        store.preregister(run_id, _tree(run_id))
        for number in range(PIECES):
            store.put(get_object_id(_piece(run_id, number)), _piece(run_id, number))
    store.delete_objects_in_run(1)
    assert sum(portions) == PIECES + 1
    assert max(portions) <= run_remains.AT_ONCE
    assert len(store) == PIECES + 1
    assert all(store.get(get_object_id(_piece(2, number))) for number in range(PIECES))
    store.delete_objects_in_run(2)
    assert len(store) == 0


def _tree(run_id: int) -> ObjectTree:
    parts = [ObjectTree(object_id=get_object_id(_piece(run_id, number))) for number in range(PIECES)]
    return ObjectTree(object_id=sha256(str(run_id).encode()).hexdigest(), children=parts)


def _piece(run_id: int, number: int) -> bytes:
    return bytes(ArrayChunk(memoryview(f"{run_id} {number}".encode())).deflate())

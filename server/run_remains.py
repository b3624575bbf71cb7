"""Deletes what a run leaves in the SuperLink's database a little at a time, so that nobody waits long for it.

Flower deletes all of it in one transaction. A node may leave a gigabyte there: that takes eight seconds of one core, on
a busy machine minutes, and nobody else's request is answered before.
"""

from __future__ import annotations

import time
from collections.abc import Callable

from flwr.supercore.object_store.sql_object_store import SqlObjectStore
from flwr.supercore.state.schema.objectstore_models import ObjectChild, RunObject, StoredObject
from flwr.supercore.utils import uint64_to_int64
from sqlalchemy import delete, select, update

AT_ONCE = 8  # objects have 5 MB, and at most 16
PAUSE_S = 0.05  # others look every 0.1 s whether it is their turn


def delete_gently(store: type[SqlObjectStore] = SqlObjectStore) -> None:
    """Have Flower's way to delete a run's objects begin with ours, until nothing is left for it (flwr is pinned)."""
    rest: Callable[[SqlObjectStore, int], None] = store.delete_objects_in_run

    def delete_objects_in_run(self: SqlObjectStore, run_id: int) -> None:
        while _delete_some(self, run_id):
            time.sleep(PAUSE_S)
        rest(self, run_id)

    store.delete_objects_in_run = delete_objects_in_run  # type: ignore[method-assign]


def _delete_some(store: SqlObjectStore, run_id: int) -> bool:
    """Delete some objects that no other needs, in one transaction; whether there were any."""
    mine = RunObject.run_id == uint64_to_int64(run_id)
    with store._mutation_session() as session:
        unneeded = select(RunObject.object_id).join(StoredObject).where(mine, StoredObject.ref_count == 0)
        found = list(session.scalars(unneeded.limit(AT_ONCE)))
        for object_id in found:
            parts = select(ObjectChild.child_id).where(ObjectChild.parent_id == object_id)
            fewer = update(StoredObject).where(StoredObject.object_id.in_(parts), StoredObject.ref_count > 0)
            session.execute(fewer.values(ref_count=StoredObject.ref_count - 1))
            session.execute(delete(StoredObject).where(StoredObject.object_id == object_id))
    return bool(found)

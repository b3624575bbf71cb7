"""A node answers for an app that was killed, at whatever moment that was."""

from __future__ import annotations

import pytest
from flwr.app import Message, RecordDict
from flwr.supercore.object_store import ObjectStoreFactory
from flwr.supernode.nodestate.in_memory_nodestate import InMemoryNodeState

from client.supernode import as_if_fetched
from simulations.engine import task_identity

RUN = 7


@pytest.fixture
def state() -> InMemoryNodeState:
    return InMemoryNodeState(ObjectStoreFactory().store())


def asked(state: InMemoryNodeState, name: str) -> Message:
    with task_identity():
        message = Message(RecordDict(), dst_node_id=1, message_type="train", group_id=name)
    message.metadata.__dict__.update({"_run_id": RUN, "_message_id": name, "_src_node_id": 1})
    state.store_message(message)
    return message


def waiting(state: InMemoryNodeState) -> list[str]:
    return [message.metadata.message_id for message in state.get_messages(run_ids=[RUN], is_reply=False)]


def test_a_message_that_was_not_fetched_counts_as_fetched_and_the_next_one_waits(state: InMemoryNodeState) -> None:
    asked(state, "first")
    asked(state, "second")
    as_if_fetched(state, {RUN})
    assert waiting(state) == ["second"]


def test_where_the_app_had_fetched_its_message_no_other_is_touched(state: InMemoryNodeState) -> None:
    asked(state, "first")
    assert len(state.get_messages(run_ids=[RUN], is_reply=False, limit=1)) == 1
    asked(state, "second")
    as_if_fetched(state, {RUN})
    as_if_fetched(state, {RUN + 1})
    assert waiting(state) == ["second"]

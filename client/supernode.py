"""Flower's SuperNode, letting no app in that the operator has not approved, and looking for messages more often.

Usage: ``python -m client.supernode FOLDER`` and then the arguments of ``flower-supernode``.
"""

from __future__ import annotations

from common.supervisor import end_with_parent, to_the_end

if __name__ == "__main__":
    end_with_parent()  # before anything takes time

import hashlib
import importlib
import logging
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from flwr.client.grpc_rere_client import connection
from flwr.common.constant import SubStatus
from flwr.supercore.fab import Fab
from flwr.supercore.heartbeat import HeartbeatSender
from flwr.supernode import start_client_internal as flower
from flwr.supernode.nodestate.in_memory_nodestate import CLIENT_APP_CRASHED_ERROR, InMemoryNodeState

from client.approvals import read_approvals
from client.channel import create_channel
from client.contact import enduring, noting
from client.gateway import Gateway
from client.pace import Pace
from common.errors import ConfigError
from common.short_waits import wait_less

RECEIVE, GET_FAB = 1, 4  # their places among what Flower's connection gives

command = importlib.import_module("flwr.supernode.cli.flower_supernode")  # the package hides it behind its function
log = logging.getLogger("fedgraft.node")


def approved_only(get_fab: Callable[[str, int], Fab], folder: Path) -> Callable[[str, int], Fab]:
    """Fetch app bundles, and mark those that the operator of a node's folder approved as verified.

    Flower answers a message whose bundle is not verified with an error, and runs nothing of it.
    """

    def fetch(fab_hash: str, run_id: int) -> Fab:
        fab = get_fab(fab_hash, run_id)
        digest = hashlib.sha256(fab.content).hexdigest()
        known = digest == fab.hash_str == fab_hash and digest in read_approvals(folder).apps
        if not known:
            log.warning(
                "refused the app with SHA-256 %s: nobody approved it on this node; look at it, then run "
                "`fedgraft node approve app %s`",
                digest,
                digest,
            )
        return replace(fab, verifications={"valid_license": "approved"} if known else {})

    return fetch


def as_if_fetched(state: InMemoryNodeState, runs: set[int]) -> None:
    """Have an app that was killed before it fetched its message count as one that did.

    Flower answers for messages that were fetched; another would wait until the server gives it up, and would then be
    handed to the app of the next one.
    """
    with state.lock_msg_store:
        entries = [entry for entry in state.msg_store.values() if entry.message.metadata.run_id in runs]
        answered = {entry.message.metadata.reply_to_message_id for entry in entries} - {""}
        asked = [entry for entry in entries if not entry.message.metadata.reply_to_message_id]
        if any(entry.is_retrieved and entry.message.metadata.message_id not in answered for entry in asked):
            return
        for message in state.get_messages(run_ids=list(runs), is_reply=False, limit=1):
            state.record_message_processing_start(message.metadata.message_id)


def patch(folder: Path) -> None:
    """Put the approval, the egress gate and the shorter wait into Flower's loop (flwr is pinned for it)."""
    connect = flower._init_connection

    @contextmanager
    def connected(*arguments: Any, **options: Any) -> Iterator[tuple[Any, ...]]:
        with connect(*arguments, **options) as parts:
            given: list[Any] = list(parts)
            given[RECEIVE] = noting(given[RECEIVE], folder)
            given[GET_FAB] = approved_only(given[GET_FAB], folder)
            yield tuple(given)

    gateway, receive_one, answer_all = Gateway(folder), flower._pull_and_store_message, flower._push_messages
    pace = Pace()

    def receive_and_remember(**parts: Any) -> int | None:
        ways = gateway.remembering(parts["receive"], parts["pull_object"], parts["object_store"])
        run_id = receive_one(**{**parts, "receive": ways[0], "pull_object": ways[1]})
        if run_id is not None:
            pace.asked()
        return run_id

    def answer_checked(**parts: Any) -> None:
        send = gateway.checked(parts["send"], parts["push_object"], parts["object_store"])
        answer_all(**{**parts, "send": send})

    start = command.start_client_internal

    def start_with_approvals(**options: Any) -> None:
        start(**{**options, "trusted_entities": {"operator": "of this node"}})

    finish = InMemoryNodeState.finish_task

    def finish_and_answer(state: InMemoryNodeState, task_id: int, sub_status: str, details: str) -> bool:
        """Flower answers for an app that failed without a reply only where it is an agent's; the node would hang."""
        finished = finish(state, task_id, sub_status, details)
        if finished and sub_status == SubStatus.FAILED:
            runs = {task.run_id for task in state.get_tasks(task_ids=[task_id])}
            as_if_fetched(state, runs)
            state._store_error_replies(runs, CLIENT_APP_CRASHED_ERROR)
        return finished

    for module, name, value in (
        (InMemoryNodeState, "finish_task", finish_and_answer),
        (connection, "create_channel", create_channel),
        (connection, "HeartbeatSender", lambda beat: HeartbeatSender(enduring(beat))),
        (flower, "_init_connection", connected),
        (flower, "_pull_and_store_message", receive_and_remember),
        (flower, "_push_messages", answer_checked),
        (flower, "_verify_fab", lambda fab, _: "valid_license" in fab.verifications),
        (flower, "time", SimpleNamespace(sleep=lambda seconds: time.sleep(pace.wait_s(seconds)))),
        (command, "start_client_internal", start_with_approvals),
    ):
        if not hasattr(module, name):
            raise ConfigError(f"expected flwr 1.39, whose SuperNode has {name}; install the release's own constraints")
        setattr(module, name, value)


def main() -> None:
    """Run a SuperNode for a node's folder."""
    folder = Path(sys.argv.pop(1))
    wait_less()
    patch(folder)
    to_the_end(command.flower_supernode)


if __name__ == "__main__":
    main()

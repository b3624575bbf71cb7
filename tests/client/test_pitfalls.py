"""Rows of docs/privacy-pitfalls.md that no other test of the node guards."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from flwr.app import Context, Message, RecordDict

import client.app
from client.node import Node, Records
from client.open_node import open_node
from client.simulated_node import simulated_in_process
from client.training import train_round
from common import wire
from common.config import to_flat
from common.messages import ModelSpec
from simulations.engine import task_identity
from tests.federations import finite, small_config, small_task


@pytest.fixture(autouse=True)
def identity() -> Iterator[None]:
    with task_identity():
        yield


def node_in(folder: Path) -> Node:
    folder.mkdir(exist_ok=True)
    with simulated_in_process(folder):
        return open_node(1, to_flat(small_config()), {"partition-id": 0, "num-partitions": 4})


def with_records(node: Node, spoiled: bool, left_out: bool) -> Node:
    """The node with its first record made NaN, or without its first record; its declared size stays."""

    def records(model: ModelSpec) -> Records:
        features, targets = node.records(model).everything()
        values = features.numpy().copy()
        if spoiled:
            values[0] = np.nan
        return Records(values, np.arange(len(values))[int(left_out) :], targets[int(left_out) :])

    return dataclasses.replace(node, records=records)


def test_a_record_that_is_not_finite_leaves_no_trace_in_the_reply(tmp_path: Path) -> None:
    task = small_task(sampling_rate=1.0)
    spoiled = train_round(task, with_records(node_in(tmp_path / "a"), spoiled=True, left_out=False))
    without = train_round(task, with_records(node_in(tmp_path / "b"), spoiled=False, left_out=True))
    assert finite(spoiled.head)
    for name, value in spoiled.head.items():
        assert torch.allclose(value, without.head[name], atol=1e-6)  # it counts zero, and nothing else changes


def test_the_control_with_all_records_differs(tmp_path: Path) -> None:
    task = small_task(sampling_rate=1.0)
    whole = train_round(task, node_in(tmp_path / "a"))
    without = train_round(task, with_records(node_in(tmp_path / "b"), spoiled=False, left_out=True))
    assert not torch.allclose(whole.head["weight"], without.head["weight"], atol=1e-6)


def test_a_training_reply_is_a_head_and_nothing_that_could_steer_a_stop(tmp_path: Path) -> None:
    task = small_task()
    content = RecordDict(
        {wire.CONFIG: wire.encode_task(task.offer, task.learning_rate), wire.ARRAYS: wire.encode_head(task.head)}
    )
    content.config_records[wire.CONFIG][wire.ROUND] = 1
    context = Context(1, 2, {"partition-id": 0, "num-partitions": 4}, RecordDict(), to_flat(small_config()))
    with simulated_in_process(tmp_path):
        reply = client.app.app(Message(content, 2, "train"), context)
    assert set(reply.content) == {wire.ARRAYS}
    assert set(reply.content.array_records[wire.ARRAYS]) == set(task.head)
    assert not reply.content.metric_records

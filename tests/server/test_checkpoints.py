"""Checkpoints: what was saved stays readable, and the round log follows them."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from common.durable import read_lines
from common.errors import ConfigError
from server.checkpoints import KEEP, Checkpoint, RunStore


def checkpoint(round_: int) -> Checkpoint:
    head = {"weight": torch.full((2, 2), float(round_)), "bias": torch.arange(2.0)}
    return Checkpoint(round_, head, {"m_t/weight": np.ones(3)}, {"node-000": round_}, {"round": round_, "loss": 0.5})


@pytest.fixture
def store(tmp_path: Path) -> RunStore:
    return RunStore(tmp_path, "run-1")


def test_the_newest_checkpoint_is_read_back_whole(store: RunStore) -> None:
    assert store.latest() is None
    for round_ in (1, 2):
        store.save(checkpoint(round_))
    found = store.latest()
    assert found is not None
    assert (found.round, found.participation, found.line) == (2, {"node-000": 2}, {"round": 2, "loss": 0.5})
    assert list(found.head) == ["weight", "bias"]
    assert torch.equal(found.head["weight"], torch.full((2, 2), 2.0))
    assert np.array_equal(found.strategy["m_t/weight"], np.ones(3))


def test_old_checkpoints_make_room(store: RunStore) -> None:
    for round_ in range(1, 8):
        store.save(checkpoint(round_))
    assert len(list((store.folder / "checkpoints").iterdir())) == KEEP
    assert [line["round"] for line in read_lines(store.log)] == list(range(1, 8))


def test_a_line_that_a_crash_cut_short_is_written_again(store: RunStore) -> None:
    for round_ in (1, 2):
        store.save(checkpoint(round_))
    store.log.write_text('{"round": 1, "loss": 0.5}\n{"round": 2, "lo')
    assert store.latest() is not None
    assert [json.loads(line)["round"] for line in store.log.read_text().splitlines()] == [1, 2]


def test_a_line_of_a_round_that_was_never_saved_is_dropped(store: RunStore) -> None:
    store.save(checkpoint(1))
    with store.log.open("a") as log:
        log.write('{"round": 2, "loss": 0.1}\n')
    store.latest()
    assert [line["round"] for line in read_lines(store.log)] == [1]


def test_a_damaged_checkpoint_is_one_sentence(store: RunStore) -> None:
    store.save(checkpoint(1))
    (path,) = (store.folder / "checkpoints").iterdir()
    path.write_bytes(path.read_bytes()[:40])
    with pytest.raises(ConfigError, match="is damaged"):
        store.latest()


def test_a_checkpoint_of_another_run_is_refused(store: RunStore) -> None:
    store.save(checkpoint(1))
    with pytest.raises(ConfigError, match="belongs to another run"):
        RunStore(store.folder, "run-2").latest()


def test_a_round_asked_for_after_a_line_was_cut_short_counts(tmp_path: Path) -> None:
    """A crash or a full disk tears a line; what is asked for afterwards is paid for, and must not be forgotten."""
    store = RunStore(tmp_path, "run")
    store.note_asked(1, ["north"])
    with (tmp_path / "asked.jsonl").open("a") as file:
        file.write('{"round": 2, "nod')
    store.note_asked(2, ["north"])
    store.note_asked(3, ["north", "south"])
    assert store.asked() == {"north": {1, 2, 3}, "south": {3}}

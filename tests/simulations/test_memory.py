"""What a run keeps in memory: no copy of a node's features, and nothing of the rounds that are over."""

from __future__ import annotations

import ctypes
import gc
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from common.config import RunConfig
from common.data.federation import assemble, source_features
from common.features import as_tensor
from simulations import preflight
from simulations.benchmarks.round_costs import many_nodes, playing

MIB = 2**20
NODES, RECORDS, SIDE = 10, 400, 64
ALL_FEATURES = NODES * RECORDS * SIDE**2 * 4


@pytest.fixture
def config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[RunConfig]:
    monkeypatch.setenv("FEDGRAFT_CACHE", str(tmp_path / "cache"))
    made = many_nodes(tmp_path, NODES, RECORDS, rounds=20)
    yield made.model_copy(update={"model": made.model.model_copy(update={"backbone": f"pixels/{SIDE}"})})
    source_features.cache_clear()


class _Mallinfo(ctypes.Structure):
    """What glibc's ``mallinfo2`` returns."""

    _fields_ = tuple(
        (name, ctypes.c_size_t)
        for name in (
            *("arena", "ordblks", "smblks", "hblks", "hblkhd"),
            *("usmblks", "fsmblks", "uordblks", "fordblks", "keepcost"),
        )
    )


def used_bytes() -> int:
    """Memory that this process has asked for and not given back; pages of files are not among it."""
    try:
        mallinfo = ctypes.CDLL(None).mallinfo2
    except AttributeError:
        pytest.skip("this C library does not say how much memory is in use")
    mallinfo.restype = _Mallinfo
    gc.collect()
    found = mallinfo()
    return int(found.uordblks + found.hblkhd)


def test_no_node_keeps_its_features_and_no_round_its_replies(config: RunConfig, tmp_path: Path) -> None:
    assert isinstance(preflight.check(config).features, np.memmap)
    (tmp_path / "run").mkdir()
    with playing(config, tmp_path / "run", NODES) as play:
        before = used_bytes()
        for _ in range(3):
            play()
        begun = used_bytes()
        for _ in range(12):
            play()
        over = used_bytes()
    assert begun - before < ALL_FEATURES // 2  # the held-out records' features and what is loaded once
    assert over - begun < 8 * MIB  # twelve rounds' replies are 19 MiB


def test_the_control_that_copies_them_is_noticed(config: RunConfig) -> None:
    features = preflight.check(config).features
    before = used_bytes()
    copies = [as_tensor(features, share) for share in assemble(config).shares.values()]
    assert len(copies) == NODES
    assert used_bytes() - before > ALL_FEATURES // 2

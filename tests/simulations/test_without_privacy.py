"""The world without privacy: the run's own federation, compared with the real apps at next to no noise."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from server.checkpoints import RunStore
from server.run_folder import run_identity
from simulations.engine import run_in_process
from simulations.preflight import check
from simulations.without_privacy import train_without_privacy
from tests.federations import small_config


@pytest.fixture(autouse=True)
def quiet() -> Iterator[None]:
    log = logging.getLogger("flwr")
    level = log.level
    log.setLevel(logging.CRITICAL + 1)
    yield
    log.setLevel(level)


@pytest.mark.parametrize(
    "federation",
    [
        {"cohort": 1},
        {"strategy": "fedmedian", "cohort": 3},
        {"strategy": "fedyogi", "server_learning_rate": 0.03},
        {"strategy": "fedprox", "proximal_mu": 10.0},
        {"strategy": "bulyan"},
    ],
)
def test_the_world_without_privacy_is_that_of_the_run(federation: dict[str, Any], tmp_path: Path) -> None:
    """Oracle: the real apps, full batches, next to no noise, nothing clipped, the learning rate that it chose."""
    sections: dict[str, Any] = {
        "federation": {"rounds": 8, **federation},
        "data": {"partition": "quantity", "alpha": 1.0},
        "training": {"learning_rate": 0.1, "local_steps": 2},
        "privacy": {"epsilon": 1e8, "sampling_rate": 1.0, "clipping_norm": 20.0},
    }
    config = small_config(**sections)
    (tmp_path / "run").mkdir()
    run_in_process(config, tmp_path / "run", range(4))
    latest = RunStore(tmp_path / "run", run_identity(tmp_path / "run")).latest()
    assert latest is not None
    found = train_without_privacy(check(config), config=config, rates=[0.1])
    for name, value in latest.head.items():
        torch.testing.assert_close(found[name], value, rtol=0, atol=0.005)
    plain = train_without_privacy(check(config), rates=[0.1])  # the control: every node, and their mean
    assert max(float((plain[name] - value).abs().max()) for name, value in latest.head.items()) > 0.02

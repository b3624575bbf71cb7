"""The runs of this benchmark in a file, from which a benchmark that was stopped goes on."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from common.durable import write_bytes
from common.errors import ConfigError
from simulations.benchmarks.distributed_noise.worlds import DELTA, STEPS

NAME = "accuracy.json"
TERMS = {"steps": STEPS, "delta": DELTA}


@dataclass(frozen=True)
class Run:
    """One training run's scores on held-out records, by metric."""

    data: str
    nodes: int
    epsilon: float
    seed: int
    world: str
    scores: dict[str, float]


def write(runs: Sequence[Run], folder: Path) -> None:
    """Replace the file by these runs, so that a crash leaves the old ones or the new ones."""
    folder.mkdir(parents=True, exist_ok=True)
    lines = ",\n".join(json.dumps(asdict(run), allow_nan=False) for run in runs)
    write_bytes(folder / NAME, f'{{"terms": {json.dumps(TERMS)}, "runs": [\n{lines}\n]}}\n'.encode())


def read(folder: Path) -> list[Run]:
    """The runs in a folder; none where there is no file.

    Raises:
        ConfigError: the file holds something else, or runs under other terms.
    """
    path = folder / NAME
    if not path.exists():
        return []
    try:
        told = json.loads(path.read_text())
        terms, runs = told["terms"], [Run(**run) for run in told["runs"]]
    except (ValueError, TypeError, KeyError) as error:
        raise ConfigError(f"expected runs of this benchmark in {path}, found none; choose another folder") from error
    if terms != TERMS:
        raise ConfigError(f"expected runs with {TERMS} in {path}, got {terms}; choose another folder")
    return runs

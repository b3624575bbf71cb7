"""Heads solved from one noised sum against a linear head trained by DP-SGD, at small epsilon, under both trust models.

scikit-learn's digits on ``embedded/glyph``, ten nodes, all records in each step, the default clipping norm and step,
whole runs by the real apps in process. ``FEDGRAFT_SEEDS`` says how many seeds, 3 by default; they are none of those
that the constants of the solved heads were chosen by.
"""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.table import Table

from common.config import RunConfig
from simulations.baselines import final_scores

HEADS = ("linear", "prototype", "ridge")
EPSILONS = (0.1, 0.25, 0.5, 1.0)
TRUSTS = ("local", "secagg")
NODES, ROUNDS = 10, 30
FIRST_SEED, SEEDS = 100, 3


def main() -> None:
    """Print the table."""
    seeds = range(FIRST_SEED, FIRST_SEED + int(os.environ.get("FEDGRAFT_SEEDS", SEEDS)))
    title = f"held-out accuracy of digits, {NODES} nodes, {len(seeds)} seeds; delta 1e-5, one record"
    table = Table("trust", "ε", *[f"{head}, {rounds_of(head)} rounds" for head in HEADS], title=title)
    for trust in TRUSTS:
        for epsilon in EPSILONS:
            cells = [[accuracy(head, trust, epsilon, seed) for seed in seeds] for head in HEADS]
            table.add_row(
                trust, f"{epsilon:g}", *[f"{np.mean(each):.3f} ± {np.std(each, ddof=1):.3f}" for each in cells]
            )
    Console(width=110).print(table)


def rounds_of(head: str) -> int:
    """Rounds of a run with this head."""
    return ROUNDS if head == "linear" else 1


def accuracy(head: str, trust: str, epsilon: float, seed: int) -> float:
    """Of one run, on its held-out records."""
    config = RunConfig.model_validate(
        {
            "federation": {"nodes": NODES, "rounds": rounds_of(head), "seed": seed},
            "data": {"source": "digits"},
            "model": {"backbone": "embedded/glyph", "head": head},
            "training": {},
            "privacy": {
                "epsilon": epsilon,
                "delta": 1e-5,
                "clipping_norm": "auto",
                "sampling_rate": 1.0,
                "unit": "record",
                "trust": trust,
            },
            "evaluation": {"every": rounds_of(head)},
        }
    )
    with tempfile.TemporaryDirectory() as folder:
        return final_scores(config, Path(folder) / "run", list(range(NODES))).accuracy

"""Accuracy on held-out digits: ten nodes, three seeds, at epsilon 8, 3 and 1, with every baseline."""

from __future__ import annotations

import tempfile
from pathlib import Path

from rich.console import Console
from rich.table import Table

from common.config import BASELINES, load_config
from simulations import preflight, run
from simulations.result import Result, mean_result

CONFIG = Path("simulations/configs/digits.toml")
SEEDS = (0, 1, 2)
EPSILONS = (8.0, 3.0, 1.0)


def measure(epsilon: float) -> Result:
    """Run the digits with every baseline, once a seed; the mean."""
    results = []
    for seed in SEEDS:
        config = load_config(CONFIG, [f"privacy.epsilon={epsilon}", f"federation.seed={seed}"])
        with tempfile.TemporaryDirectory() as folder:
            ready = preflight.check(config)
            watcher = run.Watcher(lambda line: None, lambda name, done, total: None)
            results.append(run.simulate(config, ready, Path(folder), "inprocess", watcher))
    return mean_result(results)


def main() -> None:
    """Print the table."""
    title = f"digits, ten nodes, seeds {SEEDS}; delta 1e-5, unit record, local trust"
    table = Table("world", *[f"epsilon {epsilon:g}" for epsilon in EPSILONS], title=title)
    results = [measure(epsilon) for epsilon in EPSILONS]
    for name in ("federated", *BASELINES):
        cells = [f"{result['accuracy'][name]:.4f} ± {result['accuracy_std'][name]:.4f}" for result in results]
        table.add_row(name, *cells)
    Console().print(table)

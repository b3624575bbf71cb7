"""Memory and time of very many simulated nodes, of long runs, and of large cohorts; each run is a process of its own.

One process plays server and nodes, so that its peak is the run's. It holds the records' pixels, and maps the features.
"""

from __future__ import annotations

import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from rich.console import Console
from rich.table import Table

from server.checkpoints import read_lines
from simulations import preflight
from simulations.benchmarks.round_costs import many_nodes
from simulations.engine import run_in_process
from simulations.session import quiet

RUNS = (
    (1_000, 50, 50),
    (1_000, 50, 200),
    (1_000, 500, 20),
    (1_000, 1_000, 20),
    (10_000, 1_000, 5),
    (100_000, 1_000, 5),
)
"""Nodes, cohort, rounds."""
MEASURES = ("loaded_mib", "peak_mib", "start_s", "round_s", "ledgers", "ledgers_mib")


def main() -> None:
    """Print the table."""
    table = Table("nodes", "cohort", "rounds", *MEASURES, title="runs in one process each")
    for nodes, cohort, rounds in RUNS:
        arguments = [str(number) for number in (nodes, cohort, rounds)]
        command = [sys.executable, "-m", "simulations.benchmarks.scale", *arguments]
        found = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()[-1])
        table.add_row(*arguments, *(f"{found[name]:g}" for name in MEASURES))
    Console().print(table)


def one(nodes: int, cohort: int, rounds: int) -> dict[str, float]:
    """Play one run on raw pixels, ten records a node, and say what it took."""
    with tempfile.TemporaryDirectory() as place:
        config = many_nodes(Path(place), nodes, 10, cohort=cohort, rounds=rounds)
        config = config.model_copy(update={"model": config.model.model_copy(update={"backbone": "pixels/8"})})
        preflight.check(config)
        loaded, began, folder = _peak_mib(), time.perf_counter(), Path(place) / "run"
        folder.mkdir()
        run_in_process(config, folder, range(nodes), workers=0)
        total = time.perf_counter() - began
        seconds = [line["seconds"] for line in read_lines(folder / "rounds.jsonl")]
        ledgers = list((folder / "ledgers").glob("*.sqlite"))
        return {
            "loaded_mib": loaded,
            "peak_mib": _peak_mib(),
            "start_s": round(total - sum(seconds), 1),
            "round_s": round(sorted(seconds)[len(seconds) // 2], 2),
            "ledgers": len(ledgers),
            "ledgers_mib": sum(path.stat().st_size for path in ledgers) >> 20,
        }


def _peak_mib() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10


if __name__ == "__main__":
    with quiet():
        print(json.dumps(one(*map(int, sys.argv[1:]))))

"""Memory and time of very many simulated nodes, of long runs, and of large cohorts; each run is a process of its own.

One process plays server and nodes, so that its peak is the run's. It holds the records' pixels, and maps the features:
what a process has in memory is told apart into its own (anonymous) pages, and pages of files, which the system takes
back when it wants them. All of it takes some four minutes. ``FEDGRAFT_RUNS="200,100,40 1000,50,20"`` chooses others.
"""

from __future__ import annotations

import itertools
import json
import os
import resource
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from rich import box
from rich.console import Console
from rich.table import Table

from common.durable import read_lines
from simulations import preflight
from simulations.benchmarks.round_costs import many_nodes
from simulations.engine import run_in_process
from simulations.session import quiet

RUNS = (
    (200, 100, 40),
    (200, 100, 120),
    (1_000, 50, 20),
    (10_000, 100, 2),
    (10_000, 300, 2),
    (10_000, 1_000, 2),
    (10_000, 3_000, 2),
    (100_000, 1_000, 3),
)
"""Nodes, cohort, rounds."""
MEASURES = {
    "loading_mib": "peak of loading",
    "loaded_own_mib": "own, loaded",
    "own_mib": "own, most in rounds",
    "files_mib": "files, then",
    "peak_mib": "peak, whole run",
    "start_s": "until the first round, s",
    "round_s": "a round, s",
    "ledgers": "ledgers",
    "ledgers_mib": "MiB of ledgers",
    "total_s": "all, s",
}
LOOK_EVERY_S = 0.02


def main() -> None:
    """Print the table, and what a node of the cohort takes."""
    began, load, found = time.time(), os.getloadavg()[0], []
    chosen = [tuple(map(int, run.split(","))) for run in os.environ.get("FEDGRAFT_RUNS", "").split()] or RUNS
    table = Table("nodes", "cohort", "rounds", *MEASURES.values(), box=box.MARKDOWN)
    for run in chosen:
        command = [sys.executable, "-m", "simulations.benchmarks.scale", *map(str, run)]
        output = subprocess.run(command, check=True, capture_output=True, text=True).stdout
        found.append(json.loads(output.splitlines()[-1]))
        table.add_row(*(f"{number:,}" for number in run), *(f"{found[-1][name]:,.10g}" for name in MEASURES))
    console = Console(width=240)
    console.print(table)
    own = sorted((*run[:2], one["own_mib"]) for run, one in zip(chosen, found, strict=True))
    for (nodes, few, before), (same, many, after) in itertools.pairwise(own):
        if nodes == same and few < many:
            more = 1024 * (after - before) / (many - few)
            console.print(f"{nodes:,} nodes, own memory from a cohort of {few:,} to {many:,}: {more:.0f} KiB a node")
    console.print(
        f"MiB where nothing else is said; {time.strftime('%Y-%m-%d')}, {time.time() - began:.0f} s; load before "
        f"{load:.1f}, after {os.getloadavg()[0]:.1f}."
    )


def one(nodes: int, cohort: int, rounds: int) -> dict[str, float]:
    """Play one run on raw pixels, ten records a node, and say what it took."""
    with tempfile.TemporaryDirectory() as place:
        began = time.perf_counter()
        os.environ["FEDGRAFT_CACHE"] = place  # other runs' features would be found there
        config = many_nodes(Path(place), nodes, 10, cohort=cohort, rounds=rounds)
        config = config.model_copy(update={"model": config.model.model_copy(update={"backbone": "pixels/8"})})
        preflight.check(config)
        loading, loaded, started = _peak_mib(), _memory()["RssAnon"], time.perf_counter()
        folder = Path(place) / "run"
        folder.mkdir()
        with _watched() as most:
            run_in_process(config, folder, range(nodes), workers=0)
        total = time.perf_counter() - started
        seconds = [line["seconds"] for line in read_lines(folder / "rounds.jsonl")]
        ledgers = list((folder / "ledgers").glob("*.sqlite"))
        return {
            "loading_mib": loading,
            "loaded_own_mib": loaded,
            "own_mib": most["RssAnon"],
            "files_mib": most["RssFile"],
            "peak_mib": _peak_mib(),
            "start_s": round(total - sum(seconds), 1),
            "round_s": round(sorted(seconds)[len(seconds) // 2], 2),
            "ledgers": len(ledgers),
            "ledgers_mib": sum(path.stat().st_size for path in ledgers) >> 20,
            "total_s": round(time.perf_counter() - began, 1),
        }


@contextmanager
def _watched() -> Iterator[dict[str, int]]:
    """Yield the most MiB of each kind that this process has at a time during the block."""
    most, over = _memory(), threading.Event()

    def watch() -> None:
        while not over.wait(LOOK_EVERY_S):
            most.update({kind: max(most[kind], now) for kind, now in _memory().items()})

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        yield most
    finally:
        over.set()
        watcher.join()


def _memory() -> dict[str, int]:
    """MiB of this process in memory: its own (``RssAnon``) and of files (``RssFile``)."""
    lines = (line.split() for line in Path("/proc/self/status").read_text().splitlines())
    return {line[0].rstrip(":"): int(line[1]) >> 10 for line in lines if line[0] in ("RssAnon:", "RssFile:")}


def _peak_mib() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10


if __name__ == "__main__":
    with quiet():
        print(json.dumps(one(*map(int, sys.argv[1:]))))

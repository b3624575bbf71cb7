"""What rounds cost: feature time against the number of rounds, 180 more rounds of ten nodes, a round of 1,000 nodes."""

from __future__ import annotations

import shutil
import statistics
import tempfile
import time
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.table import Table

from common.config import RunConfig, load_config
from common.durable import read_lines
from common.features import default_cache
from simulations import preflight
from simulations.engine import run_in_process

CONFIG = Path("simulations/configs/digits.toml")
NODES, RECORDS = 1000, 20


def main() -> None:
    """Print the table."""
    table = Table("measure", "value", title="rounds in process, in this run on this machine")
    preflight.check(load_config(CONFIG))  # what a process loads once
    timed = {rounds: _run(load_config(CONFIG, [f"federation.rounds={rounds}"])) for rounds in (20, 200)}
    for rounds, (features, total, _) in timed.items():
        table.add_row(f"features, computed afresh before {rounds} rounds", f"{features:.2f} s")
        table.add_row(f"{rounds} rounds of 10 nodes", f"{total:.2f} s")
    more = (timed[200][1] - timed[20][1]) / 180
    table.add_row("each of 180 more rounds of 10 nodes", f"{more * 1000:.1f} ms")
    with tempfile.TemporaryDirectory() as folder:
        _, _, seconds = _run(_many_nodes(Path(folder)))
    table.add_row(
        f"a round of {NODES} nodes with {RECORDS} records each, median", f"{statistics.median(seconds):.2f} s"
    )
    Console().print(table)


def _run(config: RunConfig) -> tuple[float, float, list[float]]:
    """Seconds for the features (not from the cache), for all rounds, and for each round."""
    cache = default_cache()
    shutil.rmtree(cache.folder, ignore_errors=True)
    began = time.perf_counter()
    ready = preflight.check(config)
    features = ready.seconds
    with tempfile.TemporaryDirectory() as folder:
        began = time.perf_counter()
        run_in_process(config, Path(folder), range(len(ready.federation.shares)))
        total = time.perf_counter() - began
        seconds = [line["seconds"] for line in read_lines(Path(folder) / "rounds.jsonl")]
    return features, total, seconds


def _many_nodes(folder: Path) -> RunConfig:
    """A federation of 1,000 nodes on generated digits-like images, three rounds."""
    generator = np.random.default_rng(0)
    count = NODES * RECORDS
    images = generator.integers(0, 256, (count + 1000, 8, 8), dtype=np.uint8)
    split = np.array(["train"] * count + ["test"] * 1000)
    np.savez(folder / "many.npz", images=images, labels=np.arange(count + 1000) % 10, split=split)
    changes = [f'data.source="{folder / "many.npz"}"', f"federation.nodes={NODES}", "federation.rounds=3"]
    return load_config(CONFIG, [*changes, "privacy.epsilon=8", 'data.partition="iid"'])

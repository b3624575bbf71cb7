"""fedgraft on the work: ``fedgraft simulate`` as a whole process, with an empty feature cache and no baselines."""

from __future__ import annotations

import json
import os
import shutil
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

import tomli_w

from common.durable import read_lines
from simulations.benchmarks.peers.measured import measure
from simulations.benchmarks.peers.table import OURS, Row
from simulations.benchmarks.peers.work import Work

ROOT = Path(__file__).parents[3]
IMPORTS = "fedgraft, simulations.aside, simulations.session, simulations.report.page, dp_accounting, torchvision"


def run(work: Work, folder: Path, limit_s: float) -> Row:
    """Run the simulation with nothing in its feature cache; its row, whatever happens.

    The backbone is packed before, once, which does not count.
    """
    surroundings = os.environ | {"FEDGRAFT_CACHE": str(folder / "cache"), "OMP_WAIT_POLICY": "PASSIVE"}
    surroundings["OMP_NUM_THREADS"] = str(len(os.sched_getaffinity(0)))
    surroundings["PYTHONPATH"] = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    fedgraft = [sys.executable, "-m", "fedgraft"]
    package, config, out = folder / "resnet18", folder / "fedgraft.toml", folder / "run"
    pack = [*fedgraft, "backbones", "pack", f"torchvision/resnet18:{work.pixels}", "--out", str(package)]
    pack += ["--weights", str(folder / "resnet18.safetensors")]
    if not package.exists():
        packed = subprocess.run(pack, env=surroundings, capture_output=True, text=True, check=False)
        if packed.returncode:
            return Row(work.name, OURS, problem=f"could not pack the backbone: {packed.stderr.strip()[-200:]}")
    for left in (out, folder / "cache" / "features"):
        if left.exists():
            shutil.rmtree(left)
    config.write_text(tomli_w.dumps(configuration(work, folder / f"{work.name}.npz", package)), encoding="utf-8")
    simulate = [*fedgraft, "simulate", str(config), "--out", str(out), "--baselines", "none"]
    measure([sys.executable, "-c", f"import {IMPORTS}"], surroundings, limit_s)
    measured = measure(simulate, surroundings, limit_s)
    if measured.status is None:
        return Row(work.name, OURS, problem=f"stopped after {limit_s:.0f} s", at_least_s=limit_s)
    if measured.status:
        return Row(work.name, OURS, problem=f"ended with status {measured.status}: {measured.tail.strip()[-200:]}")
    result = json.loads((out / "result.json").read_text(encoding="utf-8"))
    return Row(
        work.name,
        OURS,
        measured.wall_s,
        measured.processor_s,
        measured.peak_bytes,
        statistics.median(line["seconds"] for line in read_lines(out / "rounds.jsonl")),
        result["accuracy"]["federated"],
        max(result["privacy"]["epsilon_per_node"].values()),
        "image",
    )


def configuration(work: Work, images: Path, package: Path) -> dict[str, Any]:
    """The work as fedgraft's configuration."""
    return {
        "federation": {"nodes": work.nodes, "rounds": work.rounds, "seed": 0},
        "data": {"source": str(images), "partition": "site"},
        "model": {"backbone": f"package/{package}"},
        "training": {"learning_rate": work.learning_rate, "local_steps": work.local_steps},
        "privacy": {
            "epsilon": work.epsilon,
            "delta": work.delta,
            "clipping_norm": work.clipping_norm,
            "sampling_rate": work.sampling_rate,
            "unit": "record",
            "trust": "local",
        },
        "evaluation": {"baselines": "none", "every": 1},
    }

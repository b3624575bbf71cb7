"""Run folders as ``fedgraft simulate`` leaves them, with made-up but plausible contents."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

CONFIG = """\
[federation]
nodes = 10
rounds = 30
seed = 0

[data]
source = "digits"

[privacy]
epsilon = 3.0
delta = 1e-5
unit = "record"
trust = "local"
"""
ACCURACY = {
    "federated": 0.9556,
    "pooled": 0.9778,
    "local_mean": 0.7903,
    "no_dp": 0.9917,
    "no_transfer": 0.8861,
    "raw_pixels": 0.9028,
}


def result(nodes: int = 10, rounds: int = 30, seed: int = 0, classes: int = 10, alpha: float = 100.0) -> dict[str, Any]:
    """Return the ``result.json`` of a federation on digits."""
    rng = np.random.default_rng(seed)
    names = [f"node-{index:03d}" for index in range(nodes)]
    labels = [str(index) for index in range(classes)]
    mix = rng.dirichlet([alpha] * classes, size=nodes)
    counts = np.round(mix * (1437 / 10 if nodes <= 10 else 20)).astype(int)
    confusion = np.diag(rng.integers(30, 37, classes))
    confusion[rng.integers(0, classes, 9), rng.integers(0, classes, 9)] += 1
    alone = 0.79 + 0.04 * rng.standard_normal(nodes)
    together = 0.955 + 0.008 * rng.standard_normal(nodes)
    return {
        "accuracy": dict(ACCURACY),
        "accuracy_std": None,
        "epsilon": {name: None if name == "no_dp" else 2.9987 for name in ACCURACY},
        "metrics": {"loss": 0.2312, "balanced_accuracy": 0.9543, "macro_f1": 0.9549, "macro_auroc": None},
        "privacy": {
            "unit": "record",
            "delta": 1e-5,
            "epsilon_per_node": dict.fromkeys(names, 2.9987),
            "epsilon_budget": 3.0,
            "noise_multiplier": 8.4172,
            "sampling_rate": 1.0,
            "steps": rounds,
            "clipping_norm": 1.0,
            "accountant": "PLD",
            "trust": "local",
            "noise_source": "seeded",
            "epsilon_is_guarantee": False,
        },
        "bytes": {"per_round_per_node": 61520, "backbone_once": 4_180_224},
        "timing_s": {"features": 2.41, "rounds": 3.07, "total": 21.83},
        "rounds": rounds,
        "nodes": nodes,
        "seed": seed,
        "versions": {"fedgraft": "0.1.0", "python": "3.11.9", "torch": "2.15.0", "flwr": "1.39.0"},
        "node_names": names,
        "partition": {
            name: {"records": int(row.sum()), "classes": dict(zip(labels, row.tolist(), strict=True))}
            for name, row in zip(names, counts, strict=True)
        },
        "node_accuracy": {
            name: {"federated": float(min(f, 1)), "alone": float(a)}
            for name, f, a in zip(names, together, alone, strict=True)
        },
        "open_reservations": {},
        "chance": 0.1,
        "confidential": False,
        "learning_rate": 2.0,
        "backbone": {
            "name": "embedded/formula-resnet",
            "digest": "9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08",
            "cut": "pool",
            "features": 768,
            "licence": "Apache-2.0",
            "trained_on": "images drawn by formulas (strokes, textures, ellipses, fractals); no human's data",
        },
        "head": "linear",
        "engine": "inprocess",
        "data": {"source": "digits", "classes": labels, "train": 1437, "test": 360, "partition": "iid"},
        "confusion": confusion.tolist(),
        "seeds": None,
    }


def round_lines(nodes: int = 10, rounds: int = 30, seed: int = 0) -> list[dict[str, Any]]:
    """Return the lines of ``rounds.jsonl``."""
    rng = np.random.default_rng(seed)
    size = 30_760 * nodes
    return [
        {
            "round": number,
            "accuracy": round(0.9556 - (0.5 * 0.8**number - 0.004 * rng.standard_normal()) * (number < rounds), 4),
            "loss": 0.2 + 2.1 * 0.85**number,
            "epsilon": 2.9987 * (number / rounds) ** 0.55,
            "nodes": nodes,
            "failed": {},
            "seconds": round(0.102 + 0.01 * rng.standard_exponential(), 4),
            "bytes_down": size,
            "bytes_up": size,
        }
        for number in range(1, rounds + 1)
    ]


def write_run(
    folder: Path,
    contents: Mapping[str, Any],
    lines: Iterable[Mapping[str, Any]] | None = None,
    config: str | None = CONFIG,
) -> Path:
    """Write a run folder and return it."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "result.json").write_text(json.dumps(contents), encoding="utf-8")
    if lines is not None:
        (folder / "rounds.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    if config is not None:
        (folder / "config.toml").write_text(config, encoding="utf-8")
    return folder


def ten_nodes(folder: Path) -> Path:
    """Write the main job's run: 10 nodes, 30 rounds."""
    return write_run(folder, result(), round_lines())


def thousand_nodes(folder: Path) -> Path:
    """Write a run of 1000 nodes with skewed data, and a few open reservations."""
    contents = result(nodes=1000, rounds=20, alpha=0.3)
    contents["open_reservations"] = {"node-007": [3], "node-500": [19, 20]}
    return write_run(folder, contents, round_lines(1000, 20))


def several_seeds(folder: Path, count: int = 3) -> Path:
    """Write a run of several seeds, whose own result holds little more than means."""
    for seed in range(count):
        contents = result(seed=seed)
        contents["accuracy"] = {key: value + 0.004 * (seed - 1) for key, value in ACCURACY.items()}
        write_run(folder / f"seed-{seed}", contents, round_lines(seed=seed))
    means = result()
    kept = {key: means[key] for key in ("accuracy", "metrics", "privacy", "bytes", "timing_s", "rounds", "nodes")}
    nulls = dict.fromkeys(means, None)
    spread = dict.fromkeys(ACCURACY, 0.004)
    return write_run(folder, {**nulls, **kept, "accuracy_std": spread, "seeds": list(range(count))})


def all_null(folder: Path) -> Path:
    """Write a run of which nothing was computed."""
    contents = {key: dict.fromkeys(value) if key in NESTED else None for key, value in result().items()}
    return write_run(folder, contents, [dict.fromkeys(round_lines()[0], None) | {"round": 1}], config=None)


NESTED = ("accuracy", "privacy", "bytes", "timing_s")


def failed_rounds(folder: Path) -> Path:
    """Write a run in which nodes failed, with accuracy evaluated every fifth round."""
    lines = round_lines()
    for line in lines:
        if line["round"] % 5:
            line["accuracy"] = line["loss"] = None
        if line["round"] in (4, 5, 6, 20):
            line["nodes"] = 8
            line["failed"] = {"node-003": "budget", "node-008": "the message could not be read"}
    contents = result()
    contents["open_reservations"] = {"node-008": [4, 5, 6, 20]}
    contents["confidential"] = True
    return write_run(folder, contents, lines)


HOSTILE = (
    "<script>alert(1)</script>",
    '"><img src=x onerror=alert(1)>',
    "$\\frac{1}{0}$ & \\1 &amp;",
    'id="a" href="#b" url(#c) #040506',
    "]]> --> </svg></style>",
    "診断 مرض 🫀",
    "line\nbreak\ttab",
    "\ud800 lone",
    "x" * 300,
    "javascript:alert(1)",
)


def hostile(folder: Path) -> Path:
    """Write a run whose names, paths and reasons were chosen by somebody malicious."""
    text = json.dumps({"result": result(), "lines": round_lines()})
    for index, name in enumerate(HOSTILE):
        text = text.replace(f'"node-{index:03d}"', json.dumps(name))
    swapped = json.loads(text)
    contents, lines = swapped["result"], swapped["lines"]
    contents["data"]["classes"] = list(HOSTILE)
    contents["data"]["source"] = "/data/<script>alert(1)</script>/x.npz"
    for part in contents["partition"].values():
        part["classes"] = dict(zip(HOSTILE, part["classes"].values(), strict=True))
    for path in (
        ("backbone", "name"),
        ("backbone", "trained_on"),
        ("privacy", "accountant"),
        ("privacy", "noise_source"),
    ):
        contents[path[0]][path[1]] = HOSTILE[0]
    contents["versions"] = {HOSTILE[0]: HOSTILE[1]}
    contents["metrics"] = {HOSTILE[0]: HOSTILE[1], "per class": dict.fromkeys(HOSTILE, 0.5)}
    contents["accuracy"][HOSTILE[1]] = 0.5
    lines[3]["failed"] = {HOSTILE[0]: HOSTILE[1]}
    contents["open_reservations"] = {HOSTILE[0]: [4]}
    return write_run(folder, contents, lines, config=f'[data]\nsource = "{HOSTILE[0]}"\n')

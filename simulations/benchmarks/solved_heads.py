"""Heads solved from one noised sum against a linear head trained by DP-SGD, at small epsilon, under both trust models.

scikit-learn's digits on ``embedded/glyph``, ten nodes, all records in each step, default clipping norms and step; sums
of shares are opened plainly, since masks change no number. ``FEDGRAFT_SEEDS`` says how many seeds, 3 by default; they
are none of those that the constants of the solved heads were chosen by.
"""

from __future__ import annotations

import os

import numpy as np
import torch
from rich.console import Console
from rich.table import Table

from client.clipping import ClippedSum
from client.solved_sums import solved_sum
from common.privacy.accountant import noise_multiplier_for
from common.solved_heads import SOLVED_HEADS, SolvedHead
from server.defaults import default_clipping_norm
from server.solving import solved
from simulations.benchmarks.distributed_noise import read
from simulations.benchmarks.distributed_noise.worlds import DELTA, STEPS, Setting, Split, Sums, scores

EPSILONS = (0.1, 0.25, 0.5, 1.0)
WORLDS = ("local noise", "secagg")
NODES = 10
FIRST_SEED, SEEDS = 100, 3


def main() -> None:
    """Print the table as it grows."""
    records, count = read("digits"), int(os.environ.get("FEDGRAFT_SEEDS", SEEDS))
    splits = {seed: records.split(seed) for seed in range(FIRST_SEED, FIRST_SEED + count)}
    title = f"held-out accuracy of digits, {NODES} nodes, {count} seeds; delta {DELTA:g}, one record"
    table = Table("noise", "ε", f"linear, {STEPS} rounds", *[f"{head}, 1 round" for head in SOLVED_HEADS], title=title)
    for world in WORLDS:
        for epsilon in EPSILONS:
            trained = [scores(split, NODES, seed, [Setting(world, epsilon)])[0] for seed, split in splits.items()]
            cells = [[each["accuracy"] for each in trained]]
            for head in SOLVED_HEADS:
                cells.append([solved_accuracy(head, world, split, epsilon, seed) for seed, split in splits.items()])
            table.add_row(world, f"{epsilon:g}", *map(_mean, cells))
    Console(width=110).print(table)


def solved_accuracy(kind: str, world: str, split: Split, epsilon: float, seed: int) -> float:
    """Of a head solved from one sum, on held-out records; arguments as in ``worlds.scores``."""
    features, size = split.features.shape[1], len(split.labels)
    norm = default_clipping_norm(features, head=kind)
    module = SolvedHead(kind, features, split.classes)
    numbers = sum(value.numel() for value in module.parameters())
    order = torch.from_numpy(np.random.default_rng(seed).permutation(size))
    parts = list(torch.tensor_split(order, NODES))
    sizes = [len(part) for part in parts]
    sums = Sums(world, sizes, noise_multiplier_for(epsilon, DELTA, 1.0, 1), norm, numbers, seed)
    clipped = [solved_sum(module, split.features[part], split.labels[part], norm) for part in parts]
    mean = _named(clipped[0], -sums.noised(clipped, 0) / size)
    head = solved(kind, mean, sums.noise_over_norm * norm / size, norm)
    right = (split.test_features.float() @ head["weight"].T + head["bias"]).argmax(dim=1) == split.test_labels
    return float(right.double().mean())


def _named(like: ClippedSum, values: np.ndarray) -> dict[str, torch.Tensor]:
    """Numbers that stand end to end, in the order of names."""
    names = sorted(like.values)
    pieces = torch.split(torch.from_numpy(values), [like.values[name].numel() for name in names])
    return {name: piece.view_as(like.values[name]) for name, piece in zip(names, pieces, strict=True)}


def _mean(scores: list[float]) -> str:
    spread = f" ± {np.std(scores, ddof=1):.3f}" if len(scores) > 1 else ""
    return f"{np.mean(scores):.3f}{spread}"

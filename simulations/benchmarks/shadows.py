"""Shadow heads: seconds for a thousand against Opacus, one after another; and what attacks make of them on digits."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from opacus import GradSampleModule
from opacus.optimizers import DPOptimizer
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

from common.config import load_config
from common.data.federation import source_targets
from common.grafting import threads
from common.privacy.plan import PrivacyTerms
from common.tasks import classification_loss
from simulations.audits.findings import Membership, Reconstruction
from simulations.audits.membership import Observed, halves, lira_scores, membership, observe, rmia_scores
from simulations.audits.recipes import open_recipe, places_of, private_recipe
from simulations.audits.reconstruction import reconstruct, reconstruct_records
from simulations.audits.shadows import Recipe, train_heads
from simulations.preflight import check

CONFIG = Path("simulations/configs/digits.toml")
THREADS, HEADS, ONE_BY_ONE, WIDE = 2, 1000, 3, 768
NODE, POOLS, TARGETS = 20, 35, 200
ROUNDS, CLASSES, RATE = 30, 10, 0.01
_PUBLIC = 360  # held-out digits


def main() -> None:
    """Print four tables."""
    console = Console(width=140)
    records = _records()
    with threads(THREADS):
        console.print(_timing(records))
        console.print(*_attacks(records))
        console.print(_readings(records))


@dataclass(frozen=True)
class _Records:
    """Digits as the demo's nodes see them.

    Attributes:
        features: of the training records, shape (n, D).
        targets: shape (n,).
        public: features and targets of the held-out records.
        terms: at epsilon 1.
    """

    features: Tensor
    targets: Tensor
    public: tuple[Tensor, Tensor]
    terms: PrivacyTerms


def _records() -> _Records:
    ready = check(load_config(CONFIG, ["privacy.epsilon=1", f"federation.rounds={ROUNDS}"]))
    features = torch.from_numpy(np.array(ready.features))
    targets = source_targets(ready.federation, ready.proposal.plan.offer.model.backbone)
    train = torch.from_numpy(np.concatenate(list(ready.federation.shares.values())))
    test = torch.from_numpy(ready.federation.test)
    return _Records(features[train], targets[train], (features[test], targets[test]), ready.proposal.plan.offer.terms)


def _timing(records: _Records) -> Table:
    titles = (
        "records",
        "features",
        "ours",
        "of processor",
        "Opacus, a head",
        "of processor",
        "all",
        "ratio",
        "of processor",
    )
    title = f"{HEADS:,} private heads of {CLASSES} classes, {ROUNDS} steps, {THREADS} threads; seconds"
    table = Table(*titles, title=title)
    generator = torch.Generator().manual_seed(0)
    wide = torch.randn(len(records.targets), WIDE, generator=generator)
    for features, count in ((records.features, len(records.targets)), (wide, len(wide)), (records.features, 2 * NODE)):
        table.add_row(f"{count}, half in each head", str(features.shape[1]), *_against_opacus(records, features, count))
    return table


def _against_opacus(records: _Records, features: Tensor, count: int) -> list[str]:
    """Ours, all heads; Opacus's, a few heads one after another after one that does not count."""
    own, targets, included = features[:count], records.targets[:count], halves(HEADS, count, 0)
    recipe = private_recipe(records.terms, CLASSES, own.shape[1], [count // 2])
    ours = _clock(lambda: train_heads(own, targets, included, recipe, seed=0))
    heads = [_clock(_opacus(own[row], targets[row], recipe)) for row in included[: 1 + ONE_BY_ONE]][1:]
    single = [sum(part) / ONE_BY_ONE for part in zip(*heads, strict=True)]
    ratios = [f"{one * HEADS / all_:.0f}" for one, all_ in zip(single, ours, strict=True)]
    seconds = [f"{value:.1f}" for value in ours] + [f"{value:.2f}" for value in single]
    return [*seconds, f"{single[0] * HEADS:.0f}", *ratios]


def _clock(run: Callable[[], object]) -> tuple[float, float]:
    """Wall and processor seconds."""
    wall, processor = time.perf_counter(), time.process_time()
    run()
    return time.perf_counter() - wall, time.process_time() - processor


def _opacus(features: Tensor, targets: Tensor, recipe: Recipe) -> Callable[[], None]:
    """One head by Opacus's per-sample gradients and optimizer, on the same records with the same plan."""
    assert recipe.terms is not None
    terms = recipe.terms
    module = GradSampleModule(nn.Linear(features.shape[1], recipe.classes), loss_reduction="sum")
    options: Any = {
        "noise_multiplier": terms.noise_multiplier,
        "max_grad_norm": terms.clipping_norm,
        "expected_batch_size": round(recipe.expected_batch),
    }
    descent = torch.optim.SGD(list(module.parameters()), lr=recipe.learning_rate)
    optimizer = DPOptimizer(descent, **options, loss_reduction="mean")

    def run() -> None:
        for _ in range(terms.steps):
            optimizer.zero_grad()
            torch.autograd.backward(classification_loss(module(features), targets).sum())
            optimizer.step()

    return run


def _attacks(records: _Records) -> tuple[Table, str]:
    titles = (
        "who sees what",
        "attack",
        "no DP: at 1 %",
        "0.1 %",
        "area",
        "ε = 1: at 1 %",
        "0.1 %",
        "area",
        "ratio at 1 %",
    )
    heads = f"{HEADS - TARGETS} shadow and {TARGETS} target heads"
    table = Table(*titles, title=f"true positive rates, digits, {NODE} records a node, {ROUNDS} rounds, {heads}")
    ratios = []
    for who, look in {"server: a node's own head": _alone, "model: final head": _averaged}.items():
        found = {private: _all_attacks(look(records, private)) for private in (False, True)}
        for without, protected in zip(found[False], found[True], strict=True):
            ratio = without.true_positive_rate_at[RATE] / protected.true_positive_rate_at[RATE]
            ratios.append(f"{who}, {without.method}: {ratio:.1f} times")
            table.add_row(who, without.method, *_cells(without), *_cells(protected), f"{ratio:.1f}")
    return table, f"without DP, true positives at 1 % false ones are those of epsilon 1: {ratios[0]}"


def _cells(found: Membership) -> tuple[str, str, str]:
    rates = found.true_positive_rate_at
    return f"{rates[0.01]:.2%}", f"{rates[0.001]:.2%}", f"{found.area:.3f}"


def _all_attacks(worlds: list[Observed]) -> list[Membership]:
    """Attacks on the target heads of all worlds, whose records come first and the population last."""
    halves_ = [world.split(TARGETS) for world in worlds]
    own = slice(0, -_PUBLIC)
    people = slice(-_PUBLIC, None)
    methods: dict[str, Callable[[Observed, Observed], np.ndarray[Any, Any]]] = {
        "lira-online": lambda s, t: lira_scores(s.of(own), t.of(own)),
        "lira-offline": lambda s, t: lira_scores(s.of(own), t.of(own), online=False),
        "rmia": lambda s, t: rmia_scores(s.of(own), t.of(own), s.margins[:, people], t.margins[:, people]),
    }
    truth = [targets.of(own) for _, targets in halves_]
    merged = Observed(np.hstack([part.margins for part in truth]), np.hstack([part.included for part in truth]))
    return [
        membership(name, np.hstack([score(*half) for half in halves_]), merged, HEADS - TARGETS, time.perf_counter())
        for name, score in methods.items()
    ]


def _alone(records: _Records, private: bool) -> list[Observed]:
    """Each node by itself, on half of a pool of its own; what a server sees that hands it back its own head."""
    worlds = []
    for pool, rows in enumerate(_pools(records)):
        features, targets = records.features[rows], records.targets[rows]
        recipe = open_recipe(features, targets, CLASSES, ROUNDS)
        if private:
            recipe = private_recipe(records.terms, CLASSES, features.shape[1], [NODE])
        included = halves(HEADS, len(rows), pool)
        worlds.append(observe(features, targets, included, recipe, seed=pool, population=records.public))
    return worlds


def _averaged(records: _Records, private: bool) -> list[Observed]:
    """All nodes together, each on half of its pool; the global head after the last round."""
    pools = _pools(records)
    rows = torch.cat(pools)
    features, targets = records.features[rows], records.targets[rows]
    own = list(torch.split(torch.arange(len(rows)), 2 * NODE))
    sizes = [NODE] * len(own)
    places = places_of(own, records.terms if private else None, sizes)
    recipe = open_recipe(features, targets, CLASSES, ROUNDS, places=places)
    if private:
        recipe = private_recipe(records.terms, CLASSES, features.shape[1], sizes)
    included = halves(HEADS, len(rows), 0)
    return [observe(features, targets, included, recipe, seed=0, places=places, population=records.public)]


def _pools(records: _Records) -> list[Tensor]:
    return list(torch.split(torch.arange(len(records.targets))[: 2 * NODE * POOLS], 2 * NODE))


def _readings(records: _Records) -> Table:
    titles = ("what is read", "of", "no DP", "ε = 1", "a guess without the update")
    table = Table(*titles, title="errors of a server that reads one update: records of a class, or 1 - cosine")
    nodes = list(torch.split(torch.arange(len(records.targets))[: NODE * (len(records.targets) // NODE)], NODE))
    width = records.features.shape[1]
    bare = Recipe(CLASSES, 1.0, None, 1.0, rounds=1)
    counts, means = [], []
    for recipe in (bare, private_recipe(records.terms, CLASSES, width, [NODE])):
        found = reconstruct(records.features, records.targets, nodes, recipe, records.public[0], seed=0)
        counts.append(found[0])
        means.append(found[1])
    singles = [
        reconstruct_records(records.features, records.targets, recipe, records.public[0], seed=0)
        for recipe in (bare, private_recipe(records.terms, CLASSES, width, [1]))
    ]
    for what, pair in ((f"a node of {NODE}", counts), (f"a node of {NODE}", means), ("a node of one", singles)):
        table.add_row(*_reading(what, pair))
    return table


def _reading(what: str, pair: list[Reconstruction]) -> tuple[str, ...]:
    open_, private = pair
    return open_.target, what, f"{open_.error:.2g}", f"{private.error:.3g}", f"{open_.chance:.3g}"

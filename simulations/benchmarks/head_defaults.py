"""How well the default clipping norm and step suit each kind of head: a search around a linear head's, and the default.

As in ``defaults``, the nodes' clipped, noised full-batch steps are one clipped sum with the noise of all nodes. Splits
are those of seeds that no reported run uses, and no test record is looked at. Epsilon infinity is clipping without
noise, the limit of a large federation. Gradients of heads of several layers are taken together by ``vmap``, which is
several times faster and which a node must not do (docs/decisions/0007-heads.md).

The data but for scikit-learn's digits lie in ``../shared/data``; what is not there is left out, and said so.
``FEDGRAFT_SETTINGS="mlp|upper all"`` chooses some heads.
"""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap

from client.mechanism import clipped_sum
from common.data import hold_out, load_source
from common.data.local import LocalData
from common.errors import ConfigError
from common.features import as_tensor, cached_backbone, default_cache
from common.grafting import threads
from common.messages import ModelSpec
from common.model import choose_cut, classifier_width, make_head
from common.privacy.accountant import noise_multiplier_for
from common.privacy.plan import PrivacyTerms
from common.targets import make_targets
from common.tasks import PerUnitLoss, task_named
from server.defaults import CLIPPED_AT, NOISE_OF_LINEAR, default_clipping_norm, default_learning_rate, noise_tolerated
from simulations.benchmarks.tasks import DATA, minilm

DELTA, SEEDS, EPSILONS = 1e-5, (1000, 1001, 1002), (3.0, 8.0, math.inf)
TRIED = ((1.0, 1.0), (1.0, 0.3), (1.0, 3.0), (0.3, 1.0), (3.0, 1.0), (1.0, 10.0))  # C, and k = learning rate x C
VALIDATION = 500  # records at most
TOGETHER = 20


@dataclass(frozen=True)
class Case:
    """A head and what it learns.

    Attributes:
        source: of the data, as the configuration names it, or below ``../shared/data``.
        backbone: reference; ``{minilm}`` stands for the encoder's folder.
        head: kind of head, and which parameters are trained.
        metric: that is printed.
        nodes: of the federation.
        records: of all nodes together.
        steps: full-batch ones.
        cut: last frozen stage.
        keys: names of the data's own.
    """

    source: str
    backbone: str
    head: str
    metric: str
    nodes: int = 2
    records: int = 400
    steps: int = 15
    cut: str | None = None
    keys: tuple[tuple[str, str], ...] = ()

    @property
    def path(self) -> str:
        """The source as it is loaded."""
        return self.source if self.source == "digits" else str(DATA / self.source)

    @property
    def tried(self) -> tuple[tuple[float, float], ...]:
        """Multiples of C and k; the longest step for an MLP only, which wants a longer one."""
        return TRIED if self.head == "mlp" else TRIED[:-1]


GLYPH, SPEECH = "embedded/glyph", "audio-fsdd/fsdd.npz"
SPOKEN = (("label", "label"),)

CASES: Mapping[str, Case] = {
    "linear": Case("digits", GLYPH, "linear", "accuracy"),
    "linear, speech": Case(SPEECH, f"spectrogram/{GLYPH}", "linear", "accuracy", 5, 1500, 30, keys=SPOKEN),
    "mlp": Case("digits", GLYPH, "mlp", "accuracy"),
    "mlp, wide": Case("digits", GLYPH, "mlp", "accuracy", cut="stage2"),
    "mlp, speech": Case(SPEECH, f"spectrogram/{GLYPH}", "mlp", "accuracy", 5, 1500, 30, keys=SPOKEN),
    "upper biases": Case("digits", GLYPH, "upper biases", "accuracy", records=160, steps=10, cut="stage2"),
    "upper adapters": Case("digits", GLYPH, "upper adapters", "accuracy", records=160, steps=10, cut="stage2"),
    "upper all": Case("digits", GLYPH, "upper all", "accuracy", records=160, steps=10, cut="stage2"),
    "tokens": Case("ner-ncbi-disease", "hf/{minilm}:64", "linear", "entity_f1", 5, 1500, 20),
    "spans": Case("qa-xquad-en", "hf/{minilm}:128", "linear", "token_f1", 5, 500, 15),
}


@dataclass(frozen=True)
class Records:
    """Features and targets of a case, for training and validation."""

    fit: tuple[Tensor, Tensor]
    validation: tuple[Tensor, Tensor]


def main() -> None:
    """Print the metric for multiples of a linear head's clipping norm and step, and how far it is from theirs."""
    chosen = os.environ.get("FEDGRAFT_SETTINGS", "")
    for name, case in CASES.items():
        if chosen and name not in chosen.split("|"):
            continue
        titles = [f"C x {clip:g}, k x {step:g}" for clip, step in case.tried]
        title = f"{name}: {case.metric} (loss), {len(SEEDS)} seeds"
        table = Table("epsilon", "k", *titles, "the head's default", title=title)
        try:
            rows = [_row(case, epsilon) for epsilon in EPSILONS]
        except ConfigError as error:
            Console(stderr=True).print(f"{name} is left out: {error}")
            continue
        for row in rows:
            table.add_row(*row)
        Console(width=200).print(table)


def _row(case: Case, epsilon: float) -> list[str]:
    model, _ = _model(case)
    like_linear = noise_tolerated(model.head, model.train) == NOISE_OF_LINEAR and model.task not in CLIPPED_AT
    every = (*case.tried, TRIED[0] if like_linear else None)
    found = np.array([[_score(case, epsilon, seed, tried) for tried in every] for seed in SEEDS])
    values, losses = found[..., 0], found[..., 1].mean(axis=0)  # (seeds, tried)
    gains = values - values[:, :1]
    cells = [f"{values[:, 0].mean():.3f} ({losses[0]:.2f})"]
    for cell in range(1, len(losses)):
        gain, spread = gains[:, cell].mean(), gains[:, cell].std(ddof=1)
        cells.append(f"{values[:, cell].mean():.3f} ({losses[cell]:.2f}) {gain:+.3f} ± {spread:.3f}")
    return [f"{epsilon:g}", f"{found[0, 0, 2]:.2g}", *cells]


@lru_cache(maxsize=64)
def _score(case: Case, epsilon: float, seed: int, tried: tuple[float, float] | None) -> tuple[float, float, float]:
    """The metric and the loss on validation records, and k; of multiples of a linear head's C and k, or the default."""
    model, data = _model(case)
    records, head, task = _records(case, seed), make_head(model, seed=seed), task_named(model.task)
    sigma = 0.0 if math.isinf(epsilon) else noise_multiplier_for(epsilon, DELTA, 1.0, case.steps)
    norm = default_clipping_norm(classifier_width(model), "classification" if tried else model.task)
    terms = PrivacyTerms("record", "local", 1.0, case.steps, 1, norm, max(sigma, 0.01), DELTA)
    count = sum(value.numel() for value in head.parameters() if value.requires_grad)
    sizes = [len(records.fit[1]) // case.nodes] * case.nodes
    kind = "linear" if tried else model.head
    k = norm * default_learning_rate(terms, count, sizes, [1.0] * case.nodes, None, kind, model.train)
    clip, step = tried or (1.0, 1.0)
    norm, k = norm * clip, k * step
    with threads(1):
        deviation = sigma * case.nodes**0.5
        _train(head, task.loss, records.fit, norm, k / norm, deviation, case.steps, seed)
        scores = task.score(head, *records.validation)
    value = {"accuracy": scores.accuracy, **scores.metrics(data.classes)}[case.metric]
    return math.nan if value is None else value, scores.loss, k


@lru_cache(maxsize=1)
def _model(case: Case) -> tuple[ModelSpec, LocalData]:
    data = load_source(case.path, dict(case.keys))
    reference = case.backbone.format(minilm=minilm()) if "{minilm}" in case.backbone else case.backbone
    kind, _, trained = case.head.partition(" ")
    spec = ModelSpec.model_validate(
        {
            "backbone": reference,
            "backbone_digest": cached_backbone(reference).digest,
            "cut": choose_cut(reference, case.cut, data.task),
            "head": kind,
            "hidden": 64,
            "classes": data.classes,
            "task": data.task,
            "train": trained or "all",
        }
    )
    return spec, data


@lru_cache(maxsize=1)
def _all_records(case: Case) -> tuple[NDArray[np.float32], Tensor]:
    model, data = _model(case)
    backbone = cached_backbone(model.backbone)
    return default_cache().features(backbone, model.cut, data), make_targets(data, backbone)


@lru_cache(maxsize=len(SEEDS))
def _records(case: Case, seed: int) -> Records:
    _, data = _model(case)
    features, targets = _all_records(case)
    train, _ = hold_out(data, 0.2, seed)
    rows = np.random.default_rng(seed).permutation(train)
    parts = rows[: case.records], rows[case.records : case.records + VALIDATION]
    fit, validation = ((as_tensor(features, part), targets[torch.from_numpy(part)]) for part in parts)
    return Records(fit, validation)


def _train(
    head: nn.Module,
    loss: PerUnitLoss,
    records: tuple[Tensor, Tensor],
    norm: float,
    rate: float,
    deviation: float,
    steps: int,
    seed: int,
) -> None:
    generator = torch.Generator().manual_seed(seed)
    trained = {name: value for name, value in head.named_parameters() if value.requires_grad}
    for _ in range(steps):
        sums = _clipped_sum(head, loss, records, norm)
        with torch.no_grad():
            for name, value in trained.items():
                noise = norm * deviation * torch.randn(value.shape, generator=generator, dtype=torch.float64)
                value.sub_(rate * (sums[name] + noise) / len(records[1]))


def _clipped_sum(
    head: nn.Module, loss: PerUnitLoss, records: tuple[Tensor, Tensor], norm: float
) -> Mapping[str, Tensor]:
    if isinstance(head, nn.Linear):  # those over tokens are, too
        return clipped_sum(head, loss, *records, norm).values
    trained = {name: value.detach() for name, value in head.named_parameters() if value.requires_grad}

    def one(values: dict[str, Tensor], features: Tensor, target: Tensor) -> Tensor:
        return loss(functional_call(head, values, (features[None],)), target[None])[0]

    sums = {name: torch.zeros(value.shape, dtype=torch.float64) for name, value in trained.items()}
    for features, targets in zip(*(torch.split(part, TOGETHER) for part in records), strict=True):
        each = vmap(grad(one), in_dims=(None, 0, 0))(trained, features, targets)
        norms = torch.stack([value.flatten(1).norm(dim=1) for value in each.values()]).norm(dim=0)
        factors = (norm / norms).clamp(max=1.0)
        for name, value in each.items():
            sums[name] += torch.tensordot(factors, value, dims=1)
    return sums

"""Where the default clipping norm and learning rate come from: a search on other data than any reported test set.

The search splits the records by other seeds than any reported run, and scores on a validation fifth of the training
part. Ten nodes with clipped, noised full-batch steps are one clipped sum with the noise of all ten, which is what is
simulated here.
"""

from __future__ import annotations

import numpy as np
import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor

from client.mechanism import clipped_sum
from common.data import hold_out, load_source
from common.features import cached_backbone, default_cache
from common.heads import build_head
from common.privacy.accountant import noise_multiplier_for
from common.privacy.plan import PrivacyTerms
from common.tasks import classification_loss
from server.defaults import default_clipping_norm, default_learning_rate

NODES, DELTA, SEEDS = 10, 1e-5, (1000, 1001, 1002, 1003)
CLIPS = (0.03, 0.1, 0.3)  # clipping norm / sqrt(D)
STEPS = (0.2, 0.4, 0.8, 1.6, 3.2)  # learning rate x clipping norm
CASES = ((1.0, 30), (3.0, 30), (3.0, 100), (8.0, 30), (8.0, 100))


def main() -> None:
    """Print, for each epsilon and number of steps, the accuracy of a grid and that of the rule."""
    console = Console()
    for reference in ("embedded/glyph", "pixels/8"):
        features, labels, classes = _records(reference)
        for epsilon, steps in CASES:
            title = f"{reference}, digits, epsilon {epsilon:g}, {steps} steps: validation accuracy"
            table = Table("C / sqrt(D)", *[f"k = {k}" for k in STEPS], title=title)
            for clip in CLIPS:
                scores = [_score(features, labels, classes, epsilon, steps, clip, k) for k in STEPS]
                table.add_row(f"{clip}", *[f"{score:.3f}" for score in scores])
            console.print(table)
            console.print(f"the rule: {_score(features, labels, classes, epsilon, steps, None, None):.3f}")


def _records(reference: str) -> tuple[Tensor, Tensor, int]:
    data = load_source("digits")
    features = default_cache().features(cached_backbone(reference), None, data)
    return torch.from_numpy(np.array(features)), torch.from_numpy(data.labels), len(data.classes)


def _score(
    features: Tensor, labels: Tensor, classes: int, epsilon: float, steps: int, clip: float | None, k: float | None
) -> float:
    sigma = noise_multiplier_for(epsilon, DELTA, 1.0, steps)
    dimension = features.shape[1]
    norm = default_clipping_norm(dimension) if clip is None else clip * dimension**0.5
    scores = []
    for seed in SEEDS:
        train, _ = hold_out(load_source("digits"), 0.2, seed)
        shuffled = np.random.default_rng(seed).permutation(train)
        validation, fit = shuffled[: len(train) // 5], shuffled[len(train) // 5 :]
        terms = PrivacyTerms("record", "local", 1.0, steps, 1, norm, sigma, DELTA)
        parameters, size = (dimension + 1) * classes, len(fit) // NODES
        rule = default_learning_rate(terms, parameters, [size] * NODES, [1.0] * NODES, None)
        head = _train(features[fit], labels[fit], terms, rule if k is None else k / norm, seed, classes)
        with torch.no_grad():
            right = head(features[validation]).argmax(dim=1) == labels[validation]
        scores.append(float(right.double().mean()))
    return float(np.mean(scores))


def _train(
    features: Tensor, labels: Tensor, terms: PrivacyTerms, learning_rate: float, seed: int, classes: int
) -> torch.nn.Module:
    head = build_head("linear", features.shape[1], classes)
    generator = torch.Generator().manual_seed(seed)
    deviation = terms.noise_multiplier * terms.clipping_norm * NODES**0.5
    for _ in range(terms.steps):
        clipped = clipped_sum(head, classification_loss, features, labels, terms.clipping_norm)
        with torch.no_grad():
            for name, value in head.named_parameters():
                noise = deviation * torch.randn(value.shape, generator=generator, dtype=torch.float64)
                value.sub_(learning_rate * (clipped.values[name] + noise) / len(labels))
    return head

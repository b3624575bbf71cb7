"""Where the clipping norms of heads of several layers come from: a search around one rule, on scikit-learn's digits.

As in ``defaults``, the nodes' clipped, noised full-batch steps are one clipped sum with the noise of all of them, and a
validation part of the training data is scored. The rule: C is a tenth of the length of what the classifier is given,
and a step is ``server.defaults.default_learning_rate`` with the number of trained parameters.
"""

from __future__ import annotations

import copy
import math

import torch
from rich.console import Console
from torch import Tensor, nn

from client.mechanism import clipped_sum
from common.backbones.controls import load_reference
from common.data import hold_out, load_source
from common.features import default_cache
from common.grafting import Layout, Trunk, layout
from common.heads import build_head
from common.privacy.accountant import noise_multiplier_for
from common.privacy.plan import PrivacyTerms
from common.tasks import classification_loss
from server.defaults import default_learning_rate

BACKBONE, CUT, DELTA, NODES, RECORDS, SEED, STEPS = "embedded/glyph", "stage2", 1e-5, 2, 400, 1000, 12
WIDTH = 256  # of what the classifier is given: the backbone's own features, or the MLP's first layer
HEADS = ("linear", "mlp", "upper biases", "upper adapters", "upper all")
TRIED = ((1.0, 1.0), (1.0, 0.3), (1.0, 3.0), (0.3, 1.0), (3.0, 1.0))  # of C, of learning rate x C


def main() -> None:
    """Print the validation accuracy for multiples of the rule's clipping norm and step."""
    console = Console()
    for epsilon in (8.0, math.inf):
        for kind in HEADS:
            head, features, labels = _start(kind)
            cells = [f"C x {c:g}, k x {k:g}: {_score(head, features, labels, epsilon, c, k):.3f}" for c, k in TRIED]
            console.print(f"epsilon {epsilon:g}, {kind}: {'; '.join(cells)}", soft_wrap=True)


def _start(kind: str) -> tuple[nn.Module, Tensor, Tensor]:
    backbone, data = load_reference(BACKBONE), load_source("digits")
    cut = CUT if kind.startswith("upper") else None
    train, _ = hold_out(data, 0.2, SEED)
    labels = torch.from_numpy(data.labels)[train]
    features = torch.from_numpy(default_cache().features(backbone, cut, data)[train].copy())
    names = list(backbone.stages)
    above = {name: backbone.stages[name] for name in names[names.index(CUT) + 1 :]}
    shape: Layout = layout(Trunk(backbone, cut), backbone.preprocessing)
    name, _, trained = kind.partition(" ")
    return build_head(name, shape, 10, upper=above, train=trained or "all"), features, labels


def _score(head: nn.Module, features: Tensor, labels: Tensor, epsilon: float, clip: float, step: float) -> float:
    head = copy.deepcopy(head)
    sigma = 0.0 if math.isinf(epsilon) else noise_multiplier_for(epsilon, DELTA, 1.0, STEPS)
    norm = 0.1 * math.sqrt(WIDTH)
    terms = PrivacyTerms("record", "local", 1.0, STEPS, 1, norm, max(sigma, 1e-3), DELTA)
    trained = [(name, value) for name, value in head.named_parameters() if value.requires_grad]
    count = sum(value.numel() for _, value in trained)
    rate = default_learning_rate(terms, count, [RECORDS // NODES] * NODES, [1.0] * NODES, None)
    rate, norm = rate * step / clip, norm * clip
    generator = torch.Generator().manual_seed(SEED)
    for _ in range(STEPS):
        clipped = clipped_sum(head, classification_loss, features[:RECORDS], labels[:RECORDS], norm)
        with torch.no_grad():
            for name, value in trained:
                noise = torch.randn(value.shape, generator=generator, dtype=torch.float64)
                value.sub_(rate * (clipped.values[name] + norm * sigma * NODES**0.5 * noise) / RECORDS)
    with torch.no_grad():
        return float((head(features[RECORDS:]).argmax(dim=1) == labels[RECORDS:]).double().mean())

"""What is learnt: the loss of one record, and the metrics of a whole evaluation."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

PerUnitLoss = Callable[[Tensor, Tensor], Tensor]


def classification_loss(logits: Tensor, targets: Tensor) -> Tensor:
    """Cross-entropy of each record on its own.

    It is never averaged here: a mean-reduced or class-weighted loss would make a record's gradient depend on the
    other records, and clipping would no longer bound its influence.

    Args:
        logits: shape (B, K).
        targets: shape (B,), int64 class indices.

    Returns:
        Shape (B,), in nats.
    """
    return nn.functional.cross_entropy(logits, targets, reduction="none")


@dataclass(frozen=True)
class Scores:
    """How well a head classifies a set of records.

    Attributes:
        accuracy: fraction of records classified rightly.
        loss: mean cross-entropy, in nats.
        confusion: shape (K, K), rows are true classes, columns predicted ones.
    """

    accuracy: float
    loss: float
    confusion: Tensor

    @property
    def class_recall(self) -> Tensor:
        """Fraction classified rightly of each true class, shape (K,); NaN for a class without a record."""
        return self.confusion.diagonal().double() / self.confusion.sum(dim=1).double()

    @property
    def balanced_accuracy(self) -> float:
        """Mean recall over the classes that occur."""
        return float(self.class_recall.nanmean())


@torch.no_grad()
def score_classification(head: nn.Module, features: Tensor, targets: Tensor, classes: int) -> Scores:
    """Evaluate a head on features.

    Args:
        head: maps (N, D) features to (N, K) logits.
        features: shape (N, D), N > 0.
        targets: shape (N,), int64.
        classes: K.
    """
    logits = head(features)
    predicted = logits.argmax(dim=1)
    confusion = torch.bincount(targets * classes + predicted, minlength=classes * classes).reshape(classes, classes)
    return Scores(
        accuracy=float((predicted == targets).double().mean()),
        loss=float(classification_loss(logits, targets).double().mean()),
        confusion=confusion,
    )

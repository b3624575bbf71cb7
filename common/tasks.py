"""What is learnt: for each task the loss of one record, its targets, and the metrics of a whole evaluation."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor, nn

from common import metrics
from common.data.records import TaskName
from common.errors import ConfigError
from common.metrics import IGNORED, Metrics

PerUnitLoss = Callable[[Tensor, Tensor], Tensor]
AT_ONCE = 2048  # records whose logits are computed together


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


def multilabel_loss(logits: Tensor, targets: Tensor) -> Tensor:
    """Binary cross-entropy of each record, the mean over its K labels, shape (B,); targets are (B, K) of 0 and 1."""
    return nn.functional.binary_cross_entropy_with_logits(logits, targets.to(logits.dtype), reduction="none").mean(1)


def token_loss(logits: Tensor, targets: Tensor) -> Tensor:
    """Cross-entropy of each record, the mean over its own tagged tokens, shape (B,); zero where it has none.

    Args:
        logits: shape (B, T, K).
        targets: shape (B, T + L), int64, ``IGNORED`` where nothing is to be predicted; the last L have no loss.
    """
    targets = targets[:, : logits.shape[1]]
    each = nn.functional.cross_entropy(logits.transpose(1, 2), targets, ignore_index=IGNORED, reduction="none")
    return each.sum(dim=1) / (targets != IGNORED).sum(dim=1).clamp(min=1)


def span_loss(logits: Tensor, targets: Tensor) -> Tensor:
    """Cross-entropy of each record, the mean over the answer's first and last token, shape (B,).

    Args:
        logits: shape (B, T, 2).
        targets: shape (B, 2), int64 token positions; (0, 0) where there is no answer; ``CUT_OFF`` is taken for none.
    """
    each = nn.functional.cross_entropy(logits, targets.clamp(min=0), reduction="none")  # classes are the T positions
    return each.mean(dim=1)


@dataclass(frozen=True)
class Scores:
    """How well a head does on a set of records.

    Attributes:
        accuracy: the task's main figure: fraction of records classified rightly; of labels, for several a record; of
            words tagged rightly, those that were cut off not; of answers found exactly.
        loss: mean over records, in nats.
        logits: of every record.
        targets: of every record.
        task: whose figures these are.
    """

    accuracy: float
    loss: float
    logits: Tensor
    targets: Tensor
    task: Task

    @cached_property
    def confusion(self) -> Tensor | None:
        """Shape (K, K), rows are true classes, columns predicted ones; None but for classification."""
        if self.task.name != "classification":
            return None
        classes = self.logits.shape[1]
        cells = self.targets * classes + self.logits.argmax(dim=1)
        return torch.bincount(cells, minlength=classes * classes).reshape(classes, classes)

    @property
    def class_recall(self) -> Tensor | None:
        """Fraction classified rightly of each true class, shape (K,); NaN for a class without a record."""
        counts = self.confusion
        return None if counts is None else counts.diagonal().double() / counts.sum(dim=1).double()

    def metrics(self, classes: tuple[str, ...]) -> Metrics:
        """The task's other metrics by name, None where one is not defined (a class without a record, say)."""
        return self.task.metrics(self.logits, self.targets, classes)


@dataclass(frozen=True)
class Task:
    """A kind of learning.

    Attributes:
        name: as ``LocalData.task`` says it.
        loss: of each unit on its own, (B,) from logits and targets.
        correct: how much of each record is right, and how much there was: two tensors (B,).
        metrics: from logits, targets and class names.
    """

    name: TaskName
    loss: PerUnitLoss
    correct: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]
    metrics: Callable[[Tensor, Tensor, tuple[str, ...]], Metrics]

    @torch.no_grad()
    def score(self, head: nn.Module, features: Tensor, targets: Tensor) -> Scores:
        """Evaluate a head on features.

        Args:
            head: maps (N, D) features to logits.
            features: shape (N, D), N > 0.
            targets: of the N records.
        """
        logits = torch.cat([head(part) for part in torch.split(features, AT_ONCE)])
        right, all_ = self.correct(logits, targets)
        accuracy = float(right.double().sum() / all_.double().sum().clamp(min=1))
        return Scores(accuracy, float(self.loss(logits, targets).double().mean()), logits, targets, self)


def task_named(name: str) -> Task:
    """The task of this name.

    Raises:
        ConfigError: there is none.
    """
    if name not in TASKS:
        raise ConfigError(f"expected a task out of {', '.join(TASKS)}, got {name!r}; update fedgraft")
    return TASKS[name]


def _right_class(logits: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    return logits.argmax(dim=1) == targets, torch.ones_like(targets)


def _right_labels(logits: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    return ((logits > 0) == (targets > 0.5)).sum(dim=1), torch.full((len(targets),), targets.shape[1])


def _right_tokens(logits: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    tagged, seen = targets != IGNORED, targets[:, : logits.shape[1]]
    return ((logits.argmax(dim=2) == seen) & (seen != IGNORED)).sum(dim=1), tagged.sum(dim=1)


def _right_span(logits: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    return (metrics.best_spans(logits) == targets).all(dim=1), torch.ones(len(targets))


TASKS: dict[str, Task] = {
    "classification": Task("classification", classification_loss, _right_class, metrics.classification),
    "multilabel": Task("multilabel", multilabel_loss, _right_labels, metrics.multilabel),
    "tokens": Task("tokens", token_loss, _right_tokens, metrics.tokens),
    "spans": Task("spans", span_loss, _right_span, metrics.spans),
}

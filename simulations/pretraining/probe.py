"""The linear probe: how well a few labels per class teach a linear classifier on given features."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

RIDGE = 1e-3
"""Weight of half the squared norm of the classifier, for features whose root mean square norm is 1."""


def choose(labels: np.ndarray, per_class: int, seed: int) -> np.ndarray:
    """Draw ``per_class`` indices of each class, without replacement."""
    generator = np.random.default_rng(seed)
    chosen = [
        generator.choice(np.flatnonzero(labels == label), per_class, replace=False) for label in np.unique(labels)
    ]
    return np.concatenate(chosen)


def probe_accuracy(train: Tensor, train_labels: Tensor, test: Tensor, test_labels: Tensor) -> float:
    """Fit multinomial logistic regression to its optimum and score it.

    The weights lie in the span of the training features, so that the fit works there, in float64.

    Args:
        train: shape (n, D).
        train_labels: shape (n,), int64, every class from 0 to K - 1 among them.
        test: shape (m, D).
        test_labels: shape (m,), int64.

    Returns:
        The share of the test features that are classified right.
    """
    size = train.double().square().sum(dim=1).mean().sqrt()
    rows, others = train.double() / size, test.double() / size
    values, vectors = torch.linalg.eigh(rows @ rows.T)
    kept = values > 1e-10 * values[-1]
    basis = rows.T @ (vectors[:, kept] / values[kept].sqrt())  # (D, rank), orthonormal
    weight, bias = _fit(rows @ basis, train_labels)
    return float(((others @ basis @ weight + bias).argmax(dim=1) == test_labels).double().mean())


def _fit(rows: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    classes = int(labels.max()) + 1
    weight = torch.zeros(rows.shape[1], classes, dtype=rows.dtype, requires_grad=True)
    bias = torch.zeros(classes, dtype=rows.dtype, requires_grad=True)
    optimizer = torch.optim.LBFGS([weight, bias], max_iter=100, history_size=20, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = functional.cross_entropy(rows @ weight + bias, labels) + RIDGE / 2 * weight.square().sum()
        loss.backward()  # type: ignore[no-untyped-call]  # torch leaves this one untyped
        return loss

    optimizer.step(closure)  # type: ignore[no-untyped-call]  # torch leaves this one untyped
    return weight.detach(), bias.detach()

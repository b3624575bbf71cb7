"""Slopes of losses along logits, and the products they take: each unit by itself, whatever company it is in."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from client.clipping import unreduced
from common.tasks import PerUnitLoss, classification_loss, multilabel_loss


def unit_by_unit(inputs: Tensor, weight: Tensor) -> Tensor:
    """Products (B, K) of inputs (B, D) and weights (K, D), one small product a unit.

    In one large product a unit's last bits depend on how many others there are, and weights chosen by a server, two
    rows that are the same up to their order, can turn a last bit into another gradient.
    """
    with np.errstate(all="ignore"):  # what is not finite is counted later
        return torch.from_numpy(np.matmul(inputs.numpy()[:, None, :], weight.numpy().T)[:, 0, :])


def slopes_along(logits: Tensor, loss: PerUnitLoss, targets: Tensor) -> Tensor:
    """Slope of each unit's loss along its logits, both (B, K).

    Those of the tasks' own losses are known; another loss is asked for them unit by unit. Not together: what torch
    works out for many numbers depends, in its last bit, on where among them one stands.

    Raises:
        PrivacyError: the loss is reduced.
    """
    if loss not in _KNOWN:
        return slopes_asked_for(logits, loss, targets)
    with np.errstate(all="ignore"):  # what is not finite is counted later
        return torch.from_numpy(_KNOWN[loss](logits.numpy(), targets.numpy()))


def slopes_asked_for(logits: Tensor, loss: PerUnitLoss, targets: Tensor) -> Tensor:
    """Slopes of any loss along logits (B, ...), of one unit after the other; errors as in ``slopes_along``."""
    found = torch.empty_like(logits)
    with torch.enable_grad():
        for unit in range(len(logits)):
            alone = logits[unit : unit + 1].clone().requires_grad_(True)
            losses = unreduced(loss(alone, targets[unit : unit + 1]), 1)
            found[unit] = torch.autograd.grad(losses.sum(), alone)[0][0]
    return found


def softmax(logits: NDArray[np.float64], axis: int) -> NDArray[np.float64]:
    """Softmax along an axis; NumPy takes a fraction of torch's time for a few records."""
    powers: NDArray[np.float64] = np.exp(logits - logits.max(axis=axis, keepdims=True))
    powers /= powers.sum(axis=axis, keepdims=True)
    return powers


def _class_slopes(logits: NDArray[np.float64], classes: NDArray[np.int64]) -> NDArray[np.float64]:
    """Slopes of ``classification_loss``."""
    slopes = softmax(logits, 1)
    slopes[np.arange(len(slopes)), classes] -= 1.0
    return slopes


def _label_slopes(logits: NDArray[np.float64], labels: NDArray[np.generic]) -> NDArray[np.float64]:
    """Slopes of ``multilabel_loss``."""
    small = np.exp(-np.abs(logits))
    likely = np.where(logits > 0, 1.0, small) / (1.0 + small)
    slopes: NDArray[np.float64] = (likely - labels.astype(np.float64)) / logits.shape[1]
    return slopes


_KNOWN: dict[PerUnitLoss, Callable[[NDArray[np.float64], NDArray[Any]], NDArray[np.float64]]] = {
    classification_loss: _class_slopes,
    multilabel_loss: _label_slopes,
}

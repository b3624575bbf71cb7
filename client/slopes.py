"""Slopes of losses along logits, and the products they take: each unit by itself, whatever company it is in."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from client.clipping import unreduced
from common.tasks import PerUnitLoss, classification_loss


def unit_by_unit(inputs: Tensor, weight: Tensor) -> Tensor:
    """Products (B, K) of inputs (B, D) and weights (K, D), one small product a unit.

    In one large product a unit's last bits depend on how many others there are, and weights chosen by a server, two
    rows that are the same up to their order, can turn a last bit into another gradient.
    """
    with np.errstate(all="ignore"):  # what is not finite is counted later
        return torch.from_numpy(np.matmul(inputs.numpy()[:, None, :], weight.numpy().T)[:, 0, :])


def slopes_along(logits: Tensor, loss: PerUnitLoss, targets: Tensor) -> Tensor:
    """Slope of each unit's loss along its logits, both (B, K); the logits may be changed.

    Raises:
        PrivacyError: the loss is reduced.
    """
    if loss is classification_loss:  # its slope is known: no graph has to be built
        with np.errstate(all="ignore"):  # what is not finite is counted later
            slopes = softmax(logits.numpy(), 1)
        slopes[np.arange(len(slopes)), targets.numpy()] -= 1.0
        return torch.from_numpy(slopes)
    with torch.enable_grad():
        logits.requires_grad_(True)
        losses = unreduced(loss(logits, targets), len(logits))
        return torch.autograd.grad(losses.sum(), logits)[0]


def softmax(logits: NDArray[np.float64], axis: int) -> NDArray[np.float64]:
    """Softmax along an axis; NumPy takes a fraction of torch's time for a few records."""
    powers: NDArray[np.float64] = np.exp(logits - logits.max(axis=axis, keepdims=True))
    powers /= powers.sum(axis=axis, keepdims=True)
    return powers

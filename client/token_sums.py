"""Clipped sums for a linear layer over tokens: each record's gradient formed and measured by itself.

Records are stacked, so that one call serves many, but every product is a record's own small one, as long as that
record alone needs: its bits do not depend on its company (docs/decisions/0007-heads.md).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from client.clipping import ClippedSum, clip_factors
from client.slopes import slopes_asked_for, softmax
from common.metrics import IGNORED
from common.tasks import PerUnitLoss, span_loss, token_loss
from common.token_heads import PADDING_LOGIT, TokenLinear

LENGTH_STEP = 8  # positions: records of nearly one length are stacked
AT_ONCE = 2**18  # float64 numbers of a stack of states; a processor's own cache holds them

Floats = NDArray[np.float64]
Stack = tuple[Floats, Floats, Tensor]  # states (B, n, d), mask (B, n), targets (B, ...)


def token_clipped_sum(
    head: TokenLinear, loss: PerUnitLoss, features: Tensor, targets: Tensor, clipping_norm: float
) -> ClippedSum:
    """Clip gradients sum_t g_t a_t^T of a layer over tokens; see ``mechanism.clipped_sum``.

    The slopes g of the tasks' own losses are known; another loss is asked for them record by record. Positions after
    the last one that has a slope are left out.
    """
    named = {name: value.shape for name, value in head.named_parameters() if value.requires_grad}
    sums = {name: torch.zeros(shape, dtype=torch.float64) for name, shape in named.items()}
    spoiled = 0
    with np.errstate(all="ignore"):  # what is not finite is counted
        for states, mask, aims in _stacks(head, loss, features.detach(), targets):
            slopes = _slopes(head, loss, states, mask, aims)
            whole = {"weight": np.matmul(slopes.transpose(0, 2, 1), states), "bias": slopes.sum(axis=1)}
            spoiled += add_clipped(sums, {name: whole[name] for name in named}, clipping_norm)
    return ClippedSum(sums, clipping_norm, spoiled)


def add_clipped(sums: Mapping[str, Tensor], gradients: Mapping[str, Floats], clipping_norm: float) -> int:
    """Add the clipped gradients of a stack, each (B, ...); how many were not finite and counted zero."""
    if not sums:
        return 0
    squares = [np.square(value).reshape(len(value), -1).sum(axis=1) for value in gradients.values()]
    factors, finite = clip_factors(torch.from_numpy(np.sqrt(sum(squares))), clipping_norm)
    for name, value in gradients.items():
        value[~finite.numpy()] = 0.0
        sums[name].add_(torch.from_numpy(np.tensordot(factors.numpy(), value, axes=1)))
    return int((~finite).sum())


def _stacks(head: TokenLinear, loss: PerUnitLoss, features: Tensor, targets: Tensor) -> Iterator[Stack]:
    """The records that have a gradient at all, with others that need equally many positions."""
    states, mask = (part.numpy() for part in head.parts(features))
    needed = _positions(loss, mask, targets)
    for length in np.unique(needed[needed > 0]):
        rows = np.flatnonzero(needed == length)
        for part in np.array_split(rows, -(-len(rows) * length * states.shape[2] // AT_ONCE)):
            aims = targets[torch.from_numpy(part)]
            yield (
                states[part, :length].astype(np.float64),
                mask[part, :length].astype(np.float64),
                aims[:, :length] if loss is token_loss else aims,
            )


def _positions(loss: PerUnitLoss, mask: Floats, targets: Tensor) -> NDArray[np.int64]:
    """How many positions each record needs, in steps, shape (N,); all of them where the loss is not a task's own."""
    length = mask.shape[1]
    if loss not in _KNOWN:
        return np.full(len(mask), length)
    counts = targets.numpy()[:, :length] != IGNORED if loss is token_loss else mask > 0
    last = np.where(counts, np.arange(1, length + 1), 0).max(axis=1)
    needed: NDArray[np.int64] = np.minimum(-(-last // LENGTH_STEP) * LENGTH_STEP, length)
    return needed


def _slopes(head: TokenLinear, loss: PerUnitLoss, states: Floats, mask: Floats, targets: Tensor) -> Floats:
    """Slope of each record's loss along its logits before masking, shape (B, n, K)."""
    logits = np.matmul(states, head.weight.detach().double().numpy().T)  # one small product a record
    if head.bias is not None:
        logits += head.bias.detach().double().numpy()
    present = mask[..., None] > 0
    if head.mask_logits:
        logits = np.where(present, logits, PADDING_LOGIT)
    if loss in _KNOWN:
        slopes = _KNOWN[loss](logits, targets.numpy())
    else:
        slopes = slopes_asked_for(torch.from_numpy(logits), loss, targets).numpy()
    return np.where(present, slopes, 0.0) if head.mask_logits else slopes


def _tag_slopes(logits: Floats, tags: NDArray[np.int64]) -> Floats:
    """Slopes of ``token_loss``; each record has a tagged token."""
    tagged = tags != IGNORED
    right = tags[..., None] == np.arange(logits.shape[2])
    shares = tagged / tagged.sum(axis=1, keepdims=True)
    slopes: Floats = np.where(tagged[..., None], softmax(logits, 2) - right, 0.0) * shares[..., None]
    return slopes


def _span_slopes(logits: Floats, ends: NDArray[np.int64]) -> Floats:
    """Slopes of ``span_loss``."""
    right = np.arange(logits.shape[1])[:, None] == np.maximum(ends, 0)[:, None, :]  # (B, n, 2)
    slopes: Floats = (softmax(logits, 1) - right) / 2
    return slopes


_KNOWN: dict[PerUnitLoss, Callable[[Floats, NDArray[np.int64]], Floats]] = {
    token_loss: _tag_slopes,
    span_loss: _span_slopes,
}

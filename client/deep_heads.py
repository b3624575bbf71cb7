"""Clipped sums for heads of several layers: the gradient of each unit by itself, as the definition has it.

Units are never computed together. Ways that do (hooks and products of what passes a layer, ghost norms, ``vmap``) are
faster for some heads, but their rounding depends on the company that a unit is in, or cancels, and weights chosen by a
server can blow that up until one record moves the sum by far more than C: docs/decisions/0007-heads.md.

Before a head is used the first time, made-up records show whether it keeps units apart; no private record decides it.
"""

from __future__ import annotations

import copy
import itertools
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.modules.batchnorm import _BatchNorm, _NormBase

from client.clipping import ClippedSum, clip_factors, unreduced
from common.errors import PrivacyError
from common.tasks import PerUnitLoss
from common.token_heads import Notes
from common.upper import UpperHead, made_up

MADE_UP_UNITS = 3
TOLERANCES = {torch.float64: 1e-6, torch.float32: 1e-3}  # by which logits alone and in company may differ by rounding


def deep_clipped_sum(
    head: nn.Module,
    loss: PerUnitLoss,
    features: Tensor,
    targets: Tensor,
    clipping_norm: float,
    sizes: NDArray[np.int64] | None = None,
) -> ClippedSum:
    """Clipped sum for any head; see ``mechanism.clipped_sum``.

    A unit is one row, or as many as ``sizes`` says, one after the other: its loss is then the mean of theirs. Upper
    stages compute in float32, everything else in float64; norms and sums are float64 in each case.
    """
    with _evaluating(head):
        check_units_apart(head, features.shape[1:])
        copied = _Copied(head, torch.float32 if isinstance(head, UpperHead) else torch.float64)
        sums = {name: torch.zeros(shape, dtype=torch.float64) for name, shape in copied.trained.items()}
        ends = np.cumsum(np.ones(len(features), dtype=np.int64) if sizes is None else sizes).tolist()
        spoiled = sum(
            _add_one(sums, copied, loss, features[start:end], targets[start:end], clipping_norm)
            for start, end in itertools.pairwise([0, *ends])
        )
    return ClippedSum(sums, clipping_norm, spoiled)


class _Copied:
    """A head's values in one type, cut off from its parameters, which stay as they are.

    A unit is copied to memory of its own, and so are the buffers: how a product rounds may depend on where its inputs
    lie, which in a batch depends on the units before, and what one unit leaves in a buffer the next would see.
    """

    def __init__(self, head: nn.Module, dtype: torch.dtype) -> None:
        self.head, self.dtype = head, dtype
        self.trained = {name: value.shape for name, value in head.named_parameters() if value.requires_grad}
        self.values, self.buffers = (
            {name: value.detach().to(dtype) if value.is_floating_point() else value for name, value in named}
            for named in (head.named_parameters(), head.named_buffers())
        )

    def logits(self, features: Tensor, trained: Mapping[str, Tensor] | None = None) -> Tensor:
        features = features.detach().to(self.dtype if features.is_floating_point() else features.dtype, copy=True)
        buffers = {name: value.clone() for name, value in self.buffers.items()}
        logits: Tensor = functional_call(self.head, {**self.values, **buffers, **(trained or {})}, (features,))
        return logits


@torch.enable_grad()
def _add_one(
    sums: dict[str, Tensor], copied: _Copied, loss: PerUnitLoss, features: Tensor, targets: Tensor, norm: float
) -> int:
    """Add the clipped gradient of one unit; 1 if it was not finite and counted zero."""
    gradients = _one(copied, lambda logits: unreduced(loss(logits, targets), len(targets)).mean(), features)
    squares = [torch.linalg.vector_norm(value, dtype=torch.float64) for value in gradients.values()]
    factors, finite = clip_factors(torch.stack(squares).norm()[None], norm)
    if not bool(finite):
        return 1
    for name, value in gradients.items():
        sums[name].add_(value, alpha=float(factors))
    return 0


def _one(copied: _Copied, losses: Any, features: Tensor) -> dict[str, Tensor]:
    """The gradient of one unit by plain autograd; parameters that the head does not use are left out."""
    trained = {name: copied.values[name].detach().requires_grad_() for name in copied.trained}
    total = losses(copied.logits(features, trained)).sum()
    found = torch.autograd.grad(total, list(trained.values()), allow_unused=True)
    return {name: value for name, value in zip(trained, found, strict=True) if value is not None}


def check_units_apart(head: nn.Module, shape: torch.Size) -> None:
    """Refuse a head that mixes units; found out once for all its copies, with made-up records.

    Args:
        head: in eval mode.
        shape: of one unit's features.

    Raises:
        PrivacyError: the head mixes units, so that no clipping bounds what a unit does.
    """
    notes = getattr(head, "notes", None)
    key = ("apart", tuple(shape), tuple(name for name, value in head.named_parameters() if value.requires_grad))
    if isinstance(notes, Notes) and key in notes.entries:
        return
    _refuse_statistics(head)
    try:
        _check_in(torch.float64, head, shape)
    except RuntimeError:  # some networks are written for float32 alone
        _check_in(torch.float32, head, shape)
    if isinstance(notes, Notes):
        notes.entries[key] = True


@torch.no_grad()
def _check_in(dtype: torch.dtype, head: nn.Module, shape: torch.Size) -> None:
    """Look at logits of made-up records of one type, alone and in company."""
    generator = torch.Generator().manual_seed(0)
    twin = copy.deepcopy(head).to(dtype)
    for value in twin.parameters():
        if value.requires_grad:  # a classifier of zeros would hide everything below it
            value.data += 0.1 * torch.randn(value.shape, generator=generator)
    copied = _Copied(twin, dtype)
    features = _made_up_features(head, shape, generator)
    _refuse_mixing(copied, features, copied.logits(features))


def _made_up_features(head: nn.Module, shape: torch.Size, generator: torch.Generator) -> Tensor:
    layout = getattr(head, "layout", None)
    if layout is not None:
        return made_up(layout, MADE_UP_UNITS, generator)
    return torch.randn((MADE_UP_UNITS, *shape), generator=generator)


def _refuse_statistics(head: nn.Module) -> None:
    """Refuse layers that normalise with a batch's statistics, or are trained beside them; in Opacus's words."""
    found = set()
    for module in head.modules():
        if isinstance(module, _BatchNorm) and module.running_mean is None:
            found.add(f"{type(module).__name__} without running statistics")
        if not isinstance(module, _NormBase) or not any(value.requires_grad for value in module.parameters()):
            continue
        from opacus.validators import ModuleValidator  # two seconds of imports, which few heads need

        if validator := ModuleValidator.VALIDATORS.get(type(module)):
            found |= {str(error).strip() for error in validator(module)}
    if found:
        raise PrivacyError(
            f"every layer of a head must give each unit a gradient of its own, got: {'; '.join(sorted(found))}"
        )


def _refuse_mixing(copied: _Copied, features: Tensor, logits: Tensor) -> None:
    """Refuse a head that gives a made-up unit other logits in company than alone."""
    if len(logits) != len(features):
        raise PrivacyError(f"a head must give one row of logits a unit, got {len(logits)} for {len(features)} units")
    tolerance = TOLERANCES[copied.dtype]
    for unit in range(len(features)):
        alone = copied.logits(features[unit : unit + 1])[0]
        if not torch.allclose(alone, logits[unit], rtol=tolerance, atol=tolerance, equal_nan=True):
            raise PrivacyError(
                "every layer of a head must treat each unit on its own, got logits that depend on the other units of "
                "the batch; replace the layer that mixes them, or cut above it"
            )


@contextmanager
def _evaluating(head: nn.Module) -> Iterator[None]:
    """Eval mode for a while: dropout is off, and no layer remembers a record."""
    modes = {module: module.training for module in head.modules()}
    for module in modes:
        module.training = False
    try:
        yield
    finally:
        for module, training in modes.items():
            module.training = training

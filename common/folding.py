"""Folding: a convolution takes over the scale and shift of the BatchNorm behind it, so that one pass less is needed.

Which BatchNorm follows which convolution is guessed from the order in which a module holds its parts, and the guess is
tried out: where the outputs differ by more than rounding, nothing is folded.
"""

from __future__ import annotations

import copy
import itertools
from collections import Counter
from typing import Any, cast

import torch
from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_weights

from common.backbones.backbone import Activations
from common.grafting import Trunk, twin

EXACT_ENOUGH = 1e-4  # of a record's norm; float32 rounding through a deep network stays well below


def fold_norms(trunk: Trunk, examples: Activations | None) -> Trunk:
    """A copy with the BatchNorms folded, where that changes the outputs by rounding only.

    Args:
        trunk: stays as it is.
        examples: preprocessed records to try it out on; None folds nothing.

    Returns:
        The copy; a mere copy where nothing can be folded.
    """
    if examples is None:
        return copy.deepcopy(trunk)
    folded = fold(copy.deepcopy(trunk))
    return folded if largest_deviation(trunk, folded, examples) <= EXACT_ENOUGH else copy.deepcopy(trunk)


def fold(trunk: Trunk) -> Trunk:
    """A copy with each BatchNorm folded that stands behind a convolution, right or not; it shares the other tensors."""
    folded = twin(trunk)
    _fold(folded)
    return folded


@torch.inference_mode()
def largest_deviation(trunk: nn.Module, other: nn.Module, examples: Activations) -> float:
    """Largest distance between two outputs for one record, over the norm of the first; NaN where one is not finite."""
    exact, found = trunk(examples).double(), other(examples).double()
    return deviation(exact, found)


def deviation(exact: torch.Tensor, found: torch.Tensor) -> float:
    """Largest distance between the rows of (N, D) and (N, D), over the first's norm (or the mean norm, if larger)."""
    norms = exact.norm(dim=1)
    return float(((found - exact).norm(dim=1) / torch.maximum(norms, norms.mean())).max())


@torch.no_grad()
def _fold(module: nn.Module) -> None:
    """Fold in place."""
    uses = Counter(id(child) for part in module.modules() for child in part.children())
    for part in list(module.modules()):
        for (_, conv), (norm_name, norm) in itertools.pairwise(list(part.named_children())):
            if uses[id(conv)] == uses[id(norm)] == 1 and _fits(conv, norm):
                _take_over(cast(Any, conv), cast(Any, norm))
                setattr(part, norm_name, nn.Identity())


def _take_over(conv: Any, norm: Any) -> None:
    statistics = (norm.running_mean, norm.running_var, norm.eps, norm.weight, norm.bias)
    conv.weight, conv.bias = fuse_conv_bn_weights(conv.weight, conv.bias, *statistics)


def _fits(conv: nn.Module, norm: nn.Module) -> bool:
    pairs = {nn.Conv1d: nn.BatchNorm1d, nn.Conv2d: nn.BatchNorm2d, nn.Conv3d: nn.BatchNorm3d}
    if pairs.get(cast(Any, type(conv))) is not type(norm) or norm.running_mean is None:
        return False
    return bool(conv.out_channels == norm.num_features)

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
from torch.nn.utils.fusion import fuse_conv_bn_eval

from common.backbones.backbone import Activations
from common.grafting import Trunk

EXACT_ENOUGH = 1e-4  # of a record's norm; float32 rounding through a deep network stays well below


def fold_norms(trunk: Trunk, examples: Activations | None) -> Trunk:
    """A copy with the BatchNorms folded, where that changes the outputs by rounding only.

    Args:
        trunk: stays as it is.
        examples: preprocessed records to try it out on; None folds nothing.

    Returns:
        The copy; a mere copy where nothing can be folded.
    """
    folded = copy.deepcopy(trunk)
    if examples is None or not _fold(folded):
        return copy.deepcopy(trunk)
    return folded if largest_deviation(trunk, folded, examples) <= EXACT_ENOUGH else copy.deepcopy(trunk)


@torch.inference_mode()
def largest_deviation(trunk: nn.Module, other: nn.Module, examples: Activations) -> float:
    """Largest distance between two outputs for one record, over the norm of the first; NaN where one is not finite."""
    exact, found = trunk(examples).double(), other(examples).double()
    return deviation(exact, found)


def deviation(exact: torch.Tensor, found: torch.Tensor) -> float:
    """Largest distance between the rows of (N, D) and (N, D), over the first's norm (or the mean norm, if larger)."""
    norms = exact.norm(dim=1)
    return float(((found - exact).norm(dim=1) / torch.maximum(norms, norms.mean())).max())


def _fold(module: nn.Module) -> int:
    """Fold in place; returns how many were folded."""
    uses = Counter(id(child) for part in module.modules() for child in part.children())
    done = 0
    for part in list(module.modules()):
        for (conv_name, conv), (norm_name, norm) in itertools.pairwise(list(part.named_children())):
            if uses[id(conv)] == uses[id(norm)] == 1 and _fits(conv, norm):
                folded: nn.Module = fuse_conv_bn_eval(cast(Any, conv), cast(Any, norm))
                setattr(part, conv_name, folded)
                setattr(part, norm_name, nn.Identity())
                done += 1
    return done


def _fits(conv: nn.Module, norm: nn.Module) -> bool:
    pairs = {nn.Conv1d: nn.BatchNorm1d, nn.Conv2d: nn.BatchNorm2d, nn.Conv3d: nn.BatchNorm3d}
    if pairs.get(cast(Any, type(conv))) is not type(norm) or norm.running_mean is None:
        return False
    return bool(conv.out_channels == norm.num_features)

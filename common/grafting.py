"""Grafting: cut a backbone into a frozen trunk, and put a new head on it."""

from __future__ import annotations

import copy
import difflib
import itertools
import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TypeVar

import torch
from torch import Tensor, nn

from common.backbones.backbone import Activations, Backbone, Preprocessing
from common.errors import ConfigError

M = TypeVar("M", bound=nn.Module)
Layout = tuple[tuple[int, ...], ...]
"""Shapes of what passes the cut, without the batch; one for each tensor."""


class Trunk(nn.Module):
    """The stages of a backbone up to and including the cut point, frozen for good.

    It stays in evaluation mode whatever its surroundings do: a BatchNorm in training mode would update its running
    statistics from private records and leak them without noise.
    """

    def __init__(self, backbone: Backbone, cut: str | None = None) -> None:
        """Take the stages up to ``cut``; all of them when it is None.

        Raises:
            ConfigError: the backbone has no such stage.
        """
        super().__init__()
        self.cut = cut_point(backbone, cut)
        names = list(backbone.stages)
        below = names[: names.index(self.cut) + 1]
        self.stages = nn.ModuleList([backbone.stages[name] for name in below])
        self.requires_grad_(False)
        super().train(False)

    def train(self, mode: bool = True) -> Trunk:
        """Stay in evaluation mode; ``mode`` is ignored on purpose."""
        return self

    def forward(self, inputs: Activations) -> Tensor:
        """Map preprocessed inputs (N, …) to features (N, D); what passes the cut as several tensors is concatenated."""
        return flatten(self.activations(inputs))

    def activations(self, inputs: Activations) -> Activations:
        """What passes the cut, as it passes."""
        for stage in self.stages:
            inputs = stage(inputs)
        return inputs


def cut_point(backbone: Backbone, cut: str | None) -> str:
    """Name of the last frozen stage.

    Raises:
        ConfigError: the backbone has no stage ``cut``.
    """
    names = list(backbone.stages)
    if cut is None:
        return names[-1]
    if cut not in names:
        near = difflib.get_close_matches(cut, names, n=1)
        hint = f"did you mean {near[0]!r}?" if near else "choose one of them"
        raise ConfigError(f"model.cut must be a stage of {backbone.name} ({', '.join(names)}), got {cut!r}; {hint}")
    return cut


@torch.inference_mode()
def layout(trunk: Trunk, preprocessing: Preprocessing) -> Layout:
    """Shapes of what passes the cut, found with a made-up record; the same for all records."""
    activations = trunk.activations(preprocessing(preprocessing.blank()))
    parts = (activations,) if isinstance(activations, Tensor) else activations
    return tuple(tuple(part.shape[1:]) for part in parts)


def unflatten(features: Tensor, layout: Layout) -> Activations:
    """Undo ``flatten``: (N, D) to the tensors that passed the cut, each of the features' type."""
    sizes = [math.prod(shape) for shape in layout]
    parts = torch.split(features, sizes, dim=1)
    shaped = tuple(part.reshape(len(part), *shape) for part, shape in zip(parts, layout, strict=True))
    return shaped[0] if len(shaped) == 1 else shaped


def flatten(activations: Activations) -> Tensor:
    """Lay one tensor or several, each (N, …), side by side as (N, D)."""
    parts = (activations,) if isinstance(activations, Tensor) else activations
    return torch.cat([part.flatten(start_dim=1) for part in parts], dim=1)


@contextmanager
def threads(count: int) -> Iterator[None]:
    """Run a block on ``count`` threads: small heads train fastest on one, a forward pass on all."""
    before = torch.get_num_threads()
    if before == count:  # starting a pool of threads anew costs more than a small head's step
        yield
        return
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def twin(module: M) -> M:
    """A copy that shares the tensors: a user's module may note things while it runs."""
    shared = itertools.chain(module.parameters(), module.buffers())
    return copy.deepcopy(module, {id(value): value for value in shared})


def has_hooks(module: nn.Module) -> bool:
    """Whether something is called whenever a part of the module is called."""
    return any(part._forward_hooks or part._forward_pre_hooks for part in module.modules())

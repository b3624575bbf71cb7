"""Stages made ready to be trained record by record: nothing in them mixes records, remembers or draws anything."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm


class FixedNorm(nn.Module):
    """A BatchNorm whose statistics are constants: an affine map of each channel, the same for every record."""

    mean: Tensor
    deviation: Tensor

    def __init__(self, norm: _BatchNorm) -> None:
        """Take over the running statistics, the scale and the shift; frozen until somebody says otherwise."""
        super().__init__()
        assert norm.running_mean is not None
        assert norm.running_var is not None
        self.register_buffer("mean", norm.running_mean)
        self.register_buffer("deviation", (norm.running_var + norm.eps).sqrt())
        ones, zeros = torch.ones_like(norm.running_mean), torch.zeros_like(norm.running_mean)
        self.weight = nn.Parameter(ones if norm.weight is None else norm.weight.detach(), requires_grad=False)
        self.bias = nn.Parameter(zeros if norm.bias is None else norm.bias.detach(), requires_grad=False)

    def normalised(self, values: Tensor) -> Tensor:
        """(N, C, …) with each channel's mean taken away and divided by its deviation."""
        return (values - self._channels(self.mean, values)) / self._channels(self.deviation, values)

    def forward(self, values: Tensor) -> Tensor:
        """(N, C, …) -> (N, C, …)."""
        scale = self.weight / self.deviation
        shift = self.bias - self.mean * scale
        return values * self._channels(scale, values) + self._channels(shift, values)

    def _channels(self, constants: Tensor, values: Tensor) -> Tensor:
        return constants.reshape(-1, *(1,) * (values.dim() - 2))


def rewritten(stages: Mapping[str, nn.Module]) -> nn.ModuleDict:
    """Copies of stages with every parameter frozen, in eval mode, BatchNorm replaced by ``FixedNorm``.

    Parameters and buffers are shared with the originals, which stay as they are. Dots in names become underscores.
    """
    twins = copy_sharing(nn.ModuleList(stages.values()), {})
    assert isinstance(twins, nn.ModuleList)
    result = nn.ModuleDict({name.replace(".", "_"): twin for name, twin in zip(stages, twins, strict=True)})
    for module in result.modules():
        if getattr(module, "inplace", False) is True:
            vars(module)["inplace"] = False  # what a layer was given is needed again for its gradient
    norms = [
        module for module in result.modules() if isinstance(module, _BatchNorm) and module.running_mean is not None
    ]
    replace_modules(result, {norm: FixedNorm(norm) for norm in norms})
    return result.eval().requires_grad_(False)


def replace_modules(root: nn.Module, replacements: Mapping[nn.Module, nn.Module]) -> None:
    """Put each value of ``replacements`` wherever its key is a child below ``root``."""
    for parent in list(root.modules()):
        for name, child in list(parent.named_children()):
            if child in replacements and replacements[child] is not parent:
                setattr(parent, name, replacements[child])


def copy_sharing(module: nn.Module, memo: dict[int, Any]) -> nn.Module:
    """A deep copy with parameters of its own that share their values with the original's; buffers are shared.

    Args:
        module: what to copy.
        memo: id -> what stands in for that object in the copy.
    """
    for value in module.parameters():
        memo.setdefault(id(value), nn.Parameter(value.detach(), requires_grad=value.requires_grad))
    memo.update({id(value): value for value in (*module.buffers(), *_configurations(module.modules()))})
    return copy.deepcopy(module, memo)


def _configurations(modules: Iterable[nn.Module]) -> list[Any]:
    """The settings that transformers' modules carry with them, which nothing changes."""
    found = (vars(module).get("config") for module in modules)
    return [config for config in found if config is not None]

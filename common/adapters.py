"""Low-rank adapters (LoRA, Hu et al. 2022, arXiv:2106.09685): small trained layers beside frozen ones.

They are plain layers without a bias, so that clipping treats them like any other layer. peft is not used: together with
Opacus it corrupts gradients without a word.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from common.rewriting import replace_modules

RANK = 8


class Adapted(nn.Module):
    """A frozen layer plus a trained detour through few dimensions, which at first adds nothing."""

    def __init__(self, base: nn.Module, down: nn.Module, up: nn.Module) -> None:
        super().__init__()
        self.base, self.down, self.up = base, down, up

    def forward(self, values: Tensor) -> Tensor:
        """What ``base`` gives, plus the detour."""
        result: Tensor = self.base(values) + self.up(self.down(values))
        return result

    def __getattr__(self, name: str) -> Any:
        """Whatever else is asked for is the frozen layer's, for code that looks at its weight or its sizes."""
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(super().__getattr__("base"), name)


def adapt(root: nn.Module, generator: torch.Generator) -> dict[nn.Module, Adapted]:
    """Put an adapter beside every linear layer and every ungrouped 2-D convolution below ``root``.

    Args:
        root: every parameter of it is frozen.
        generator: the first half of each detour is drawn from it, in the order of the layers; the second half is zero.

    Returns:
        Each layer with its adapted form.
    """
    adapted = {}
    for layer in root.modules():
        detour = _detour(layer)
        if detour is not None:
            nn.init.kaiming_uniform_(detour[0].weight, a=math.sqrt(5), generator=generator)
            nn.init.zeros_(detour[1].weight)
            adapted[layer] = Adapted(layer, *detour)
    replace_modules(root, adapted)
    return adapted


def withdraw(root: nn.Module, unused: dict[nn.Module, Adapted]) -> None:
    """Take adapters out again, where a surrounding module uses the layer's weight without calling the layer."""
    replace_modules(root, {adapter: layer for layer, adapter in unused.items()})


def _detour(layer: nn.Module) -> tuple[Any, Any] | None:
    """Down to ``RANK`` and up again, on no memory drawn from the global generator; None for other layers."""
    if isinstance(layer, nn.Conv2d) and layer.groups == 1:
        rank = min(RANK, layer.in_channels, layer.out_channels)
        shape = {"stride": layer.stride, "padding": layer.padding, "dilation": layer.dilation}
        down = nn.Conv2d(
            layer.in_channels,
            rank,
            layer.kernel_size,  # type: ignore[arg-type]  # torch types it as any tuple
            **shape,  # type: ignore[arg-type]  # as above
            bias=False,
            padding_mode=layer.padding_mode,
            device="meta",
        )
        up = nn.Conv2d(rank, layer.out_channels, 1, bias=False, device="meta")
        return down.to_empty(device="cpu"), up.to_empty(device="cpu")
    sizes = _sizes(layer)
    if sizes is None:
        return None
    rank = min(RANK, *sizes)
    down_linear = nn.Linear(sizes[0], rank, bias=False, device="meta")
    up_linear = nn.Linear(rank, sizes[1], bias=False, device="meta")
    return down_linear.to_empty(device="cpu"), up_linear.to_empty(device="cpu")


def _sizes(layer: Any) -> tuple[int, int] | None:
    """Inputs and outputs of a linear layer; transformers' Conv1D is one, with its weight turned."""
    if isinstance(layer, nn.Linear):
        return layer.in_features, layer.out_features
    if type(layer).__name__ == "Conv1D" and layer.weight.dim() == 2:
        return layer.weight.shape[0], layer.weight.shape[1]
    return None

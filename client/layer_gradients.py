"""Per-unit gradients of single layers: their norms and weighted sums, from what passed through, in float64.

A linear or convolutional layer's gradient for one unit is a sum over positions t of outer products g_t a_t^T. Its norm
needs the products a_s . a_t and g_s . g_t only ("ghost norm", Goodfellow 2015, arXiv:1510.01799; Li et al. 2022,
arXiv:2110.05679), and the weighted sum over units is one matrix product with the factors put into g, so that no
per-unit gradient is stored ("book-keeping", Bu et al. 2023, arXiv:2210.00038). Layers with few parameters take Opacus's
per-sample gradients.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from opacus import GradSampleModule
from torch import Tensor, nn

from common.rewriting import FixedNorm

LARGEST = 2**22  # numbers of per-unit gradients that are held at a time, where a norm needs them

Passed = tuple[Tensor, Tensor]
"""A layer's input and the slope of the summed losses along its output, both with units first."""


@dataclass(frozen=True)
class OuterProducts:
    """Gradients of a weight as sums of outer products.

    Attributes:
        inputs: a, shape (B, G, T, d): unit, group of channels, position, entry; float64.
        slopes: g, shape (B, G, T, p), float64.
        weight: name and shape of the weight, where it is trained.
        bias: name and shape of the bias, where it is trained.
    """

    inputs: Tensor
    slopes: Tensor
    weight: tuple[str, tuple[int, ...]] | None
    bias: tuple[str, tuple[int, ...]] | None

    @property
    def stored(self) -> int:
        """How many numbers it holds for each unit."""
        return (self.inputs.numel() + self.slopes.numel()) // len(self.inputs)

    @property
    def outer(self) -> int:
        """Multiplications for each unit's gradient itself."""
        _, groups, positions, entries = self.inputs.shape
        return 0 if self.weight is None else groups * positions * entries * self.slopes.shape[3]

    @property
    def work(self) -> int:
        """Multiplications for each unit's norm and its part of the weighted sum."""
        _, groups, positions, entries = self.inputs.shape
        return self.outer + min(self.outer, groups * positions**2 * (entries + self.slopes.shape[3]))

    def squares(self) -> Tensor:
        """Squared norm of each unit's gradient, shape (B,)."""
        total = torch.zeros(len(self.inputs), dtype=torch.float64, device=self.inputs.device)
        if self.weight is not None:
            total = total + _outer_squares(self.inputs, self.slopes)
        if self.bias is not None:
            total = total + self.slopes.sum(dim=2).square().sum(dim=(1, 2))
        return total

    def weighted(self, factors: Tensor, finite: Tensor) -> dict[str, Tensor]:
        """Sum over units of factor times gradient, by parameter name; units that are not finite are left out."""
        inputs, slopes = self.inputs, torch.where(finite[:, None, None, None], self.slopes, 0.0)
        if not bool(finite.all()):
            inputs = torch.where(finite[:, None, None, None], inputs, 0.0)
        slopes = slopes * factors[:, None, None, None]
        sums = {}
        if self.weight is not None:
            name, shape = self.weight
            sums[name] = torch.matmul(_by_group(slopes).mT, _by_group(inputs)).reshape(shape)  # (G, p, d)
        if self.bias is not None:
            name, shape = self.bias
            sums[name] = slopes.sum(dim=(0, 2)).reshape(shape)
        return sums


@dataclass(frozen=True)
class Gradients:
    """Per-unit gradients as they are: parameter name -> (B, *parameter), float64."""

    values: dict[str, Tensor]

    @property
    def stored(self) -> int:
        """How many numbers it holds for each unit."""
        return sum(value[0].numel() for value in self.values.values())

    @property
    def outer(self) -> int:
        """Multiplications for each unit's gradient itself, next to nothing."""
        return self.stored

    @property
    def work(self) -> int:
        """Multiplications for each unit's norm and its part of the weighted sum, next to nothing."""
        return self.stored

    def squares(self) -> Tensor:
        """Squared norm of each unit's gradient, shape (B,)."""
        return torch.stack([value.flatten(1).square().sum(dim=1) for value in self.values.values()]).sum(dim=0)

    def weighted(self, factors: Tensor, finite: Tensor) -> dict[str, Tensor]:
        """Sum over units of factor times gradient, by parameter name; units that are not finite are left out."""
        return {name: weighted_sum(value, factors, finite) for name, value in self.values.items()}


LayerGradients = OuterProducts | Gradients


def layer_gradients(name: str, layer: nn.Module, passed: Sequence[Passed]) -> LayerGradients:
    """Gradients of a layer that was called once or several times.

    Args:
        name: of the layer in the head.
        layer: of a type in ``LAYERS``.
        passed: of each call.
    """
    doubles = [(given.double(), slope.double()) for given, slope in passed]
    if isinstance(layer, _OUTER) and not layer.weight.requires_grad:
        total = torch.stack([_bias(layer, slope) for _, slope in doubles]).sum(dim=0)
        return Gradients({f"{name}.bias" if name else "bias": total})
    if isinstance(layer, _OUTER):
        matrices = [LAYERS[type(layer)](layer, *pair) for pair in doubles]
        inputs, slopes = (torch.cat(parts, dim=2) for parts in zip(*matrices, strict=True))
        return OuterProducts(inputs, slopes, _trained(name, layer, "weight"), _trained(name, layer, "bias"))
    names = {id(value): f"{name}.{key}" if name else key for key, value in layer.named_parameters(recurse=False)}
    totals: dict[str, Tensor] = {}
    for given, slope in doubles:
        for parameter, value in _sampler(layer)(layer, [given], slope).items():
            key = names[id(parameter)]
            totals[key] = totals[key] + value if key in totals else value
    return Gradients(totals)


def _bias(layer: nn.Module, slope: Tensor) -> Tensor:
    """Per-unit gradient of a bias: (B, ..., p) or, of a convolution, (B, p, ...) -> (B, p)."""
    if isinstance(layer, nn.Linear):
        return slope.reshape(len(slope), -1, slope.shape[-1]).sum(dim=1)
    return slope.flatten(2).sum(dim=2)


def _sampler(layer: nn.Module) -> Any:
    return _fixed_norm if isinstance(layer, FixedNorm) else GradSampleModule.GRAD_SAMPLERS[type(layer)]


def _fixed_norm(layer: FixedNorm, given: list[Tensor], slope: Tensor) -> dict[nn.Parameter, Tensor]:
    products = {layer.weight: layer.normalised(given[0]) * slope, layer.bias: slope}
    return {key: value.flatten(2).sum(dim=2) for key, value in products.items() if key.requires_grad}


def weighted_sum(gradients: Tensor, factors: Tensor, finite: Tensor) -> Tensor:
    """Sum over units of factor times gradient, (B, ...) -> (...); units that are not finite are left out."""
    rows = torch.where(finite[:, None], gradients.flatten(1), 0.0)
    return (factors @ rows.double()).reshape(gradients.shape[1:])


def _outer_squares(inputs: Tensor, slopes: Tensor) -> Tensor:
    """Squared norms of sum_t g_t a_t^T, shape (B,), in the way that takes fewer multiplications."""
    positions, entries, outputs = inputs.shape[2], inputs.shape[3], slopes.shape[3]
    if positions == 1:
        return (inputs.square().sum(dim=3) * slopes.square().sum(dim=3)).sum(dim=(1, 2))
    if positions * (entries + outputs) <= entries * outputs:
        products = torch.matmul(inputs, inputs.mT) * torch.matmul(slopes, slopes.mT)  # (B, G, T, T)
        return products.sum(dim=(1, 2, 3)).clamp_min(0.0)
    squares = torch.zeros(len(inputs), dtype=torch.float64, device=inputs.device)
    at_once = max(1, LARGEST // (inputs.shape[1] * entries * outputs))
    for start in range(0, len(inputs), at_once):
        part = slice(start, start + at_once)
        squares[part] = torch.matmul(slopes[part].mT, inputs[part]).square().sum(dim=(1, 2, 3))
    return squares


def _by_group(values: Tensor) -> Tensor:
    """(B, G, T, n) -> (G, B T, n)."""
    return values.transpose(0, 1).flatten(1, 2)


def _trained(name: str, layer: nn.Module, key: str) -> tuple[str, tuple[int, ...]] | None:
    value = getattr(layer, key)
    if value is None or not value.requires_grad:
        return None
    return f"{name}.{key}" if name else key, tuple(value.shape)


def _linear(layer: Any, given: Tensor, slope: Tensor) -> Passed:
    """(B, ..., d) and (B, ..., p) -> one group, the dimensions between as positions."""
    units = len(given)
    return given.reshape(units, 1, -1, given.shape[-1]), slope.reshape(units, 1, -1, slope.shape[-1])


def _convolution(layer: Any, given: Tensor, slope: Tensor) -> Passed:
    """Every output position with the patch of the input that it saw, (B, G, T, d); one or two dimensions of space."""
    units, groups = len(given), layer.groups
    if layer.padding_mode != "zeros":
        given = nn.functional.pad(given, layer._reversed_padding_repeated_twice, mode=layer.padding_mode)
        padding: tuple[int, ...] = (0,) * len(layer.kernel_size)
    elif isinstance(layer.padding, str):
        given = nn.functional.pad(given, layer._reversed_padding_repeated_twice)
        padding = (0,) * len(layer.kernel_size)
    else:
        padding = layer.padding
    settings = (layer.kernel_size, layer.dilation, padding, layer.stride)
    if given.dim() == 3:  # one dimension of space: a line of height 1
        given = given.unsqueeze(2)
        settings = ((1, *settings[0]), (1, *settings[1]), (0, *settings[2]), (1, *settings[3]))
    if all(part == whole for part, whole in zip(settings, ((1, 1), (1, 1), (0, 0), (1, 1)), strict=True)):
        patches = given.flatten(2)
    else:
        patches = nn.functional.unfold(given, *settings)  # (B, C kh kw, T)
    entries = patches.shape[1] // groups
    outputs = slope.shape[1] // groups
    return patches.reshape(units, groups, entries, -1).mT, slope.reshape(units, groups, outputs, -1).mT


_OUTER = (nn.Linear, nn.Conv1d, nn.Conv2d)
LAYERS: dict[type[nn.Module], Callable[[Any, Tensor, Tensor], Passed]] = {
    nn.Linear: _linear,
    nn.Conv1d: _convolution,
    nn.Conv2d: _convolution,
}
_SMALL = (nn.LayerNorm, nn.GroupNorm, nn.RMSNorm, FixedNorm)


def has_rule(layer: nn.Module) -> bool:
    """Whether ``layer_gradients`` knows layers of this very type; another may compute something else."""
    if type(layer) is nn.LayerNorm and layer.bias is None:
        return False  # Opacus's rule takes a bias for granted
    return type(layer) in LAYERS or type(layer) in _SMALL

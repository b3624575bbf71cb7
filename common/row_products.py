"""A 3 x 3 convolution with half of its products: sums of rows are convolved, four rows of the output come of six.

It pays where products are what a convolution waits for: in float32 on processors without AVX-512, for layers that are
wide enough for the sums to cost little beside them.

Source: Winograd 1980; Lavin and Gray 2016, arXiv:1509.09308, whose F(4, 3) stands here along one axis, in which float32
loses hardly anything.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from common.batch_invariance import ALIKE

ROWS, TAPS, SUMS = 4, 3, 6
FEWEST_CHANNELS = 64
MOST_PRODUCTS = 0.6  # of the plain convolution's
FILTER = (
    (1 / 4, 0.0, 0.0),
    (-1 / 6, -1 / 6, -1 / 6),
    (-1 / 6, 1 / 6, -1 / 6),
    (1 / 24, 1 / 12, 1 / 6),
    (1 / 24, -1 / 12, 1 / 6),
    (0.0, 0.0, 1.0),
)
_ALONG = ([0, 1], [1, 1], [1, 1], 1)  # padding, stride, dilation and groups of what is convolved along the rows


def is_worth_it(weight: Tensor, how: Sequence[Any], height: int) -> bool:
    """Whether this convolution is such a one, and this processor.

    Args:
        weight: (D, C, h, w).
        how: padding, stride, dilation and groups.
        height: of the map.
    """
    return is_wide_and_plain(weight, how) and SUMS * -(-height // ROWS) <= MOST_PRODUCTS * TAPS * height


def is_wide_and_plain(weight: Tensor, how: Sequence[Any]) -> bool:
    """Whether this is a 3 x 3 convolution on which sums cost little beside products, on such a processor.

    Args:
        weight: (D, C, h, w).
        how: padding, stride, dilation and groups.
    """
    plain = weight.shape[2:] == (TAPS, TAPS) and list(how) == [[1, 1], [1, 1], [1, 1], 1]
    wide = min(weight.shape[:2]) >= FEWEST_CHANNELS and weight.dtype == torch.float32
    alike = all(channels % ALIKE == 0 for channels in weight.shape[:2])  # at any place of a batch
    return plain and wide and alike and torch.backends.cpu.get_cpu_capability() == "AVX2"


class RowProducts(nn.Module):
    """Such a convolution, with an addition and an activation where they follow."""

    def __init__(self, weight: Tensor, bias: Tensor | None, batch: int, size: Sequence[int]) -> None:
        """Lay the weights out.

        Args:
            weight: (D, C, 3, 3).
            bias: (D,).
            batch: of maps.
            size: (H, W) of the maps.
        """
        super().__init__()
        self.size, self._outputs = tuple(size), weight.shape[0]
        filters = torch.einsum("st,dctw->sdcw", torch.tensor(FILTER, dtype=torch.float64), weight.double())
        filters = filters.to(weight.dtype).unsqueeze(3)  # (6, D, C, 1, 3)
        maps = [batch, weight.shape[1], -(-size[0] // ROWS), size[1]]
        for number, each in enumerate(filters):
            packed = torch.ops.mkldnn._reorder_convolution_weight(each.contiguous(), *_ALONG, maps)
            self.register_buffer(f"_packed{number}", packed)
        self.register_buffer("_bias", bias)

    def forward(self, inputs: Tensor, other: Tensor | None, activation: str, scalars: list[float]) -> Tensor:
        """Apply the activation to the convolution of (N, C, H, W), plus ``other``; all of them channels last."""
        found = self._rows([self._along(number, each) for number, each in enumerate(_sums(_by_place(inputs)))])
        if other is not None:
            found += _by_place(other)
        activate(found, activation, scalars)
        return found.permute(0, 3, 1, 2)

    def _along(self, number: int, rows: Tensor) -> Tensor:
        """Convolve (N, H / 4, W, C) along the rows; the bias comes to all four rows by way of the second sum."""
        weights = getattr(self, f"_packed{number}"), self._bias if number == 1 else None
        maps = torch.ops.mkldnn._convolution_pointwise(rows.permute(0, 3, 1, 2), *weights, *_ALONG, "none", [], "")
        return _by_place(maps)

    def _rows(self, products: Sequence[Tensor]) -> Tensor:
        """Add six products (N, H / 4, W, D) up to the rows (N, H, W, D) of the output; the products are overwritten."""
        first, second, third, fourth, fifth, last = products
        plus, minus = second + third, second.sub_(third)
        twice, double = fourth + fifth, fourth.sub_(fifth)
        rows = (
            first.add_(plus).add_(twice),
            torch.add(minus, double, alpha=2),
            plus.add_(twice, alpha=4),
            minus.add_(double, alpha=8).add_(last),
        )
        height, width = self.size
        found = first.new_empty(len(first), height, width, self._outputs)
        for number, row in enumerate(rows):
            place = found[:, number::ROWS]
            place.copy_(row[:, : place.shape[1]])
        return found


def activate(values: Tensor, activation: str, scalars: list[float]) -> None:
    """Apply an activation in place, by the name and the numbers that oneDNN's kernels know it by."""
    if activation == "relu":
        values.relu_()
    elif activation == "hardtanh":
        functional.hardtanh_(values, *scalars)


def _by_place(maps: Tensor) -> Tensor:
    # (N, C, H, W), channels last -> (N, H, W, C)
    return maps.permute(0, 2, 3, 1)


def _sums(maps: Tensor) -> tuple[Tensor, ...]:
    """Six sums of the rows of (N, H, W, C), each (N, H / 4, W, C), with a row of zeros above and enough below."""
    count, height, width, channels = maps.shape
    groups = -(-height // ROWS)
    padded = maps.new_zeros(count, ROWS * groups + 2, width, channels)
    padded[:, 1 : height + 1] = maps
    zero, one, two, three, four, five = (padded[:, row : row + ROWS * groups - 3 : ROWS] for row in range(SUMS))
    even, odd = torch.sub(four, two, alpha=4), torch.sub(three, one, alpha=4)
    near, far = four - two, three - one
    return (
        torch.sub(near, two, alpha=4).add_(zero, alpha=4),
        even + odd,
        even - odd,
        torch.add(near, far, alpha=2),
        torch.sub(near, far, alpha=2),
        torch.sub(five, three, alpha=5).add_(one, alpha=4),
    )

"""A 3 x 3 convolution of a map of 2 x 2 or 4 x 4 places by sums of its places, with a quarter of the products.

A kernel meets 16 pairs of places in a map of 2 x 2, and 100 in one of 4 x 4; here 9 and 36 matrix products take their
place. It pays where products are what a convolution waits for: in wide layers, in float32, without AVX-512.

Sources: for maps of 2 the product of Karatsuba and Ofman 1962, in which no sum has a factor; for maps of 4 Winograd's
F(4, 3), see ``common.row_products``, along both axes and without the sums' share of the padding.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from common.row_products import FILTER, activate, is_wide_and_plain

_CHANNELS = 16  # whose taps are combined at a time

_Matrix = tuple[tuple[float, ...], ...]


class _Axis(NamedTuple):
    """How an axis of so many places is convolved with three taps, by fewer products.

    Attributes:
        sums: of the places, one for each product, (P, L).
        taps: what the product is made with, (P, 3).
        places: of the output, sums of products, (L, P).
        everywhere: number of a product that every place of the output counts once, which brings the bias there.
    """

    sums: _Matrix
    taps: _Matrix
    places: _Matrix
    everywhere: int


_AXES = {
    2: _Axis(
        sums=((1, 1), (0, 1), (1, 0)),
        taps=((0, 1, 0), (0, -1, 1), (1, -1, 0)),
        places=((1, 1, 0), (1, 0, 1)),
        everywhere=0,
    ),
    4: _Axis(
        sums=((0, -5, 0, 1), (-4, -4, 1, 1), (4, -4, -1, 1), (-2, -1, 2, 1), (2, -1, -2, 1), (4, 0, -5, 0)),
        taps=FILTER,
        places=((1, 1, 1, 1, 1, 0), (0, 1, -1, 2, -2, 0), (0, 1, 1, 4, 4, 0), (0, 1, -1, 8, -8, 1)),
        everywhere=1,
    ),
}


def is_worth_it(weight: Tensor, how: Sequence[Any], size: Sequence[int]) -> bool:
    """Whether this convolution is such a one, and this processor.

    Args:
        weight: (D, C, h, w).
        how: padding, stride, dilation and groups.
        size: (H, W) of the map.
    """
    return is_wide_and_plain(weight, how) and all(length in _AXES for length in size)


class PlaceProducts(nn.Module):
    """Such a convolution, with an addition and an activation where they follow.

    Attributes:
        size: (H, W) of the maps that it takes.
    """

    _sums: Tensor
    _filters: Tensor
    _places: Tensor
    _bias: Tensor | None

    def __init__(self, weight: Tensor, bias: Tensor | None, size: Sequence[int]) -> None:
        """Lay the weights out.

        Args:
            weight: (D, C, 3, 3).
            bias: (D,).
            size: (H, W) of the maps.
        """
        super().__init__()
        self.size = tuple(size)
        down, across = (_AXES[length] for length in size)
        self._everywhere = down.everywhere * len(across.sums) + across.everywhere
        self.register_buffer("_filters", _filters(weight, _both(down.taps, across.taps)))
        self.register_buffer("_sums", _both(down.sums, across.sums).to(weight))
        self.register_buffer("_places", _both(down.places, across.places).to(weight))
        self.register_buffer("_bias", bias)

    def forward(self, inputs: Tensor, other: Tensor | None, activation: str, scalars: list[float]) -> Tensor:
        """Apply the activation to the convolution of (N, C, H, W), plus ``other``; all of them channels last."""
        sums = torch.matmul(self._sums, _by_place(inputs))  # (N, P, C)
        products = torch.bmm(sums.transpose(0, 1), self._filters)  # (P, N, D)
        if self._bias is not None:
            products[self._everywhere] += self._bias
        found = torch.matmul(self._places, products.transpose(0, 1))  # (N, H W, D)
        if other is not None:
            found += _by_place(other)
        activate(found, activation, scalars)
        return found.view(len(found), *self.size, -1).permute(0, 3, 1, 2)


def _filters(weight: Tensor, taps: Tensor) -> Tensor:
    """Combine the taps of (D, C, 3, 3) by (P, 9) in float64, (P, C, D); channel by channel, as a cache holds them."""
    outputs, channels = weight.shape[:2]
    found = weight.new_empty(len(taps), channels, outputs)
    parts = (torch.split(values, _CHANNELS, dim=1) for values in (weight, found))
    for before, after in zip(*parts, strict=True):
        by_tap = before.permute(2, 3, 1, 0).double().reshape(9, -1)
        after.copy_(torch.matmul(taps, by_tap).view(len(taps), -1, outputs))
    return found


def _both(down: _Matrix, across: _Matrix) -> Tensor:
    """What is done along both axes to what lies place after place."""
    return torch.kron(torch.tensor(down, dtype=torch.float64), torch.tensor(across, dtype=torch.float64))


def _by_place(maps: Tensor) -> Tensor:
    # (N, C, H, W), channels last -> (N, H W, C)
    return maps.permute(0, 2, 3, 1).flatten(1, 2)

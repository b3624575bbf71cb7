"""A convolution of a map with at most half as many places as its kernel has taps, as one matrix product.

Most of what the kernel would multiply there is padding: of nine taps, four meet a place of a 2 x 2 map. What is left is
a matrix from all places of the input to all places of the output.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from common.batch_invariance import ALIKE

MOST_PLACES = 4
Pair = Sequence[int]


def is_worth_it(weight: Tensor, groups: int, size: Pair) -> bool:
    """Whether a kernel (D, C, h, w) has twice the taps that a map of this size (H, W) has places, and few of these.

    In float32 only: in bfloat16 it has not been run on a processor that has it.

    The matrix has as many numbers as the kernel for each place of the input and of the output; both must stay small.

    >>> is_worth_it(torch.empty(8, 8, 3, 3), 1, (2, 2)), is_worth_it(torch.empty(8, 8, 3, 3), 1, (3, 3))
    (True, False)
    """
    places = size[0] * size[1]
    alike = all(channels % ALIKE == 0 for channels in weight.shape[:2])  # at any place of a batch
    plain = groups == 1 and weight.dtype == torch.float32 and alike
    return plain and places <= MOST_PLACES and 2 * places <= weight[0, 0].numel()


def as_matrix(
    weight: Tensor, size: Pair, padding: Pair, stride: Pair, dilation: Pair
) -> tuple[Tensor, tuple[int, int]]:
    """The matrix that does to maps, laid out channels last, what a convolution does to them.

    Args:
        weight: (D, C, h, w), of a convolution without groups.
        size: (H, W) of the input.
        padding: with zeros, down and across; so are the others.
        stride: of the convolution.
        dilation: of the convolution.

    Returns:
        (H' W' D, H W C), and (H', W') of the output.
    """
    taps = weight.shape[2:]
    reach = [size[i] + 2 * padding[i] - dilation[i] * (taps[i] - 1) - 1 for i in (0, 1)]
    height, width = (reach[i] // stride[i] + 1 for i in (0, 1))
    matrix = weight.new_zeros(height, width, weight.shape[0], *size, weight.shape[1])
    for to_y, to_x, tap_y, tap_x in itertools.product(range(height), range(width), *map(range, taps)):
        y, x = (to * stride[i] - padding[i] + tap * dilation[i] for i, to, tap in ((0, to_y, tap_y), (1, to_x, tap_x)))
        if 0 <= y < size[0] and 0 <= x < size[1]:
            matrix[to_y, to_x, :, y, x] = weight[:, :, tap_y, tap_x]
    return matrix.reshape(height * width * weight.shape[0], -1), (height, width)


class MapProduct(nn.Module):
    """The product in the place of a convolution, with an addition and an activation where they follow.

    Attributes:
        size: (H, W) of the maps that it takes.
    """

    def __init__(self, weight: Tensor, bias: Tensor | None, how: Sequence[Pair], size: Pair, batch: int) -> None:
        """Lay the weights out.

        Args:
            weight: of the convolution, (D, C, h, w).
            bias: of the convolution, (D,).
            how: padding, stride and dilation.
            size: (H, W) of the input.
            batch: of maps.
        """
        super().__init__()
        matrix, self._output = as_matrix(weight, size, *how)
        self.size, self._channels = tuple(size), weight.shape[0]
        places = self._output[0] * self._output[1]
        self.register_buffer("_bias", None if bias is None else bias.repeat(places))
        self.register_buffer("_packed", torch.ops.mkldnn._reorder_linear_weight(matrix, batch))

    def forward(self, inputs: Tensor, other: Tensor | None, activation: str, scalars: list[float]) -> Tensor:
        """Apply the activation to the convolution of (N, C, H, W), plus ``other``; all of them channels last.

        Behind an addition there is no other activation than "relu".
        """
        rows, run = _rows(inputs), torch.ops.mkldnn._linear_pointwise
        if other is None:
            return self._maps(run(rows, self._packed, self._bias, activation, scalars, ""))
        found = run.binary(rows, _rows(other), self._packed, self._bias, "add")
        return self._maps(found.relu_() if activation == "relu" else found)

    def _maps(self, rows: Tensor) -> Tensor:
        # (N, H' W' D) -> (N, D, H', W'), channels last
        return rows.view(len(rows), *self._output, self._channels).permute(0, 3, 1, 2)


def _rows(maps: Tensor) -> Tensor:
    # (N, C, H, W), channels last -> (N, H W C)
    return maps.permute(0, 2, 3, 1).reshape(len(maps), -1)

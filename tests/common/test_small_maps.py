"""Convolutions of small maps: the product of a matrix gives what PyTorch's convolution gives."""

from __future__ import annotations

import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional

from common.fusing import convolutions, fuse_convolutions, has_kernels
from common.small_maps import MapProduct, as_matrix, is_worth_it
from tests.common.test_fusing import BATCH, prepared, trunk_of

pair = st.tuples(st.integers(1, 3), st.integers(1, 3))


@given(
    st.tuples(st.integers(1, 4), st.integers(1, 4)),
    pair,
    st.tuples(st.integers(0, 2), st.integers(0, 2)),
    pair,
    pair,
    st.integers(0, 2**31),
)
def test_the_matrix_does_what_the_convolution_does(size, taps, padding, stride, dilation, seed):
    assume(all(size[i] + 2 * padding[i] >= dilation[i] * (taps[i] - 1) + 1 for i in (0, 1)))
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(5, 3, *taps, generator=generator, dtype=torch.float64)
    maps = torch.randn(4, 3, *size, generator=generator, dtype=torch.float64)
    matrix, output = as_matrix(weight, size, padding, stride, dilation)
    found = maps.permute(0, 2, 3, 1).reshape(4, -1) @ matrix.T
    exact = functional.conv2d(maps, weight, None, stride, padding, dilation)
    assert exact.shape[2:] == output
    torch.testing.assert_close(found.view(4, *output, 5).permute(0, 3, 1, 2), exact)


@pytest.mark.parametrize(
    ("size", "worth_it"), [((1, 1), True), ((2, 2), True), ((1, 4), True), ((2, 3), False), ((4, 4), False)]
)
def test_only_maps_with_few_places_are_worth_it(size, worth_it):
    assert is_worth_it(torch.empty(8, 8, 3, 3), 1, size) is worth_it
    assert not is_worth_it(torch.empty(8, 4, 3, 3), 2, size)
    assert not is_worth_it(torch.empty(8, 8, 3, 3, dtype=torch.bfloat16), 1, size)
    assert not is_worth_it(torch.empty(8, 8, 7, 7), 1, (4, 4))  # whose matrix would be five times the kernel


class Small(nn.Module):
    """A convolution that leaves a 2 x 2 map, and a block upon it."""

    def __init__(self) -> None:
        super().__init__()
        self.down = nn.Conv2d(8, 8, 5, 12, 2)
        self.conv1, self.conv2 = nn.Conv2d(8, 8, 3, 1, 1), nn.Conv2d(8, 8, 3, 1, 1)

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        small = self.down(inputs)
        return functional.relu6(small + self.conv2(torch.relu(self.conv1(small))))


@pytest.mark.skipif(not has_kernels(), reason="this torch has no oneDNN")
def test_a_network_with_small_maps_gives_what_it_gave():
    trunk = trunk_of(Small())
    fused = fuse_convolutions(trunk, prepared(), BATCH)
    assert fused is not None
    products = [part for part in fused.modules() if isinstance(part, MapProduct)]
    assert len(products) == 2
    assert len(convolutions(fused)) == 3
    for count in (1, BATCH, BATCH + 3):
        inputs = prepared(count, seed=count)
        torch.testing.assert_close(fused(inputs), trunk(inputs), rtol=1e-5, atol=1e-5)


@pytest.mark.skipif(not has_kernels(), reason="this torch has no oneDNN")
def test_maps_of_another_size_are_still_convolved():
    trunk = trunk_of(Small())
    fused = fuse_convolutions(trunk, prepared(), BATCH)
    assert fused is not None
    larger = torch.randn(2, 8, 48, 48, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(fused(larger), trunk(larger), rtol=1e-5, atol=1e-5)

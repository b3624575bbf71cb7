"""Convolutions by sums of rows: what PyTorch's convolution gives, with half of the products."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional

from common.fusing import convolutions, fuse_convolutions, has_kernels
from common.row_products import RowProducts, is_worth_it
from tests.common.test_fusing import BATCH, CHANNELS, prepared, trunk_of

pytestmark = pytest.mark.skipif(not has_kernels(), reason="this torch has no oneDNN")
PLAIN = [[1, 1], [1, 1], [1, 1], 1]


def maps(*shape: int, seed: int = 0) -> torch.Tensor:
    drawn = torch.randn(*shape, generator=torch.Generator().manual_seed(seed))
    return drawn.contiguous(memory_format=torch.channels_last)


@given(st.integers(1, 13), st.integers(1, 13), st.integers(1, 5), st.booleans(), st.booleans(), st.integers(0, 99))
def test_they_give_what_the_convolution_gives(height, width, count, with_bias, with_other, seed):
    weight, bias = maps(24, 16, 3, 3, seed=seed), torch.randn(24) if with_bias else None
    inputs, other = (
        maps(count, 16, height, width, seed=seed + 1),
        maps(count, 24, height, width) if with_other else None,
    )
    module = RowProducts(weight, bias, 4, (height, width))
    with torch.inference_mode():
        found = module(inputs, other, "relu", [])
    exact = functional.conv2d(inputs.double(), weight.double(), None if bias is None else bias.double(), padding=1)
    exact = functional.relu(exact if other is None else exact + other.double())
    torch.testing.assert_close(found.double(), exact, rtol=1e-4, atol=1e-4)
    assert found.is_contiguous(memory_format=torch.channels_last)


def test_rounding_is_hardly_more_than_the_plain_convolutions():
    weight, inputs = maps(128, 128, 3, 3) / 34, maps(4, 128, 14, 14, seed=1).relu()
    exact = functional.conv2d(inputs.double(), weight.double(), padding=1)
    with torch.inference_mode():
        found = RowProducts(weight, None, 4, (14, 14))(inputs, None, "none", [])
    plain = functional.conv2d(inputs, weight, padding=1)
    assert (found - exact).norm() < 5 * (plain - exact).norm()
    assert (found - exact).norm() < 2e-6 * exact.norm()


def test_a_record_is_the_same_in_any_company():
    module = RowProducts(maps(32, 32, 3, 3), None, 8, (8, 8))
    inputs = maps(8, 32, 8, 8)
    with torch.inference_mode():
        alone = module(torch.cat([inputs[:1], inputs[:1].expand(7, -1, -1, -1)]), None, "none", [])
        among = module(inputs, None, "none", [])
    assert torch.equal(alone[0], among[0])


@pytest.mark.parametrize("height", [5, 6, 9])
def test_maps_that_leave_rows_over_are_not_worth_it(height, monkeypatch):
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "AVX2")
    assert not is_worth_it(torch.empty(128, 128, 3, 3), PLAIN, height)
    assert is_worth_it(torch.empty(128, 128, 3, 3), PLAIN, 8)


def test_only_wide_plain_convolutions_in_float32_without_avx512_are_worth_it(monkeypatch):
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "AVX2")
    assert is_worth_it(torch.empty(128, 128, 3, 3), PLAIN, 28)
    assert is_worth_it(torch.empty(64, 64, 3, 3), PLAIN, 28)
    assert not is_worth_it(torch.empty(128, 48, 3, 3), PLAIN, 28)
    assert not is_worth_it(torch.empty(32, 128, 3, 3), PLAIN, 28)  # a DenseNet's
    assert not is_worth_it(torch.empty(128, 128, 3, 3, dtype=torch.bfloat16), PLAIN, 28)
    assert not is_worth_it(torch.empty(128, 128, 1, 1), [[0, 0], [1, 1], [1, 1], 1], 28)
    assert not is_worth_it(torch.empty(128, 128, 3, 3), [[1, 1], [2, 2], [1, 1], 1], 28)
    assert not is_worth_it(torch.empty(128, 128, 3, 3), [[1, 1], [1, 1], [1, 1], 2], 28)
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "AVX512")
    assert not is_worth_it(torch.empty(128, 128, 3, 3), PLAIN, 28)


class Wide(nn.Module):
    """A block of such convolutions, between narrow ends."""

    def __init__(self) -> None:
        super().__init__()
        self.widen, self.narrow = nn.Conv2d(CHANNELS, 128, 1), nn.Conv2d(128, CHANNELS, 1)
        self.conv1, self.conv2 = nn.Conv2d(128, 128, 3, 1, 1), nn.Conv2d(128, 128, 3, 1, 1)

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        wide = self.widen(inputs)
        wide = torch.relu(wide + self.conv2(functional.relu6(self.conv1(wide))))
        found: torch.Tensor = self.narrow(wide)
        return found


def fused_as(kind: type[nn.Module], network: nn.Module) -> int:
    """How many layers of a network are of this kind when it is fused; its outputs are what they were."""
    trunk = trunk_of(network)
    fused = fuse_convolutions(trunk, prepared(), BATCH)
    assert fused is not None
    for part in convolutions(fused):
        part.settle(torch.float32)
    for count in (1, BATCH, BATCH + 3):
        inputs = prepared(count, seed=count)
        torch.testing.assert_close(fused(inputs), trunk(inputs), rtol=1e-4, atol=1e-4)
    return sum(isinstance(part, kind) for part in fused.modules())


def test_a_network_with_wide_maps_gives_what_it_gave(monkeypatch):
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "AVX2")
    assert fused_as(RowProducts, Wide()) == 2

"""Convolutions of small maps by sums of places: what PyTorch's convolution gives, with a quarter of the products."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn import functional

from common.fusing import has_kernels
from common.place_products import PlaceProducts, is_worth_it
from tests.common.test_row_products import PLAIN, Wide, fused_as, maps

pytestmark = pytest.mark.skipif(not has_kernels(), reason="this torch has no oneDNN")
LENGTHS = st.sampled_from([2, 4])
ACTIVATIONS = {"none": lambda values: values, "relu": functional.relu, "hardtanh": lambda values: values.clamp(0, 6)}


@given(LENGTHS, LENGTHS, st.integers(1, 5), st.booleans(), st.booleans(), st.sampled_from([*ACTIVATIONS]))
def test_they_give_what_the_convolution_gives(height, width, count, with_bias, with_other, activation):
    weight, bias = maps(24, 16, 3, 3), torch.randn(24) if with_bias else None
    inputs, other = maps(count, 16, height, width, seed=1), maps(count, 24, height, width) if with_other else None
    module = PlaceProducts(weight, bias, (height, width))
    with torch.inference_mode():
        found = module(inputs, other, activation, [0.0, 6.0])
    exact = functional.conv2d(inputs.double(), weight.double(), None if bias is None else bias.double(), padding=1)
    exact = ACTIVATIONS[activation](exact if other is None else exact + other.double())
    torch.testing.assert_close(found.double(), exact, rtol=1e-4, atol=1e-4)
    assert found.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize(("length", "most"), [(2, 1.0), (4, 12.0)])
def test_rounding_is_little_more_than_the_plain_convolutions(length, most):
    weight, inputs = maps(256, 256, 3, 3) / 48, maps(4, 256, length, length, seed=1).relu()
    exact = functional.conv2d(inputs.double(), weight.double(), padding=1)
    with torch.inference_mode():
        found = PlaceProducts(weight, None, (length, length))(inputs, None, "none", [])
    plain = functional.conv2d(inputs, weight, padding=1)
    assert (found - exact).norm() < max(most * (plain - exact).norm(), 5e-7 * exact.norm())
    assert (found - exact).norm() < 4e-6 * exact.norm()


@pytest.mark.skipif(torch.backends.cpu.get_cpu_capability() != "AVX2", reason="they are used on no other processor")
@pytest.mark.parametrize("length", [2, 4])
@pytest.mark.parametrize("count", [8, 16, 64])
def test_a_record_is_the_same_in_any_company_and_at_any_place(length, count):
    module, inputs = PlaceProducts(maps(128, 128, 3, 3), None, (length, length)), maps(count, 128, length, length)
    order = torch.randperm(count, generator=torch.Generator().manual_seed(2))
    with torch.inference_mode():
        among = module(inputs, None, "none", [])
        elsewhere = module(inputs[order].contiguous(memory_format=torch.channels_last), None, "none", [])
        alone = module(inputs[:1].expand(count, -1, -1, -1).contiguous(memory_format=torch.channels_last), None, "", [])
    assert torch.equal(elsewhere, among[order])
    assert torch.equal(alone, among[:1].expand_as(alone))


def test_only_small_maps_of_wide_plain_convolutions_are_worth_it(monkeypatch):
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "AVX2")
    assert all(is_worth_it(torch.empty(128, 128, 3, 3), PLAIN, size) for size in ((2, 2), (4, 4), (2, 4)))
    assert not any(is_worth_it(torch.empty(128, 128, 3, 3), PLAIN, size) for size in ((1, 1), (3, 4), (4, 8)))
    assert is_worth_it(torch.empty(64, 64, 3, 3), PLAIN, (4, 4))
    assert not is_worth_it(torch.empty(128, 48, 3, 3), PLAIN, (4, 4))
    assert not is_worth_it(torch.empty(128, 128, 3, 3, dtype=torch.bfloat16), PLAIN, (4, 4))
    assert not is_worth_it(torch.empty(128, 128, 3, 3), [[1, 1], [2, 2], [1, 1], 1], (4, 4))
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "AVX512")
    assert not is_worth_it(torch.empty(128, 128, 3, 3), PLAIN, (4, 4))


class Pooled(Wide):
    """The same block on maps of 4 x 4 places."""

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        return super().forward(functional.avg_pool2d(inputs, 6))


def test_a_network_with_small_maps_gives_what_it_gave(monkeypatch):
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "AVX2")
    assert fused_as(PlaceProducts, Pooled()) == 2

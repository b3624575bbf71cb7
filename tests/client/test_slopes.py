"""Slopes along logits: those of autograd, and of each unit by itself."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from client.slopes import slopes_along
from common.errors import PrivacyError
from common.tasks import PerUnitLoss, classification_loss, multilabel_loss


def softer_loss(logits: Tensor, targets: Tensor) -> Tensor:
    """One that nothing is known of."""
    return multilabel_loss(logits / 3, targets) ** 2


LOSSES: dict[str, PerUnitLoss] = {"classes": classification_loss, "labels": multilabel_loss, "other": softer_loss}
units, widths, seeds = st.integers(0, 40), st.integers(1, 20), st.integers(0, 2**32)
scales = st.sampled_from([1e-3, 1.0, 30.0, 1e4])


def draw(loss: str, count: int, width: int, scale: float, seed: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    logits = scale * torch.randn(count, width, generator=generator, dtype=torch.float64)
    if loss == "classes":
        return logits, torch.randint(0, width, (count,), generator=generator)
    return logits, torch.randint(0, 2, (count, width), generator=generator).float()


@given(st.sampled_from(sorted(LOSSES)), units, widths, scales, seeds)
def test_slopes_are_those_of_autograd(loss: str, count: int, width: int, scale: float, seed: int) -> None:
    logits, targets = draw(loss, count, width, scale, seed)
    asked = logits.clone().requires_grad_(True)
    LOSSES[loss](asked, targets).sum().backward()
    assert asked.grad is not None
    assert torch.allclose(slopes_along(logits, LOSSES[loss], targets), asked.grad, rtol=1e-12, atol=1e-15)


@given(st.sampled_from(sorted(LOSSES)), units, widths, scales, seeds)
def test_a_units_slopes_have_the_same_bits_in_any_company(
    loss: str, count: int, width: int, scale: float, seed: int
) -> None:
    logits, targets = draw(loss, count, width, scale, seed)
    together = slopes_along(logits.clone(), LOSSES[loss], targets)
    for unit in range(count):
        alone = slopes_along(logits[unit : unit + 1].clone(), LOSSES[loss], targets[unit : unit + 1])
        assert torch.equal(alone[0], together[unit])


@given(st.sampled_from([0.0, -0.0, 1e3, -1e3, 1e308, float("inf"), float("-inf")]), st.sampled_from([0.0, 1.0]))
def test_labels_far_out_have_the_slope_of_their_limit(logit: float, label: float) -> None:
    found = slopes_along(torch.tensor([[logit]]).double(), multilabel_loss, torch.tensor([[label]]))
    assert float(found) == {-1: 0.0, 0: 0.5, 1: 1.0}[(logit > 0) - (logit < 0)] - label


def test_a_label_that_is_not_a_number_stays_none() -> None:
    found = slopes_along(torch.tensor([[torch.nan, 1.0]]).double(), multilabel_loss, torch.ones(1, 2))
    assert torch.isnan(found[0, 0])


def test_a_reduced_loss_is_refused() -> None:
    logits, targets = draw("labels", 3, 2, 1.0, 0)
    with pytest.raises(PrivacyError, match="unreduced"):
        slopes_along(logits, lambda some, aims: softer_loss(some, aims).mean(), targets)

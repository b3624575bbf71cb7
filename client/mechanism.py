"""The Gaussian mechanism on a head's gradient: clip each unit's, sum them, add noise, divide by a public constant."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from opacus import GradSampleModule
from opacus.validators import ModuleValidator
from torch import Tensor, nn

from common.errors import PrivacyError
from common.privacy.noise import Randomness
from common.privacy.plan import PrivacyPlan
from common.tasks import PerUnitLoss, classification_loss

UNITS_AT_ONCE = 8  # per-sample gradients held at a time: few enough to stay in the processor's cache


@dataclass(frozen=True)
class ClippedSum:
    """Sum over a batch of clipped per-unit gradients; sensitive until noise is added.

    Attributes:
        values: trainable parameter name -> sum, in the parameter's shape, float64.
        clipping_norm: C that each unit's gradient was clipped to.
        non_finite: how many units had a gradient that was not finite, and so counted zero (sensitive: stays local).
    """

    values: Mapping[str, Tensor]
    clipping_norm: float
    non_finite: int


def clipped_sum(
    head: nn.Module, loss: PerUnitLoss, features: Tensor, targets: Tensor, clipping_norm: float
) -> ClippedSum:
    """Sum the gradients of all units, each scaled down to an L2 norm of at most ``clipping_norm``.

    A linear head with one feature vector a unit takes a closed form that stores no per-sample gradient; every other
    head goes through Opacus's per-sample gradients. Both compute in float64 and leave ``head`` untouched.

    Args:
        head: maps (B, ...) features to (B, K) logits; frozen parameters are skipped.
        loss: unreduced, a unit's loss depending on its own logits and target only.
        features: shape (B, D) for a linear head, one row a unit; B may be 0.
        targets: shape (B,).
        clipping_norm: C, > 0.

    Returns:
        The sum over trainable parameters. A unit whose gradient is not finite contributes zero and is counted.

    Guarantees:
        Adding or removing one unit changes the sum, over all parameters together, by at most C in L2 up to rounding.

    Raises:
        PrivacyError: a layer mixes units (BatchNorm, say) or has no per-sample gradients, the loss is reduced, or
            ``clipping_norm`` is not positive.
    """
    if not 0 < clipping_norm < float("inf"):
        raise PrivacyError(f"the clipping norm must be positive and finite, got {clipping_norm!r}; choose such a one")
    if type(head) is nn.Linear and features.dim() == 2:
        return _linear_clipped_sum(head, loss, features, targets, clipping_norm)
    return _per_sample_clipped_sum(head, loss, features, targets, clipping_norm)


def noisy_gradient(clipped: ClippedSum, plan: PrivacyPlan, randomness: Randomness) -> dict[str, Tensor]:
    """Add the plan's noise and divide by its expected batch, whatever the batch was: empty ones are noised too.

    Args:
        clipped: the sum over the batch that Poisson sampling drew.
        plan: gives C, sigma and the divisor, all public constants.
        randomness: noise is drawn from it, once for all parameters, laid end to end in the order of names.

    Returns:
        Parameter name -> (sum + C sigma N(0, 1)) / expected batch, float64; safe to release.

    Raises:
        PrivacyError: the sum was clipped to another norm than the plan's.
    """
    if clipped.clipping_norm != plan.terms.clipping_norm:
        raise PrivacyError(
            f"gradients must be clipped to the plan's norm {plan.terms.clipping_norm:g}, got "
            f"{clipped.clipping_norm:g}; pass the plan's own clipping norm"
        )
    deviation = plan.terms.clipping_norm * plan.terms.noise_multiplier
    names = sorted(clipped.values)
    total = torch.cat([clipped.values[name].flatten() for name in names])
    noisy = (total + deviation * torch.from_numpy(randomness.normal(tuple(total.shape)))) / plan.expected_batch
    parts = torch.split(noisy, [clipped.values[name].numel() for name in names])
    return {name: part.view_as(clipped.values[name]) for name, part in zip(names, parts, strict=True)}


def _linear_clipped_sum(
    head: nn.Linear, loss: PerUnitLoss, features: Tensor, targets: Tensor, clipping_norm: float
) -> ClippedSum:
    """Clip outer products without forming them: |g a^T|, with the bias, is |g| sqrt(|a|^2 + 1).

    Source: Goodfellow 2015, arXiv:1510.01799.
    """
    inputs = features.detach().double()
    slopes = _logit_gradients(head, loss, inputs, targets)
    trained = {name for name, value in head.named_parameters() if value.requires_grad}
    squares = torch.zeros(len(inputs), dtype=torch.float64)
    if "weight" in trained:
        squares = squares + inputs.square().sum(dim=1)
    if "bias" in trained:
        squares = squares + 1.0
    factors, finite = _clip_factors(slopes.norm(dim=1) * squares.sqrt(), clipping_norm)
    slopes = torch.where(finite[:, None], slopes, 0.0) * factors[:, None]  # (B, K)
    spoiled = int((~finite).sum())
    if spoiled:
        inputs = torch.where(finite[:, None], inputs, 0.0)
    sums = {"weight": lambda: slopes.T @ inputs, "bias": lambda: slopes.sum(dim=0)}
    return ClippedSum({name: sums[name]() for name in sorted(trained)}, clipping_norm, spoiled)


def _logit_gradients(head: nn.Linear, loss: PerUnitLoss, inputs: Tensor, targets: Tensor) -> Tensor:
    """Slope of each unit's loss along its logits, shape (B, K), float64."""
    with torch.no_grad():
        bias = None if head.bias is None else head.bias.double()
        logits = nn.functional.linear(inputs, head.weight.double(), bias)
        if loss is classification_loss:  # its slope is known: no graph has to be built
            slopes = logits.softmax(dim=1)
            slopes[torch.arange(len(targets)), targets] -= 1.0
            return slopes
    with torch.enable_grad():
        logits.requires_grad_(True)
        losses = _unreduced(loss(logits, targets), len(inputs))
        return torch.autograd.grad(losses.sum(), logits)[0]


def _per_sample_clipped_sum(
    head: nn.Module, loss: PerUnitLoss, features: Tensor, targets: Tensor, clipping_norm: float
) -> ClippedSum:
    """Clip per-sample gradients of a float64 copy, so that no hook stays on the caller's module."""
    double = copy.deepcopy(head).double()
    _prepare_for_opacus(double)
    if len(features) == 0:
        zeros = {name: torch.zeros_like(value) for name, value in double.named_parameters() if value.requires_grad}
        return ClippedSum({name: value.detach() for name, value in zeros.items()}, clipping_norm, 0)
    module = GradSampleModule(double, loss_reduction="sum", strict=True)
    parts = zip(torch.split(features, UNITS_AT_ONCE), torch.split(targets, UNITS_AT_ONCE), strict=True)
    clipped = [_clipped_part(module, double, loss, *part, clipping_norm) for part in parts]
    sums = {name: torch.stack([part.values[name] for part in clipped]).sum(dim=0) for name in clipped[0].values}
    return ClippedSum(sums, clipping_norm, sum(part.non_finite for part in clipped))


def _clipped_part(
    module: GradSampleModule, double: nn.Module, loss: PerUnitLoss, features: Tensor, targets: Tensor, norm: float
) -> ClippedSum:
    """The clipped sum of a few units, so that per-sample gradients take little memory."""
    gradients = _per_sample_gradients(module, double, loss, features, targets)
    norms = torch.stack([value.flatten(1).norm(dim=1) for value in gradients.values()]).norm(dim=0)
    factors, finite = _clip_factors(norms, norm)
    sums = {name: _weighted_sum(value, factors, finite) for name, value in gradients.items()}
    return ClippedSum(sums, norm, int((~finite).sum()))


def _per_sample_gradients(
    module: GradSampleModule, double: nn.Module, loss: PerUnitLoss, features: Tensor, targets: Tensor
) -> dict[str, Tensor]:
    """Opacus's gradients by parameter name, each shape (B, *parameter)."""
    inputs = features.detach()
    if inputs.is_floating_point():
        inputs = inputs.double().requires_grad_(True)  # the hooks warn where no input needs a gradient
    module.zero_grad(set_to_none=True)  # and the per-sample gradients of the part before
    with torch.enable_grad():
        torch.autograd.backward(_unreduced(loss(module(inputs), targets), len(inputs)).sum())
    return {name: _grad_sample(value, len(inputs)) for name, value in double.named_parameters() if value.requires_grad}


def _grad_sample(parameter: Any, units: int) -> Tensor:
    """What Opacus's hooks left on a parameter; zeros where the head never used it."""
    found = getattr(parameter, "grad_sample", None)
    if found is None:
        return torch.zeros((units, *parameter.shape), dtype=torch.float64)
    return torch.as_tensor(found).detach()


def _prepare_for_opacus(head: nn.Module) -> None:
    """Refuse what Opacus cannot do; put layers with parameters in train mode, without which it sees nothing."""
    modes = {module: module.training for module in head.modules()}
    errors = ModuleValidator.validate(head.train(), strict=False)
    if errors:
        reasons = "; ".join(sorted({str(error).strip() for error in errors}))
        raise PrivacyError(f"every layer of a head must give each unit a gradient of its own, got: {reasons}")
    for module, training in modes.items():
        module.training = training or any(True for _ in module.parameters(recurse=False))


def _unreduced(losses: Tensor, units: int) -> Tensor:
    if losses.shape != (units,):
        raise PrivacyError(
            f"the loss must be unreduced, one value for each of {units} units, got shape {tuple(losses.shape)}; "
            "use reduction='none', or clipping bounds nothing"
        )
    return losses


def _clip_factors(norms: Tensor, clipping_norm: float) -> tuple[Tensor, Tensor]:
    """min(1, C / norm) of each unit, zero where the norm is not finite; and where it is finite."""
    finite = norms.isfinite()
    return torch.where(finite, (clipping_norm / norms).clamp(max=1.0), 0.0), finite


def _weighted_sum(gradients: Tensor, factors: Tensor, finite: Tensor) -> Tensor:
    """Sum over units of factor times gradient, (B, ...) -> (...); units that are not finite are left out."""
    rows = torch.where(finite[:, None], gradients.flatten(1), 0.0)
    return (factors @ rows).reshape(gradients.shape[1:])

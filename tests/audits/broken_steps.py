"""Private steps that are deliberately broken, each in a copy of the shipped ones; see ``tests.audits.mutants``."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from client.clipping import ClippedSum
from client.mechanism import clipped_sum, noisy_gradient
from client.node import Records
from client.training import private_update
from common.heads import head_arrays
from common.messages import TrainTask
from common.privacy.noise import Randomness
from common.privacy.plan import PrivacyPlan
from common.tasks import PerUnitLoss, task_named
from simulations.audits.practice import PrivateSteps

Flags = NDArray[np.bool_]
Sample = Callable[[Randomness, Records, PrivacyPlan], Flags]
Clip = Callable[[nn.Module, PerUnitLoss, Tensor, Tensor, float], ClippedSum]
Release = Callable[[ClippedSum, PrivacyPlan, Randomness, int], dict[str, Tensor]]
Pair = tuple[Randomness, Randomness]


def _bernoulli(sampling: Randomness, records: Records, plan: PrivacyPlan) -> Flags:
    return sampling.bernoulli(len(records), plan.terms.sampling_rate)


def _noised(clipped: ClippedSum, plan: PrivacyPlan, noise: Randomness, drawn: int) -> dict[str, Tensor]:
    return noisy_gradient(clipped, plan, noise)


def private_steps(
    sample: Sample = _bernoulli, clip: Clip = clipped_sum, release: Release = _noised, steps: int | None = None
) -> PrivateSteps:
    """A copy of ``client.training.private_update`` whose parts can be exchanged; without arguments it does the same."""

    def update(
        head: nn.Module, task: TrainTask, records: Records, plan: PrivacyPlan, randomness: Pair
    ) -> dict[str, Tensor]:
        loss = task_named(task.offer.model.task).loss
        parameters = {name: value for name, value in head.named_parameters() if value.requires_grad}
        sampling, noise = randomness
        for _ in range(plan.terms.steps_per_round if steps is None else steps):
            flags = sample(sampling, records, plan)
            features, targets = records.take(flags)
            clipped = clip(head, loss, features, targets, plan.terms.clipping_norm)
            gradient = release(clipped, plan, noise, int(flags.sum()))
            with torch.no_grad():
                for name, value in parameters.items():
                    value.sub_(task.learning_rate * gradient[name])
        return head_arrays(head)

    return update


# noise


def scaled(factor: float) -> Release:
    def release(clipped: ClippedSum, plan: PrivacyPlan, noise: Randomness, drawn: int) -> dict[str, Tensor]:
        less = replace(plan, terms=replace(plan.terms, noise_multiplier=factor * plan.terms.noise_multiplier))
        return noisy_gradient(clipped, less, noise)

    return release


def bias_without_noise(clipped: ClippedSum, plan: PrivacyPlan, noise: Randomness, drawn: int) -> dict[str, Tensor]:
    gradient = noisy_gradient(clipped, plan, noise)
    return {**gradient, "bias": clipped.values["bias"] / plan.expected_batch}


def one_noise_a_round(
    head: nn.Module, task: TrainTask, records: Records, plan: PrivacyPlan, randomness: Pair
) -> dict[str, Tensor]:
    shape = (sum(value.numel() for value in head.parameters() if value.requires_grad),)
    return private_steps()(head, task, records, plan, (randomness[0], _Fixed(randomness[1].normal(shape))))


class _Fixed:
    """Always the same normals."""

    kind: Literal["seeded"] = "seeded"

    def __init__(self, values: NDArray[np.float64]) -> None:
        self._values = values

    def normal(self, shape: tuple[int, ...]) -> NDArray[np.float64]:
        return self._values.reshape(shape)

    def bernoulli(self, n: int, rate: float) -> Flags:
        raise NotImplementedError


def no_noise(clipped: ClippedSum, plan: PrivacyPlan, noise: Randomness, drawn: int) -> dict[str, Tensor]:
    return {name: value / plan.expected_batch for name, value in clipped.values.items()}


# clipping


def _slopes(head: nn.Module, loss: PerUnitLoss, features: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """Slopes (B, K) along the logits and inputs (B, D) of a linear head, float64."""
    assert isinstance(head, nn.Linear)
    inputs = features.double()
    with torch.no_grad():
        logits = inputs @ head.weight.double().T + head.bias.double()
    with torch.enable_grad():
        logits.requires_grad_(True)
        return torch.autograd.grad(loss(logits, targets).sum(), logits)[0], inputs


def _factors(norms: Tensor, clipping_norm: float) -> Tensor:
    return torch.where(norms.isfinite(), (clipping_norm / norms).clamp(max=1.0), 0.0)


def _safe(slopes: Tensor, inputs: Tensor) -> tuple[Tensor, Tensor]:
    finite = slopes.isfinite().all(dim=1) & inputs.isfinite().all(dim=1)
    return torch.where(finite[:, None], slopes, 0.0), torch.where(finite[:, None], inputs, 0.0)


def clip_weights_only(head: nn.Module, loss: PerUnitLoss, features: Tensor, targets: Tensor, norm: float) -> ClippedSum:
    slopes, inputs = _safe(*_slopes(head, loss, features, targets))
    factors = _factors(slopes.norm(dim=1) * inputs.norm(dim=1), norm)
    return ClippedSum({"bias": slopes.sum(dim=0), "weight": (factors[:, None] * slopes).T @ inputs}, norm, 0)


def clip_each_layer(head: nn.Module, loss: PerUnitLoss, features: Tensor, targets: Tensor, norm: float) -> ClippedSum:
    slopes, inputs = _safe(*_slopes(head, loss, features, targets))
    weights = _factors(slopes.norm(dim=1) * inputs.norm(dim=1), norm)
    biases = _factors(slopes.norm(dim=1), norm)
    sums = {"bias": (biases[:, None] * slopes).sum(dim=0), "weight": (weights[:, None] * slopes).T @ inputs}
    return ClippedSum(sums, norm, 0)


def clip_the_mean(head: nn.Module, loss: PerUnitLoss, features: Tensor, targets: Tensor, norm: float) -> ClippedSum:
    """The mean's clipped value; ``mean_released`` adds the noise that one record's share would need."""
    slopes, inputs = _safe(*_slopes(head, loss, features, targets))
    count = max(len(targets), 1)
    mean = {"bias": slopes.sum(dim=0) / count, "weight": slopes.T @ inputs / count}
    factor = _factors(torch.stack([value.norm() for value in mean.values()]).norm(), norm)
    return ClippedSum({name: factor * value for name, value in mean.items()}, norm, 0)


def mean_released(clipped: ClippedSum, plan: PrivacyPlan, noise: Randomness, drawn: int) -> dict[str, Tensor]:
    whole = replace(clipped, values={name: plan.expected_batch * value for name, value in clipped.values.items()})
    return noisy_gradient(whole, plan, noise)


def clip_to_twice(head: nn.Module, loss: PerUnitLoss, features: Tensor, targets: Tensor, norm: float) -> ClippedSum:
    return replace(clipped_sum(head, loss, features, targets, 2 * norm), clipping_norm=norm)


def weighted_loss(head: nn.Module, loss: PerUnitLoss, features: Tensor, targets: Tensor, norm: float) -> ClippedSum:
    """Classes that are rare in the batch count more."""
    counts = torch.bincount(targets, minlength=1).double()
    weights = len(targets) / counts[targets].clamp(min=1)
    return clipped_sum(head, lambda logits, of: loss(logits, of) * weights, features, targets, norm)


def batch_norm(head: nn.Module, loss: PerUnitLoss, features: Tensor, targets: Tensor, norm: float) -> ClippedSum:
    if len(features) > 1:
        features = (features - features.mean(dim=0)) / (features.std(dim=0) + 1e-5)
    return clipped_sum(head, loss, features, targets, norm)


def stops_at_a_nan(head: nn.Module, loss: PerUnitLoss, features: Tensor, targets: Tensor, norm: float) -> ClippedSum:
    clipped = clipped_sum(head, loss, features, targets, norm)
    if clipped.non_finite:
        raise FloatingPointError(f"{clipped.non_finite} gradients are not finite")
    return clipped


# sampling, steps and divisor


def shuffled(sampling: Randomness, records: Records, plan: PrivacyPlan) -> Flags:
    flags = np.zeros(len(records), dtype=bool)
    order = np.argsort(sampling.normal((len(records),)))
    flags[order[: round(plan.terms.sampling_rate * len(records))]] = True
    return flags


def live_rate(sampling: Randomness, records: Records, plan: PrivacyPlan) -> Flags:
    return sampling.bernoulli(len(records), min(1.0, plan.expected_batch / max(len(records), 1)))


def weighted_sampler(sampling: Randomness, records: Records, plan: PrivacyPlan) -> Flags:
    drawn = sampling.bernoulli(len(records), plan.terms.sampling_rate)
    counts = np.bincount(records.targets.numpy(), minlength=1)
    rare: Flags = counts[records.targets.numpy()] < counts.max()
    return drawn | rare


def skips_empty_batches(clipped: ClippedSum, plan: PrivacyPlan, noise: Randomness, drawn: int) -> dict[str, Tensor]:
    return noisy_gradient(clipped, plan, noise) if drawn else dict(clipped.values)


def live_divisor(clipped: ClippedSum, plan: PrivacyPlan, noise: Randomness, drawn: int) -> dict[str, Tensor]:
    gradient = noisy_gradient(clipped, plan, noise)
    return {name: value * plan.expected_batch / max(drawn, 1) for name, value in gradient.items()}


def steps_of_an_epoch(
    head: nn.Module, task: TrainTask, records: Records, plan: PrivacyPlan, randomness: Pair
) -> dict[str, Tensor]:
    steps = max(1, math.ceil(len(records) / plan.expected_batch))
    return private_steps(steps=steps)(head, task, records, plan, randomness)


def one_over_rate_steps(
    head: nn.Module, task: TrainTask, records: Records, plan: PrivacyPlan, randomness: Pair
) -> dict[str, Tensor]:
    return private_steps(steps=int(1 / plan.terms.sampling_rate))(head, task, records, plan, randomness)


def stops_early(
    head: nn.Module, task: TrainTask, records: Records, plan: PrivacyPlan, randomness: Pair
) -> dict[str, Tensor]:
    """Return the head as it came when it fits the records well enough."""
    features, targets = records.everything()
    with torch.no_grad():
        good = len(targets) and float((head(features).argmax(dim=1) == targets).double().mean()) > 0.3
    return head_arrays(head) if good else private_update(head, task, records, plan, randomness)


def with_statistics(
    head: nn.Module, task: TrainTask, records: Records, plan: PrivacyPlan, randomness: Pair
) -> dict[str, Tensor]:
    released = private_update(head, task, records, plan, randomness)
    means = [records.everything()[0].mean(dim=0)] if len(records) else [torch.zeros(records.features.shape[1])]
    return {**released, "norm.running_mean": means[0]}

"""The Gaussian mechanism on a head's gradient: clip each unit's, sum them, add noise, divide by a public constant."""

from __future__ import annotations

import itertools
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from client.clipping import ClippedSum
from client.deep_heads import deep_clipped_sum
from client.linear_sums import linear_clipped_sums
from client.mlp_sums import is_mlp, mlp_clipped_sum
from client.solved_sums import solved_sum
from client.token_sums import token_clipped_sum
from common.errors import PrivacyError
from common.privacy.noise import Randomness, normals_of, unmoved_by_failure
from common.privacy.plan import PrivacyPlan
from common.solved_heads import SolvedHead
from common.tasks import PerUnitLoss
from common.token_heads import TokenLinear

__all__ = ["Batch", "ClippedSum", "Noising", "clipped_sum", "clipped_sums", "noisy_gradient", "noisy_gradients"]

Layout = tuple[tuple[str, torch.Size], ...]


@dataclass(frozen=True)
class Batch:
    """The units of one clipped sum.

    Attributes:
        head: maps (B, ...) features to (B, ...) logits; frozen parameters are skipped, dropout is off.
        loss: unreduced, a unit's loss depending on its own logits and target only.
        features: shape (B, D) for a linear head, one row a unit; B may be 0.
        targets: shape (B, ...), as ``loss`` takes them.
        clipping_norm: C, > 0.
    """

    head: nn.Module
    loss: PerUnitLoss
    features: Tensor
    targets: Tensor
    clipping_norm: float

    def shares_head(self, other: Batch) -> bool:
        """Whether both are of the very same linear head, so that one computation serves both."""
        same = self.head is other.head and self.loss is other.loss and self.clipping_norm == other.clipping_norm
        return same and type(self.head) is nn.Linear and self.features.dim() == other.features.dim() == 2


def clipped_sum(
    head: nn.Module, loss: PerUnitLoss, features: Tensor, targets: Tensor, clipping_norm: float
) -> ClippedSum:
    """Sum the gradients of all units, each scaled down to an L2 norm of at most ``clipping_norm``.

    Heads of one or two linear layers, with one feature vector a unit, take a closed form that stores no per-sample
    gradient; every other head takes the gradient of each unit by itself. Norms and sums are float64, and ``head`` is
    left untouched. Arguments are those of a ``Batch``.

    Returns:
        The sum over trainable parameters. A unit whose gradient is not finite contributes zero and is counted.

    Guarantees:
        Adding or removing one unit changes the sum, over all parameters together, by at most C in L2 up to rounding.

    Raises:
        PrivacyError: a layer mixes units (BatchNorm, say), the loss is reduced, or ``clipping_norm`` is not positive.
    """
    check_clipping_norm(clipping_norm)
    if type(head) is SolvedHead:
        return solved_sum(head, features, targets, clipping_norm)
    if type(head) is nn.Linear and features.dim() == 2:
        return linear_clipped_sums(head, loss, [features], [targets], clipping_norm)[0]
    if features.dim() == 2 and is_mlp(head):
        return mlp_clipped_sum(head, loss, features, targets, clipping_norm)
    if type(head) is TokenLinear:
        return token_clipped_sum(head, loss, features, targets, clipping_norm)
    return deep_clipped_sum(head, loss, features, targets, clipping_norm)


def clipped_sums(batches: Sequence[Batch]) -> list[ClippedSum]:
    """The clipped sum of each batch, the same bit for bit as by itself; batches of one linear head go together."""
    if len(batches) > 1 and all(batch.shares_head(batches[0]) for batch in batches):
        head, loss, norm = batches[0].head, batches[0].loss, batches[0].clipping_norm
        assert isinstance(head, nn.Linear)
        check_clipping_norm(norm)
        parts = [batch.features for batch in batches], [batch.targets for batch in batches]
        return linear_clipped_sums(head, loss, *parts, norm)
    return [clipped_sum(each.head, each.loss, each.features, each.targets, each.clipping_norm) for each in batches]


def check_clipping_norm(norm: float) -> None:
    """Refuse a norm that bounds nothing.

    Raises:
        PrivacyError: it is not positive and finite.
    """
    if not 0 < norm < float("inf"):
        raise PrivacyError(f"the clipping norm must be positive and finite, got {norm!r}; choose such a one")


@dataclass(frozen=True)
class Noising:
    """A clipped sum that waits for its noise.

    Attributes:
        clipped: the sum over the batch that Poisson sampling drew.
        plan: gives C, sigma and the divisor, all public constants.
        randomness: noise is drawn from it, once for all parameters, laid end to end in the order of names.
    """

    clipped: ClippedSum
    plan: PrivacyPlan
    randomness: Randomness

    def check(self) -> None:
        """Make sure that the sum was clipped to the plan's norm.

        Raises:
            PrivacyError: it was clipped to another.
        """
        if self.clipped.clipping_norm != self.plan.terms.clipping_norm:
            raise PrivacyError(
                f"gradients must be clipped to the plan's norm {self.plan.terms.clipping_norm:g}, got "
                f"{self.clipped.clipping_norm:g}; pass the plan's own clipping norm"
            )


def noisy_gradient(clipped: ClippedSum, plan: PrivacyPlan, randomness: Randomness) -> dict[str, Tensor]:
    """Add the plan's noise and divide by its expected batch, whatever the batch was: empty ones are noised too.

    Arguments are those of a ``Noising``.

    Returns:
        Parameter name -> (sum + C sigma N(0, 1)) / expected batch, float64; safe to release.

    Raises:
        PrivacyError: the sum was clipped to another norm than the plan's.
    """
    return noisy_gradients([Noising(clipped, plan, randomness)])[0]


def noisy_gradients(asked: Sequence[Noising]) -> list[dict[str, Tensor]]:
    """The noisy gradient of each sum, the same bit for bit as by itself; errors as in ``noisy_gradient``."""
    for each in asked:
        each.check()
    layouts: dict[Layout, list[int]] = defaultdict(list)
    for place, each in enumerate(asked):
        layouts[tuple((name, each.clipped.values[name].shape) for name in sorted(each.clipped.values))].append(place)
    totals = {layout: _end_to_end([asked[place] for place in places], layout) for layout, places in layouts.items()}
    found: dict[int, dict[str, Tensor]] = {}
    with unmoved_by_failure([each.randomness for each in asked]):
        for layout, places in layouts.items():
            found.update(zip(places, _noised([asked[place] for place in places], totals[layout], layout), strict=True))
    return [found[place] for place in range(len(asked))]


def _end_to_end(asked: Sequence[Noising], layout: Layout) -> NDArray[np.float64]:
    """Sums over the same parameters, one row for each."""
    sums = [each.clipped.values[name].numpy().reshape(-1) for each in asked for name, _ in layout]
    return np.concatenate(sums).reshape(len(asked), -1)


def _noised(asked: Sequence[Noising], totals: NDArray[np.float64], layout: Layout) -> list[dict[str, Tensor]]:
    """The noisy gradients of these sums, whose rows are overwritten."""
    noise = normals_of([each.randomness for each in asked], totals.shape[1])
    for total, drawn, plan in zip(totals, noise, (each.plan for each in asked), strict=True):
        total += plan.terms.clipping_norm * plan.terms.noise_multiplier * drawn
        total /= plan.expected_batch
    places = itertools.pairwise(itertools.accumulate((shape.numel() for _, shape in layout), initial=0))
    rows = {
        name: torch.from_numpy(totals[:, start:end]).view(len(asked), *shape).unbind()
        for (name, shape), (start, end) in zip(layout, places, strict=True)
    }
    return [{name: of_all[place] for name, of_all in rows.items()} for place in range(len(asked))]

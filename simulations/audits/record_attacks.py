"""Attacks on real records: heads trained with a record and without it, and what their updates say of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import one_hot

from client.clipping import clip_factors
from common.errors import ConfigError
from simulations.audits.canaries import Canaries
from simulations.audits.findings import Threat, Vector
from simulations.audits.shadows import Place, Progress, Recipe, train_heads


@dataclass(frozen=True)
class Crowd:
    """The records that are there in any case, all known to the attacker.

    Attributes:
        features: shape (n, D).
        targets: shape (n,).
        places: the nodes; the canary is at the first. None is one node with all records.
    """

    features: Tensor
    targets: Tensor
    places: Sequence[Place] | None = None


def attack_records(
    threat: Threat,
    canary: Canaries,
    crowd: Crowd,
    recipe: Recipe,
    *,
    heads: int,
    seed: int,
    progress: Progress | None = None,
) -> tuple[Vector, Vector]:
    """Train heads, half of them with a record more, and score what the attacker sees.

    Server and peer compute the record's clipped gradient at each head, take away what the other records give, and
    score the rest by the log-likelihood ratio: exact with every record in every step (q = 1) and one step a round,
    else with the others' sampling as further noise. Whoever sees the final head scores how sure it is of the label.

    Args:
        threat: who attacks. The server sees the first node's updates by themselves: give it that node's crowd.
        canary: one record.
        crowd: the other records.
        recipe: how heads are trained; with terms.
        heads: how many.
        seed: of sampling and noise.
        progress: called with (heads done, heads to do).

    Returns:
        Scores of the heads with the canary, shape (heads // 2,), and of those without.

    Raises:
        ConfigError: several canaries, a recipe without terms, or a server that is given several nodes.
    """
    if len(canary) != 1 or recipe.terms is None:
        raise ConfigError(f"expected one canary and a recipe with privacy terms, got {len(canary)}; attack one by one")
    if threat == "server" and crowd.places is not None and len(crowd.places) > 1:
        raise ConfigError("a server sees a node's own updates, got a crowd of several nodes; give the attacked node's")
    records, half = len(crowd.targets), heads // 2
    features = torch.cat([crowd.features, canary.features])
    targets = torch.cat([crowd.targets, canary.targets])
    included = torch.ones(2 * half, records + 1, dtype=torch.bool)
    included[half:, records] = False
    places = _joined(crowd, recipe)
    scorer = _Scorer(features, targets, recipe, places)
    scores = train_heads(
        features,
        targets,
        included,
        recipe,
        seed=seed,
        keep="last" if threat == "model" else "every-step",
        places=places,
        reduce=scorer.surety if threat == "model" else scorer.evidence,
        progress=progress,
    )
    values = np.asarray(scores, np.float64)
    return values[:half], values[half:]


def _joined(crowd: Crowd, recipe: Recipe) -> list[Place]:
    """The places with the canary, the last record, at the first of them."""
    records = len(crowd.targets)
    places = list(crowd.places or [Place(torch.arange(records), recipe.expected_batch, 1.0)])
    places[0] = replace(places[0], rows=torch.cat([places[0].rows, torch.tensor([records])]))
    return places


class _Scorer:
    """Scores heads for one canary, the last of the records."""

    def __init__(self, features: Tensor, targets: Tensor, recipe: Recipe, places: Sequence[Place]) -> None:
        assert recipe.terms is not None
        self._inputs = torch.cat([features, torch.ones(len(features), 1)], dim=1)
        self._onehot = one_hot(targets, recipe.classes).to(features.dtype)
        self._target = int(targets[-1])
        self._recipe, self._terms = recipe, recipe.terms
        total = sum(place.weight for place in places)
        scales = torch.tensor([place.weight / total / place.expected_batch for place in places])
        self._divided = torch.zeros(len(features))
        for scale, place in zip(scales, places, strict=True):
            self._divided[place.rows] = scale
        steps = recipe.schedule[1]
        self._deviation = float(scales.norm()) * recipe.terms.clipping_norm * recipe.terms.noise_multiplier * steps**0.5

    def surety(self, heads: Tensor) -> Tensor:
        """Log odds of the canary's label, from final heads (M, K, D + 1); shape (M,)."""
        logits = heads @ self._inputs[-1]
        others = torch.arange(logits.shape[1]) != self._target
        return logits[:, self._target] - logits[:, others].logsumexp(dim=1)

    def evidence(self, heads: Tensor) -> Tensor:
        """Log-likelihood ratios added up over rounds, from the heads after each, (M, T, K, D + 1); shape (M,)."""
        before, total = torch.zeros_like(heads[:, 0]), torch.zeros(len(heads), dtype=torch.float64)
        for turn in range(heads.shape[1]):
            total += self._evidence(before, heads[:, turn])
            before = heads[:, turn]
        return total

    def _evidence(self, before: Tensor, after: Tensor) -> Tensor:
        """Of one round, whose steps all count as taken at the round's first head."""
        rate, steps = self._terms.sampling_rate, self._recipe.schedule[1]
        logits = torch.einsum("nd,mkd->mnk", self._inputs, before)
        slopes = logits.softmax(dim=2) - self._onehot
        norms = slopes.norm(dim=2) * self._inputs.norm(dim=1)
        slopes = slopes * (clip_factors(norms, self._terms.clipping_norm)[0] * self._divided)[..., None]
        own = slopes[:, -1]  # (M, K)
        overlaps = torch.einsum("mnk,mk->mn", slopes, own) * (self._inputs @ self._inputs[-1])
        square = overlaps[:, -1].double()
        others = overlaps[:, :-1].double()
        moved = torch.einsum("mkd,mk,d->m", before - after, own, self._inputs[-1]).double() / self._recipe.learning_rate
        rest = moved - steps * rate * others.sum(dim=1)
        spread = steps * rate * (1 - rate) * others.square().sum(dim=1) / square.clamp(min=1e-30)
        variance = self._deviation**2 + spread
        taken = steps * rate if steps > 1 else 1.0
        evidence: Tensor = (2 * taken * rest - taken**2 * square) / (2 * variance)
        if rate >= 1 or steps > 1:
            return evidence
        return torch.logaddexp(torch.log1p(torch.tensor(-rate)).double(), evidence + float(np.log(rate)))

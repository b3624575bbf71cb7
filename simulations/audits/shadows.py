"""Shadow heads: hundreds of linear heads trained at once, by the DP-SGD of the nodes and the server's averaging."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Literal, Protocol

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import one_hot

from client.clipping import clip_factors
from common.errors import ConfigError
from common.privacy.plan import PrivacyTerms

AT_ONCE = 2**20  # numbers in the largest array of a chunk of heads: small enough for a processor's cache

Keep = Literal["last", "every-step"]
Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Recipe:
    """How every shadow head is trained.

    Attributes:
        classes: K.
        learning_rate: of the local steps.
        terms: of the mechanism; None trains without privacy: all records that a head may use, in every step, neither
            clipped nor noised, their gradients averaged.
        expected_batch: divisor of the noised sums, q times the node's declared size; without terms not used.
        rounds: how many, where there are no terms to say it.
        steps_per_round: likewise.

    Raises:
        ConfigError: neither terms nor rounds say how long to train, or a number is not positive.
    """

    classes: int
    learning_rate: float
    terms: PrivacyTerms | None
    expected_batch: float
    rounds: int | None = None
    steps_per_round: int = 1

    def __post_init__(self) -> None:
        """Refuse a recipe that trains nothing."""
        if self.terms is None and (self.rounds is None or self.rounds < 1 or self.steps_per_round < 1):
            raise ConfigError(
                f"a recipe without privacy terms needs at least one round and step, got {self.rounds!r} rounds of "
                f"{self.steps_per_round}; give both"
            )
        if self.classes < 2 or not 0 < self.learning_rate < math.inf or not 0 < self.expected_batch < math.inf:
            raise ConfigError(
                "a recipe needs two classes or more, a positive learning rate and a positive expected batch, got "
                f"{self.classes}, {self.learning_rate!r} and {self.expected_batch!r}; correct it"
            )

    @property
    def schedule(self) -> tuple[int, int]:
        """Rounds, and steps in each."""
        if self.terms is not None:
            return self.terms.rounds, self.terms.steps_per_round
        return self.rounds or 0, self.steps_per_round

    def shortened(self, rounds: int = 1) -> Recipe:
        """The same for the first rounds only, with the noise of the whole plan."""
        if self.terms is None:
            return replace(self, rounds=rounds)
        return replace(self, terms=replace(self.terms, rounds=rounds))


@dataclass(frozen=True)
class Place:
    """One node of a federation.

    Attributes:
        rows: which records are its own, int64; no two nodes share one.
        expected_batch: its divisor.
        weight: of its update in the average; a public constant, any scale.
    """

    rows: Tensor
    expected_batch: float
    weight: float


class Draws(Protocol):
    """Where the randomness of one chunk of heads comes from."""

    def flags(self, heads: int, records: int, rate: float) -> Tensor:
        """Which records each head samples, bool (heads, records), each true with probability ``rate``."""

    def normals(self, shape: torch.Size) -> Tensor:
        """Standard normals, (heads, classes, features + 1)."""


def train_heads(
    features: Tensor,
    targets: Tensor,
    included: Tensor,
    recipe: Recipe,
    *,
    seed: int,
    keep: Keep = "last",
    places: Sequence[Place] | None = None,
    dtype: torch.dtype = torch.float32,
    reduce: Callable[[Tensor], Tensor] | None = None,
    draws: Callable[[int], Draws] | None = None,
    progress: Progress | None = None,
) -> Tensor:
    """Train M linear heads from zero, in chunks that bound memory, on as many threads as torch has been given.

    Args:
        features: shape (n, D).
        targets: classes, shape (n,), int64.
        included: bool, shape (M, n): which records each head may sample.
        recipe: how they are trained.
        seed: of sampling and noise; the same arguments give the same heads.
        keep: the last heads only, or those after every round, which are all that anybody outside the node sees.
        places: the nodes of a federation, each with its own noise; None is one node with all records.
        dtype: float32 is fast; float64 follows the nodes' own mechanism to 1e-6.
        reduce: what to keep of each chunk's heads, one row a head, where all of them would not fit into memory.
        draws: index of a chunk's first head -> its randomness, in place of what ``seed`` gives.
        progress: called with (heads done, heads to do).

    Returns:
        Heads (M, K, D + 1), the last column the bias; ``"every-step"``: (M, T, K, D + 1), the zero start left out;
        or what ``reduce`` makes of these.

    Guarantees:
        With the same flags and normals a head is the one that ``clipped_sum`` and ``noisy_gradient`` give.

    Raises:
        ConfigError: shapes do not fit, features are not finite, or two places share a record.
    """
    _check(features, targets, included, recipe)
    groups = _groups(features.to(dtype), targets, recipe, places)
    number, width = features.shape[0], features.shape[1] + 1
    heads, count = len(included), max(1, AT_ONCE // (recipe.classes * max(number, width)))
    parts = []
    for first in range(0, heads, count):
        own = _Generated(seed, first, dtype) if draws is None else draws(first)
        trained = _train(groups, included[first : first + count], recipe, own, keep)
        parts.append(trained if reduce is None else reduce(trained))
        if progress is not None:
            progress(min(first + count, heads), heads)
    return torch.cat(parts)


@dataclass(frozen=True)
class _Group:
    """Records whose gradients go into one sum.

    Attributes:
        rows: of all records, those of the group; shape (n,).
        inputs: features and a one for the bias, shape (n, D + 1).
        flipped: the same, transposed and contiguous.
        onehot: targets, shape (K, n).
        lengths: of the inputs, shape (n,).
        belongs: which place each record belongs to, one-hot, shape (n, P).
        weights: of each record's place, shape (n,).
        divided: the same over the place's divisor, shape (n,).
        deviation: of the noise, all places together.
        weight: of the group among all.
    """

    rows: Tensor
    inputs: Tensor
    flipped: Tensor
    onehot: Tensor
    lengths: Tensor
    belongs: Tensor
    weights: Tensor
    divided: Tensor
    deviation: float
    weight: float


def _groups(features: Tensor, targets: Tensor, recipe: Recipe, places: Sequence[Place] | None) -> list[_Group]:
    """One group for all nodes where they average after every step, since sums and noises then simply add up."""
    if places is None:
        places = [Place(torch.arange(len(targets)), recipe.expected_batch, 1.0)]
    rows = torch.cat([place.rows for place in places])
    if len(set(rows.tolist())) != len(rows):
        raise ConfigError("expected each record at one place, got some at several; divide them")
    total = sum(place.weight for place in places)
    together = len(places) == 1 or recipe.schedule[1] == 1
    parts = [[(place.weight / total, place) for place in places]]
    if not together:
        parts = [[(1.0, place)] for place in places]
    weights = [1.0] if together else [place.weight / total for place in places]
    return [_group(features, targets, recipe, part, weight) for part, weight in zip(parts, weights, strict=True)]


def _group(
    features: Tensor, targets: Tensor, recipe: Recipe, part: Sequence[tuple[float, Place]], weight: float
) -> _Group:
    rows = torch.cat([place.rows for _, place in part])
    inputs = torch.cat([features[rows], torch.ones(len(rows), 1, dtype=features.dtype)], dim=1)
    owner = torch.repeat_interleave(torch.arange(len(part)), torch.tensor([len(place.rows) for _, place in part]))
    weights = torch.tensor([own for own, _ in part], dtype=features.dtype)
    scales = torch.tensor([own / place.expected_batch for own, place in part], dtype=features.dtype)
    terms = recipe.terms
    return _Group(
        rows=rows,
        inputs=inputs,
        flipped=inputs.T.contiguous(),
        onehot=one_hot(targets[rows], recipe.classes).T.to(features.dtype).contiguous(),
        lengths=inputs.norm(dim=1),
        belongs=one_hot(owner, len(part)).to(features.dtype),
        weights=weights[owner],
        divided=scales[owner],
        deviation=0.0 if terms is None else terms.clipping_norm * terms.noise_multiplier * float(scales.norm()),
        weight=weight,
    )


@torch.no_grad()
def _train(groups: Sequence[_Group], included: Tensor, recipe: Recipe, draws: Draws, keep: Keep) -> Tensor:
    """All rounds of one chunk of heads."""
    heads = groups[0].inputs.new_zeros(len(included), recipe.classes, groups[0].inputs.shape[1])
    allowed = [_allowed(group, included, recipe) for group in groups]
    rounds, kept = recipe.schedule[0], []
    for _ in range(rounds):
        found = [_descend(heads, group, own, recipe, draws) for group, own in zip(groups, allowed, strict=True)]
        if len(groups) == 1:
            heads = found[0]
        else:
            heads = torch.zeros_like(heads)
            for group, head in zip(groups, found, strict=True):
                heads.add_(head, alpha=group.weight)
        if keep == "every-step":
            kept.append(heads)
    return torch.stack(kept, dim=1) if keep == "every-step" else heads


def _allowed(group: _Group, included: Tensor, recipe: Recipe) -> Tensor:
    """What each record counts in each head's step, shape (M, n), zero where the head may not use it."""
    own = included[:, group.rows].to(group.inputs.dtype)
    if recipe.terms is not None:
        return own * group.divided
    return own * group.weights / ((own @ group.belongs).clamp(min=1) @ group.belongs.T)


def _descend(start: Tensor, group: _Group, allowed: Tensor, recipe: Recipe, draws: Draws) -> Tensor:
    """One round's steps of one group, from the global heads (M, K, D + 1)."""
    heads, terms = start.clone(), recipe.terms
    for _ in range(recipe.schedule[1]):
        counted = allowed
        if terms is not None and terms.sampling_rate < 1:
            counted = allowed * draws.flags(allowed.shape[0], allowed.shape[1], terms.sampling_rate)
        gradient = _gradient(heads, group, counted, None if terms is None else terms.clipping_norm)
        if terms is not None:
            gradient.add_(draws.normals(heads.shape), alpha=group.deviation)
        heads.sub_(gradient, alpha=recipe.learning_rate)
    if terms is None:
        return heads
    limits = torch.finfo(heads.dtype)
    return heads.nan_to_num_(nan=0.0, posinf=limits.max, neginf=limits.min)


def _gradient(heads: Tensor, group: _Group, counted: Tensor, clipping_norm: float | None) -> Tensor:
    """Sum over records of what each counts times its clipped gradient, one for each head, shape (M, K, D + 1).

    A record's gradient is the outer product of slope and input, so its norm is the product of both lengths.
    """
    number, classes, width = heads.shape
    logits = (heads.view(-1, width) @ group.flipped).view(number, classes, -1)
    slopes = logits.softmax(dim=1).sub_(group.onehot)  # (M, K, n)
    if clipping_norm is not None:
        factors, finite = clip_factors(slopes.square().sum(dim=1).sqrt_() * group.lengths, clipping_norm)
        counted = counted * factors
        if not bool(finite.all()):
            slopes = torch.where(finite[:, None, :], slopes, 0.0)
    slopes.mul_(counted[:, None, :])
    return (slopes.view(-1, slopes.shape[2]) @ group.inputs).view(heads.shape)


class _Generated:
    """Draws from a seed; one stream for a chunk of heads."""

    def __init__(self, seed: int, first: int, dtype: torch.dtype) -> None:
        state = int(np.random.SeedSequence([seed, first]).generate_state(1, np.uint64)[0])
        self._generator = torch.Generator().manual_seed(state >> 1)
        self._dtype = dtype

    def flags(self, heads: int, records: int, rate: float) -> Tensor:
        """Bool (heads, records)."""
        return torch.rand(heads, records, generator=self._generator) < rate

    def normals(self, shape: torch.Size) -> Tensor:
        """Standard normals; in float32 none is beyond 5.8."""
        return torch.randn(shape, generator=self._generator, dtype=self._dtype)


def _check(features: Tensor, targets: Tensor, included: Tensor, recipe: Recipe) -> None:
    records = len(features)
    if features.dim() != 2 or targets.shape != (records,) or included.dim() != 2 or included.shape[1] != records:
        raise ConfigError(
            f"expected features (n, D), targets (n,) and included (M, n), got {tuple(features.shape)}, "
            f"{tuple(targets.shape)} and {tuple(included.shape)}; give one row a record"
        )
    if not len(included) or not records:
        raise ConfigError(f"expected at least one head and one record, got {len(included)} and {records}; add some")
    if not bool(features.isfinite().all()):
        raise ConfigError("expected finite features, got NaN or infinity; leave such records out")
    if int(targets.min()) < 0 or int(targets.max()) >= recipe.classes:
        raise ConfigError(f"expected targets from 0 to {recipe.classes - 1}, got others; give the recipe all classes")

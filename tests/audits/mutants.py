"""Deliberately broken nodes: every one of them does something that an audit must notice. Never use them.

They live among the tests, which no wheel carries: code that trains without the protection that it claims must not be
importable where fedgraft is installed. Each takes the place of one part of ``simulations.audits.practice.SHIPPED``, so
that the very audit that looks at the shipped code looks at them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import safetensors.torch
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from client.clipping import ClippedSum
from client.home import Node, Records
from client.ledger import Spend, StoredReply
from client.mechanism import clipped_sum, noisy_gradient
from client.training import private_update, train_round
from common.backbones.backbone import Backbone
from common.data.local import LocalData
from common.errors import PrivacyError
from common.features import extract
from common.heads import arrays_digest, head_arrays
from common.messages import ModelSpec, TrainTask, Update
from common.model import trained_head
from common.privacy.accountant import Event, epsilon_pld
from common.privacy.noise import Randomness, SeededRandomness
from common.privacy.plan import PrivacyPlan
from common.tasks import PerUnitLoss, task_named
from simulations.audits.estimators import gaussian_epsilon
from simulations.audits.practice import SHIPPED, Practice, PrivateSteps, ledger_epsilon

Flags = NDArray[np.bool_]
Sample = Callable[[Randomness, Records, PrivacyPlan], Flags]
Clip = Callable[[nn.Module, PerUnitLoss, Tensor, Tensor, float], ClippedSum]
Release = Callable[[ClippedSum, PrivacyPlan, Randomness, int], dict[str, Tensor]]
Pair = tuple[Randomness, Randomness]
Train = Callable[[TrainTask, Node], Update]
Spy = Callable[[TrainTask, Node], Node]


@dataclass(frozen=True)
class Mutant:
    """A broken node.

    Attributes:
        name: what it does wrong.
        pitfall: the beginning of its row in docs/privacy-pitfalls.md.
        practice: how it works.
    """

    name: str
    pitfall: str
    practice: Practice


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


def whole_round(update: PrivateSteps = private_update, spy: Spy | None = None, repeats: bool = True) -> Train:
    """A copy of ``client.training.train_round`` with other private steps, at a node that ``spy`` may tamper with.

    ``repeats`` answers a repeated task with the stored bytes, as it should.
    """

    def train(task: TrainTask, node: Node) -> Update:
        node = node if spy is None else spy(task, node)
        plan = node.policy.accept(task.offer, node.declared_size)
        module = trained_head(task.offer.model, task.head)
        with node.open_ledger() as ledger:
            reservation = ledger.reserve(Spend(task.offer.run_id, task.round, arrays_digest(task.head)), plan)
            if isinstance(reservation, StoredReply) and repeats:
                return Update(safetensors.torch.load(reservation.reply))
            head = update(module, task, node.records(task.offer.model), plan, node.randomness(task.round))
            if not isinstance(reservation, StoredReply):
                ledger.commit(reservation, safetensors.torch.save(head))
        return Update(head)

    return train


# noise


def scaled(factor: float) -> Release:
    def release(clipped: ClippedSum, plan: PrivacyPlan, noise: Randomness, drawn: int) -> dict[str, Tensor]:
        less = replace(plan, terms=replace(plan.terms, noise_multiplier=factor * plan.terms.noise_multiplier))
        return noisy_gradient(clipped, less, noise)

    return release


def _bias_without_noise(clipped: ClippedSum, plan: PrivacyPlan, noise: Randomness, drawn: int) -> dict[str, Tensor]:
    gradient = noisy_gradient(clipped, plan, noise)
    return {**gradient, "bias": clipped.values["bias"] / plan.expected_batch}


def _one_noise_a_round(
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


def _no_noise(clipped: ClippedSum, plan: PrivacyPlan, noise: Randomness, drawn: int) -> dict[str, Tensor]:
    return {name: value / plan.expected_batch for name, value in clipped.values.items()}


def _late_without_noise(task: TrainTask, node: Node) -> Update:
    return whole_round(private_update if task.round == 1 else private_steps(release=_no_noise))(task, node)


def _alike(task: TrainTask, node: Node) -> Node:
    return replace(node, randomness=lambda round_: node.randomness(1))


def _sent_seed(task: TrainTask, node: Node) -> Node:
    def randomness(round_: int) -> Pair:
        return node.randomness(round_)[0], SeededRandomness(0, task.offer.run_id, round_, "noise")

    return replace(node, randomness=randomness)


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


def _clip_weights_only(
    head: nn.Module, loss: PerUnitLoss, features: Tensor, targets: Tensor, norm: float
) -> ClippedSum:
    slopes, inputs = _safe(*_slopes(head, loss, features, targets))
    factors = _factors(slopes.norm(dim=1) * inputs.norm(dim=1), norm)
    return ClippedSum({"bias": slopes.sum(dim=0), "weight": (factors[:, None] * slopes).T @ inputs}, norm, 0)


def _clip_each_layer(head: nn.Module, loss: PerUnitLoss, features: Tensor, targets: Tensor, norm: float) -> ClippedSum:
    slopes, inputs = _safe(*_slopes(head, loss, features, targets))
    weights = _factors(slopes.norm(dim=1) * inputs.norm(dim=1), norm)
    biases = _factors(slopes.norm(dim=1), norm)
    sums = {"bias": (biases[:, None] * slopes).sum(dim=0), "weight": (weights[:, None] * slopes).T @ inputs}
    return ClippedSum(sums, norm, 0)


def _clip_the_mean(head: nn.Module, loss: PerUnitLoss, features: Tensor, targets: Tensor, norm: float) -> ClippedSum:
    """The mean's clipped value; ``_mean_released`` adds the noise that one record's share would need."""
    slopes, inputs = _safe(*_slopes(head, loss, features, targets))
    count = max(len(targets), 1)
    mean = {"bias": slopes.sum(dim=0) / count, "weight": slopes.T @ inputs / count}
    factor = _factors(torch.stack([value.norm() for value in mean.values()]).norm(), norm)
    return ClippedSum({name: factor * value for name, value in mean.items()}, norm, 0)


def _mean_released(clipped: ClippedSum, plan: PrivacyPlan, noise: Randomness, drawn: int) -> dict[str, Tensor]:
    whole = replace(clipped, values={name: plan.expected_batch * value for name, value in clipped.values.items()})
    return noisy_gradient(whole, plan, noise)


def clip_to_twice(head: nn.Module, loss: PerUnitLoss, features: Tensor, targets: Tensor, norm: float) -> ClippedSum:
    return replace(clipped_sum(head, loss, features, targets, 2 * norm), clipping_norm=norm)


def _weighted_loss(head: nn.Module, loss: PerUnitLoss, features: Tensor, targets: Tensor, norm: float) -> ClippedSum:
    """Classes that are rare in the batch count more."""
    counts = torch.bincount(targets, minlength=1).double()
    weights = len(targets) / counts[targets].clamp(min=1)
    return clipped_sum(head, lambda logits, of: loss(logits, of) * weights, features, targets, norm)


def _batch_norm(head: nn.Module, loss: PerUnitLoss, features: Tensor, targets: Tensor, norm: float) -> ClippedSum:
    if len(features) > 1:
        features = (features - features.mean(dim=0)) / (features.std(dim=0) + 1e-5)
    return clipped_sum(head, loss, features, targets, norm)


def _stops_at_a_nan(head: nn.Module, loss: PerUnitLoss, features: Tensor, targets: Tensor, norm: float) -> ClippedSum:
    clipped = clipped_sum(head, loss, features, targets, norm)
    if clipped.non_finite:
        raise FloatingPointError(f"{clipped.non_finite} gradients are not finite")
    return clipped


# sampling, steps and divisor


def _shuffled(sampling: Randomness, records: Records, plan: PrivacyPlan) -> Flags:
    flags = np.zeros(len(records), dtype=bool)
    order = np.argsort(sampling.normal((len(records),)))
    flags[order[: round(plan.terms.sampling_rate * len(records))]] = True
    return flags


def _live_rate(sampling: Randomness, records: Records, plan: PrivacyPlan) -> Flags:
    return sampling.bernoulli(len(records), min(1.0, plan.expected_batch / max(len(records), 1)))


def _weighted_sampler(sampling: Randomness, records: Records, plan: PrivacyPlan) -> Flags:
    drawn = sampling.bernoulli(len(records), plan.terms.sampling_rate)
    counts = np.bincount(records.targets.numpy(), minlength=1)
    rare: Flags = counts[records.targets.numpy()] < counts.max()
    return drawn | rare


def _skips_empty_batches(clipped: ClippedSum, plan: PrivacyPlan, noise: Randomness, drawn: int) -> dict[str, Tensor]:
    return noisy_gradient(clipped, plan, noise) if drawn else dict(clipped.values)


def _live_divisor(clipped: ClippedSum, plan: PrivacyPlan, noise: Randomness, drawn: int) -> dict[str, Tensor]:
    gradient = noisy_gradient(clipped, plan, noise)
    return {name: value * plan.expected_batch / max(drawn, 1) for name, value in gradient.items()}


def _steps_of_an_epoch(
    head: nn.Module, task: TrainTask, records: Records, plan: PrivacyPlan, randomness: Pair
) -> dict[str, Tensor]:
    steps = max(1, math.ceil(len(records) / plan.expected_batch))
    return private_steps(steps=steps)(head, task, records, plan, randomness)


def _one_over_rate_steps(
    head: nn.Module, task: TrainTask, records: Records, plan: PrivacyPlan, randomness: Pair
) -> dict[str, Tensor]:
    return private_steps(steps=int(1 / plan.terms.sampling_rate))(head, task, records, plan, randomness)


def _stops_early(
    head: nn.Module, task: TrainTask, records: Records, plan: PrivacyPlan, randomness: Pair
) -> dict[str, Tensor]:
    """Return the head as it came when it fits the records well enough."""
    features, targets = records.everything()
    with torch.no_grad():
        good = len(targets) and float((head(features).argmax(dim=1) == targets).double().mean()) > 0.3
    return head_arrays(head) if good else private_update(head, task, records, plan, randomness)


# features, replies and books


def _centred(task: TrainTask, node: Node) -> Node:
    def records(model: ModelSpec) -> Records:
        features, targets = node.records(model).everything()
        centred = (features - features.mean(dim=0)).numpy()
        return Records(centred, np.arange(len(centred)), targets)

    return replace(node, records=records)


def _centred_features(backbone: Backbone, cut: str, data: LocalData) -> NDArray[np.float32]:
    features = extract(backbone, cut, data)
    return np.asarray(features - features.mean(axis=0))


def _with_statistics(
    head: nn.Module, task: TrainTask, records: Records, plan: PrivacyPlan, randomness: Pair
) -> dict[str, Tensor]:
    released = private_update(head, task, records, plan, randomness)
    means = [records.everything()[0].mean(dim=0)] if len(records) else [torch.zeros(records.features.shape[1])]
    return {**released, "norm.running_mean": means[0]}


@dataclass(frozen=True)
class _Counted(Update):
    num_examples: int


def _counts_examples(task: TrainTask, node: Node) -> Update:
    return _Counted(train_round(task, node).head, num_examples=len(node.records(task.offer.model)))


def _unpaid(task: TrainTask, node: Node) -> Update:
    try:
        return train_round(task, node)
    except PrivacyError:
        plan = node.policy.accept(task.offer, node.declared_size)
        records, randomness = node.records(task.offer.model), node.randomness(task.round)
        return Update(private_update(trained_head(task.offer.model, task.head), task, records, plan, randomness))


def _books_of_one_round(plan: PrivacyPlan, rounds: int) -> float:
    return max(ledger_epsilon(plan, 1) for _ in range(rounds))  # a ledger of its own for each


def _books_of_the_last_entry(plan: PrivacyPlan, rounds: int) -> float:
    terms = plan.terms
    entries = [Event(terms.noise_multiplier, terms.sampling_rate, terms.steps_per_round)] * rounds
    return epsilon_pld(entries[-1:], terms.delta)


def _central_limit(plan: PrivacyPlan, rounds: int) -> float:
    """Bu et al. 2020, arXiv:1911.11607: an approximation, on the wrong side."""
    terms, steps = plan.terms, rounds * plan.terms.steps_per_round
    return gaussian_epsilon(
        terms.sampling_rate * math.sqrt(steps * math.expm1(terms.noise_multiplier**-2)), terms.delta
    )


def _cohort_amplified(plan: PrivacyPlan, rounds: int) -> float:
    terms = plan.terms
    return epsilon_pld(
        [Event(terms.noise_multiplier, terms.sampling_rate / 2, rounds * terms.steps_per_round)], terms.delta
    )


def _steps(update: PrivateSteps) -> Practice:
    return replace(SHIPPED, update=update, train=whole_round(update))


def _node(train: Train) -> Practice:
    return replace(SHIPPED, train=train)


def _books(spent: Callable[[PrivacyPlan, int], float]) -> Practice:
    return replace(SHIPPED, spent=spent)


def mutants() -> Iterator[Mutant]:
    """All of them."""
    reset = "A new accountant each round"
    alike = "The same noise in two rounds"
    bound = "The bound does not hold"
    sizes = "q, T, N or the divisor"
    shuffled = "Shuffled or fixed-size batches"
    never = "Values returned that were never noised"
    centred = "Features centred"
    scale = "Noise of the wrong scale"
    steps = {
        "noise at half scale": (scale, private_steps(release=scaled(0.5))),
        "noise five percent too small": (scale, private_steps(release=scaled(0.95))),
        "the bias without noise": (never, private_steps(release=_bias_without_noise)),
        "the same noise in every step of a round": (alike, _one_noise_a_round),
        "the bias is not clipped": (bound, private_steps(clip=_clip_weights_only)),
        "each layer clipped by itself": (bound, private_steps(clip=_clip_each_layer)),
        "clipped after averaging": (bound, private_steps(clip=_clip_the_mean, release=_mean_released)),
        "clipped to twice the norm that is noised": ("A sum clipped to one norm", private_steps(clip=clip_to_twice)),
        "a loss weighted by the classes of the batch": ("A mean-reduced", private_steps(clip=_weighted_loss)),
        "features normalised by the batch": ("BatchNorm or another layer", private_steps(clip=_batch_norm)),
        "statistics of BatchNorm leave with the head": ("Frozen BatchNorm", _with_statistics),
        "a gradient that is not finite stops the round": ("A stop, or an error", private_steps(clip=_stops_at_a_nan)),
        "empty batches skipped": ("Empty batches", private_steps(release=_skips_empty_batches)),
        "shuffled batches accounted as Poisson": (shuffled, private_steps(sample=_shuffled)),
        "rare classes sampled more often": (shuffled, private_steps(sample=_weighted_sampler)),
        "the divisor is the batch that was drawn": (sizes, private_steps(release=_live_divisor)),
        "the sampling rate from the number of records": (sizes, private_steps(sample=_live_rate)),
        "the number of steps from the number of records": (sizes, _steps_of_an_epoch),
        "int(1/q) steps": ("`int(1/q)` steps", _one_over_rate_steps),
        "stops early when the head fits": ("Early stopping", _stops_early),
    }
    yield from (Mutant(name, pitfall, _steps(update)) for name, (pitfall, update) in steps.items())
    nodes = {
        "noise seeded alike each round": (alike, whole_round(spy=_alike)),
        "noise from a number that the server sent": ("A seed that the server knows", whole_round(spy=_sent_seed)),
        "no noise after the first round": ("Training without DP", _late_without_noise),
        "features centred on the node's records": (centred, whole_round(spy=_centred)),
        "a repeated task is trained again": ("A retry that trains again", whole_round(repeats=False)),
        "a round beyond the budget is trained": ("The budget passed", _unpaid),
        "the number of examples beside the head": ("Weights from a live", _counts_examples),
    }
    yield from (Mutant(name, pitfall, _node(train)) for name, (pitfall, train) in nodes.items())
    books = {
        "an accountant of its own each round": (reset, _books_of_one_round),
        "only the last entry is counted": ("An accountant that counts", _books_of_the_last_entry),
        "the central limit shown as epsilon": ("A lower bound or an approximation", _central_limit),
        "amplification by cohorts claimed": ("Amplification by client", _cohort_amplified),
    }
    yield from (Mutant(name, pitfall, _books(spent)) for name, (pitfall, spent) in books.items())
    extracted = replace(SHIPPED, features=_centred_features)
    yield Mutant("the cache centres on the records that it is given", centred, extracted)


MUTANTS = tuple(mutants())

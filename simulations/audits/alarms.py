"""Alarms: attacks on a node's own code that show a claimed epsilon to be wrong.

An attack plays the same rounds many times with and without one record, and turns what was released into scores. An
alarm is raised when a lower confidence bound on epsilon exceeds what the node's books claim. The bound errs with
probability ``ALARM`` at most, so that a true mechanism is accused about once in ten thousand estimates.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from client.mechanism import clipped_sum
from common.grafting import threads
from common.heads import load_arrays
from common.messages import TrainTask
from common.privacy.accountant import noise_multiplier_for
from common.privacy.noise import Randomness, SeededRandomness
from common.tasks import task_named
from simulations.audits.estimators import clopper_pearson, gaussian_fit
from simulations.audits.findings import Vector
from simulations.audits.practice import Company, Practice, Specimen, company, private_steps, released_sum, task_for
from simulations.audits.replay import builtin_specimen
from simulations.audits.replay_node import node_for

ALARM = 1e-4  # probability with which an estimate accuses a true mechanism, at most
LOUD = 100.0  # size of a canary's feature, whose gradient any clipping norm cuts

Releases = NDArray[np.float64]
"""Noisy sums, shape (runs, rounds, P)."""


@dataclass(frozen=True)
class Estimate:
    """One estimator's answer to one attack.

    Attributes:
        attack: its name.
        estimator: what was scored, and how epsilon was bounded.
        epsilon: lower confidence bound, at confidence 1 - ``ALARM``.
        claimed: what the node's books show.
        heads: how many were trained.
        seconds: what the attack took, training included.
    """

    attack: str
    estimator: str
    epsilon: float
    claimed: float
    heads: int
    seconds: float

    @property
    def alarm(self) -> bool:
        """Whether the claim is refuted."""
        return self.epsilon > self.claimed


@dataclass(frozen=True)
class Attack:
    """A record that is there or not, and how often the rounds are played.

    Attributes:
        name: of the attack.
        specimen: gives head, plan and the records that are there in any case.
        others: how many of these.
        canary: features and target of the record in question.
        rounds: a run has.
        runs: with the canary, and as many without it.
        scores: what the attacker makes of the noisy sums, each by name: (releases, direction) to (runs,).
    """

    name: str
    specimen: Specimen
    others: int
    canary: tuple[Tensor, Tensor]
    rounds: int
    runs: int
    scores: Mapping[str, Callable[[Releases, Vector], Vector]]


def attacks(larger: int = 1) -> tuple[Attack, ...]:
    """The attacks on a node's private steps.

    Args:
        larger: by how many times more runs than a quick audit's.
    """
    along = {"projection": _projection}
    label = torch.tensor(1)
    loud = (LOUD * torch.eye(4)[0], label)
    return (
        Attack("loud record", _specimen(8.0, 1.0, 4), 1, loud, 4, 200 * larger, along),
        Attack("mere label", _specimen(4.0, 1.0, 1), 0, (torch.zeros(4), label), 1, 200 * larger, along),
        Attack(
            "second record", _specimen(1.0, 1.0, 3), 1, loud, 3, 120 * larger, {"size": _size, "smallness": _smallness}
        ),
        Attack("only record", _specimen(1.0, 0.5, 1), 0, loud, 1, 200 * larger, {"size": _size}),
    )


def audit_steps(practice: Practice, seed: int = 0, larger: int = 1, only: Collection[str] = ()) -> tuple[Estimate, ...]:
    """Attack the private steps of a round.

    Args:
        practice: whose ``update`` and ``spent`` are looked at.
        seed: of everything that is drawn.
        larger: by how many times more runs than a quick audit's.
        only: names of attacks; all of them where empty.
    """
    chosen = [attack for attack in attacks(larger) if not only or attack.name in only]
    with threads(1):
        return tuple(estimate for attack in chosen for estimate in _estimates(practice, attack, seed))


def audit_rounds(practice: Practice, seed: int = 0, runs: int = 80) -> tuple[Estimate, ...]:
    """Attack whole rounds at a node: two of them, of which the second starts where the canary says nothing any more.

    Args:
        practice: whose ``train`` and ``spent`` are looked at.
        seed: of everything that is drawn.
        runs: with the canary, and as many without it.
    """
    began, specimen = time.perf_counter(), _specimen(1.0, 1.0, 2)
    canary = company(specimen).take(np.arange(0)).joined_by(LOUD * torch.eye(4)[0], torch.tensor(1))
    with threads(1):
        inside, outside = (
            np.array([_two_rounds(practice, specimen, place, seed, f"{number}.{run}") for run in range(runs)])
            for number, place in enumerate((canary, canary.take(np.arange(0))))
        )
    claimed, delta = practice.spent(specimen.plan, 2), specimen.plan.terms.delta
    bounds = {
        name: clopper_pearson(inside[:, column], outside[:, column], delta, 1 - ALARM, seed=seed)
        for column, name in enumerate(("difference of rounds", "beside the head"))
    }
    seconds = time.perf_counter() - began
    return tuple(
        Estimate("two rounds", f"{name}, Clopper-Pearson", bound, claimed, 2 * runs, seconds)
        for name, bound in bounds.items()
    )


def noise_alarms(
    audits: int, runs: int, epsilon: float, rate: float, steps: int, seed: int = 0, scale: float = 1.0
) -> dict[str, int]:
    """Count alarms over many audits of the noise and the sampler alone, all runs drawn at once.

    The canary's gradient has norm C in every step that it is sampled for, and its direction is known: the score is
    the sum over steps of flag plus sigma times a normal, both from ``common.privacy.noise``.

    Args:
        audits: how many.
        runs: with the canary, and as many without it, in each audit.
        epsilon: that is claimed, at delta 1e-5.
        rate: q.
        steps: T.
        seed: of the draws.
        scale: by which the noise is too small; 1 is the true mechanism.

    Returns:
        Estimator -> how many audits raised an alarm.
    """
    delta = 1e-5
    deviation = scale * noise_multiplier_for(epsilon, delta, rate, steps)
    raised = {"Clopper-Pearson": 0, "Gaussian fit": 0}
    for audit in range(audits):
        randomness = SeededRandomness(seed, "alarms", audit, "noise")
        noise = deviation * randomness.normal((2, runs, steps)).sum(axis=2)
        flags = randomness.bernoulli(runs * steps, rate).reshape(runs, steps).sum(axis=1)
        inside, outside = noise[0] + flags, noise[1]
        raised["Clopper-Pearson"] += clopper_pearson(inside, outside, delta, 1 - ALARM, seed=audit) > epsilon
        raised["Gaussian fit"] += gaussian_fit(inside, outside, delta, 1 - ALARM)[0] > epsilon
    return raised


def _estimates(practice: Practice, attack: Attack, seed: int) -> Iterator[Estimate]:
    """Every score of an attack by every estimator that suits it."""
    began, delta = time.perf_counter(), attack.specimen.plan.terms.delta
    claimed = practice.spent(attack.specimen.plan, attack.rounds)
    base = company(attack.specimen).take(np.arange(attack.others))
    places = base.joined_by(*attack.canary), base
    with_it, without = (_play(practice, attack, place, seed, str(number)) for number, place in enumerate(places))
    direction = _direction(attack)
    for name, score in attack.scores.items():
        inside, outside = score(with_it, direction), score(without, direction)
        bounds = {"Clopper-Pearson": clopper_pearson(inside, outside, delta, 1 - ALARM, seed=seed)}
        if name == "projection":
            bounds["Gaussian fit"] = gaussian_fit(inside, outside, delta, 1 - ALARM)[0]
        for estimator, bound in bounds.items():
            seconds = time.perf_counter() - began
            yield Estimate(attack.name, f"{name}, {estimator}", bound, claimed, 2 * attack.runs, seconds)


def _play(practice: Practice, attack: Attack, place: Company, seed: int, world: str) -> Releases:
    """Play the runs; a white-box server sends the same head in every round."""
    tasks = [task_for(attack.specimen, round_) for round_ in range(1, attack.rounds + 1)]
    randomness = _stream(seed, f"{attack.name} {world}", "sampling"), _stream(seed, f"{attack.name} {world}", "noise")
    return np.array(
        [
            [private_steps(practice, attack.specimen, task, place.records, randomness) for task in tasks]
            for _ in range(attack.runs)
        ]
    )


def _two_rounds(practice: Practice, specimen: Specimen, place: Company, seed: int, name: str) -> tuple[float, float]:
    """The canary's share in the first round less the second, and whatever else left."""
    first = task_for(specimen, 1)
    quiet = {key: value.clone() for key, value in first.head.items()}
    quiet["weight"][1, 0] = 1.0  # a logit of 100 for the canary's label: its gradient is nil
    tasks = [first, replace(task_for(specimen, 2), head=quiet)]

    def randomness(round_: int) -> tuple[Randomness, Randomness]:
        return SeededRandomness(seed, name, round_, "sampling"), SeededRandomness(seed, name, round_, "noise")

    with tempfile.TemporaryDirectory() as folder:
        node = node_for(specimen, place, Path(folder), randomness)
        replies = [practice.train(task, node).head for task in tasks]
    sums = [_read(reply, task, specimen) for reply, task in zip(replies, tasks, strict=True)]
    along = (sums[0] - sums[1]) @ _direction_of(specimen, LOUD * torch.eye(4)[:1], torch.tensor([1]))
    odd = sum(float(value.double().abs().sum()) for name, value in replies[0].items() if name not in first.head)
    return round(float(along), 6), odd  # what rounding to float32 leaves must not tell two rounds apart


def _read(reply: dict[str, Tensor], task: TrainTask, specimen: Specimen) -> Vector:
    return released_sum(reply, task, specimen.plan)


def _direction(attack: Attack) -> Vector:
    return _direction_of(attack.specimen, attack.canary[0][None], attack.canary[1][None])


def _direction_of(specimen: Specimen, features: Tensor, targets: Tensor) -> Vector:
    """Unit vector along the canary's gradient at the head that is sent, shape (P,)."""
    load_arrays(specimen.head, task_for(specimen).head)
    loss = task_named(specimen.offer.model.task).loss
    values = clipped_sum(specimen.head, loss, features, targets, specimen.plan.terms.clipping_norm).values
    gradient = np.concatenate([values[name].flatten().numpy() for name in sorted(values)])
    return np.asarray(gradient / np.linalg.norm(gradient))


def _projection(releases: Releases, direction: Vector) -> Vector:
    return np.asarray((releases @ direction).sum(axis=1))


def _size(releases: Releases, direction: Vector) -> Vector:
    """Mean log length of the released sums; noise that comes and goes, or changes its scale, shows there."""
    return np.asarray(np.log(np.linalg.norm(releases, axis=2) + 1e-9).mean(axis=1))


def _smallness(releases: Releases, direction: Vector) -> Vector:
    return -_size(releases, direction)


def _specimen(epsilon: float, rate: float, rounds: int) -> Specimen:
    """The built-in linear head under a plan with this epsilon after all rounds."""
    changes = {
        "sampling_rate": rate,
        "rounds": rounds,
        "noise_multiplier": noise_multiplier_for(epsilon, 1e-5, rate, rounds),
        "clipping_norm": 0.1,  # less than the gradient of a mere label
    }
    return builtin_specimen().with_terms(**changes)


def _stream(seed: int, name: str, purpose: str) -> Randomness:
    return SeededRandomness(seed, name, 0, purpose)

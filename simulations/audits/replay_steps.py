"""Replay of the private steps: neighbouring data sets under the same randomness, for any kind of head.

A release is read as the noisy sum of clipped gradients that it stands for. With the noise turned off it shows the sum
itself; with the same noise in two data sets, whose records are sampled alike, only the records can make a difference.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from common.heads import load_arrays
from simulations.audits.practice import Company, Practice, Specimen, company, private_steps, task_for
from simulations.audits.probes import Noise, PatientSampling, Sampling, Who
from simulations.audits.replay_finding import Case, Finding, at_most, guarded, stated

ROUNDING = 2.0**-22  # of a float32 head, relative to its norm, with room for an upper head's own rounding
MANY_STEPS = 3
LOUD = 1e3  # by which a stranger's features are larger than a record's
UNCLIPPED = 32.0  # times the clipping norm; its inverse clips every record
MANY_RECORDS = 50  # of a patient that is added
MOST_REMOVED = 2  # records that are taken away, one at a time
SAMPLINGS = 3  # draws of who takes part that are looked at


def replay_steps(practice: Practice, specimen: Specimen) -> tuple[Finding, ...]:
    """Check the private steps of a round on one kind of head.

    Args:
        practice: whose ``update`` is looked at.
        specimen: head and records.
    """
    single = specimen.with_terms(steps_per_round=1)
    checks = {
        "sensitivity": lambda: _sensitivity(practice, single),
        "noise": lambda: _noise(practice, single),
        "empty batch": lambda: _empty_batch(practice, specimen.with_terms(steps_per_round=MANY_STEPS)),
        "sampling": lambda: _sampling(practice, _sampled(single)),
        "steps": lambda: _steps(practice, _sampled(specimen.with_terms(steps_per_round=MANY_STEPS))),
        "not finite": lambda: _not_finite(practice, single),
        "what leaves": lambda: _what_leaves(practice, single),
    }
    return tuple(guarded(name, specimen.name, look) for name, look in checks.items())


def strangers(specimen: Specimen) -> Iterator[tuple[str, Tensor, Tensor]]:
    """Units that nobody has and that pull as hard as they can: (what, features (n, ...), targets (n, ...))."""
    features, targets = specimen.features, specimen.targets
    other = targets[_another(targets)]
    kinds = (
        ("a record that says nothing but its label was added", torch.zeros_like(features[0]), other),
        ("a record with huge features was added", LOUD * features[0], other),
        ("a record with another's label was added", features[0], other),
        ("a record was added twice", features[0], targets[0]),
    )
    for what, own, target in kinds:
        if specimen.offer.terms.unit == "record":
            yield what, own[None], target[None]
        else:
            told = what.replace("a record", f"a patient of {MANY_RECORDS} records, each", 1)
            yield told, torch.stack([own] * MANY_RECORDS), torch.stack([target] * MANY_RECORDS)
    if specimen.offer.terms.unit != "record":
        rows = torch.arange(MANY_RECORDS) % len(targets)
        yield f"a patient of {MANY_RECORDS} unlike records was added", LOUD * features[rows], targets[rows]


def neighbours(specimen: Specimen) -> Iterator[tuple[str, Company, Company]]:
    """Pairs of data sets of which the first has one unit more: (what, more, less)."""
    whole = company(specimen)
    for what, features, targets in strangers(specimen):
        yield what, whole.joined_by_unit(features, targets), whole
        yield f"{what}, to no others", whole.nobody.joined_by_unit(features, targets), whole.nobody
    unit = specimen.offer.terms.unit
    removed = np.unique(whole.units)
    for number in removed[:MOST_REMOVED] if unit == "record" else removed:
        yield f"{unit} {number} was removed", whole, whole.take(whole.units != number)


_VIEWS: tuple[tuple[float, Who, float], ...] = (
    (1 / UNCLIPPED, "everyone", 0.0),
    (1.0, "sampled", 1.0),
    (UNCLIPPED, "everyone", 0.0),
)
"""Times the clipping norm, who takes part, how much of the noise is added."""


def _sensitivity(practice: Practice, specimen: Specimen) -> Finding:
    """One record more moves the clipped sum, and with the same noise the release, by at most C.

    It is looked at under the plan's C, under one that clips every record, and under one that clips none: each of these
    hides some mistakes.
    """
    cases = []
    for larger, who, scale in _VIEWS:
        norm = larger * specimen.plan.terms.clipping_norm
        looked_at = specimen.with_terms(clipping_norm=norm)
        seen: dict[bytes, NDArray[np.float64]] = {}
        for what, more, less in neighbours(looked_at):
            for place in (more, less):
                if place.key not in seen:
                    seen[place.key] = _sum(practice, looked_at, place, who, scale) / norm
            one, other = seen[more.key], seen[less.key]
            slack = ROUNDING * float(np.linalg.norm(one) + np.linalg.norm(other))
            cases.append(Case(float(np.linalg.norm(one - other)), slack, what))
    promise = f"one {specimen.offer.terms.unit} more or less moves the noisy sum by at most the clipping norm (1 C)"
    return at_most("sensitivity", specimen.name, promise, 1.0, cases)


def _noise(practice: Practice, specimen: Specimen) -> Finding:
    """Every released value carries its own share of the node's noise, C sigma over the plan's divisor."""
    cases = []
    present: tuple[Who, ...] = ("nobody", "everyone", "sampled")
    for (what, place), who in zip(_places(specimen), present, strict=True):
        noise = Noise(1.0, seed=1)
        noisy = _sum(practice, specimen, place, who, noise)
        plain = _sum(practice, specimen, place, who, 0.0)
        cases.append(Case(*noise_error(noisy, plain, noise, specimen, 1), f"{what} and {who} is taken"))
    promise = "each released value carries noise of its own from the node's source, C sigma over the plan's divisor"
    return at_most("noise", specimen.name, promise, 0.0, cases)


def _empty_batch(practice: Practice, specimen: Specimen) -> Finding:
    """Steps without a record are noised like any other, each by draws of its own."""
    cases = []
    for what, place in _places(specimen):
        noise = Noise(1.0, seed=2)
        noisy = _sum(practice, specimen, place, "nobody", noise)
        plain = _sum(practice, specimen, place, "nobody", 0.0)
        cases.append(Case(*noise_error(noisy, plain, noise, specimen, MANY_STEPS), what))
    promise = f"{MANY_STEPS} steps without a sampled record add the noise of {MANY_STEPS} steps"
    return at_most("empty batch", specimen.name, promise, 0.0, cases)


def noise_error(
    noisy: NDArray[np.float64], plain: NDArray[np.float64], noise: Noise, specimen: Specimen, steps: int
) -> tuple[float, float]:
    """By how much what was added differs from C sigma times the sum of the draws, in units of C sigma; and the slack.

    In which order the values were drawn does not matter, so both are sorted.
    """
    terms = specimen.plan.terms
    deviation = terms.clipping_norm * terms.noise_multiplier
    drawn = np.concatenate([part.flatten() for part in noise.drawn]) if noise.drawn else np.zeros(0)
    if drawn.size != steps * noisy.size:
        return float("inf"), 0.0
    expected = np.sort(drawn.reshape(steps, -1).sum(axis=0))
    error = np.abs(np.sort(noisy - plain) / deviation - expected).max(initial=0.0)
    return float(error), ROUNDING * float(np.abs(noisy).max() + np.abs(plain).max()) / deviation


def _sampling(practice: Practice, specimen: Specimen) -> Finding:
    """Those take part whose independent flag was drawn, and nobody else."""
    whole, norm = company(specimen), specimen.plan.terms.clipping_norm
    cases = []
    for seed in range(SAMPLINGS):
        sampling = whole.sampling("sampled", seed)
        found = _run(practice, specimen, whole, sampling, Noise(0.0))
        flags = sampling.flags[0] if sampling.flags else np.zeros(len(np.unique(whole.units)), dtype=bool)
        wanted = _sum(practice, specimen, whole.drawn(flags), "everyone", 0.0)
        slack = ROUNDING * float(np.linalg.norm(found) + np.linalg.norm(wanted)) / norm
        what = f"{int(flags.sum())} of {len(flags)} were drawn"
        cases.append(Case(float(np.linalg.norm(found - wanted)) / norm, slack, what))
    promise = "the sum is that of the records whose own flag was drawn, in units of C"
    return at_most("sampling", specimen.name, promise, 0.0, cases)


def _steps(practice: Practice, specimen: Specimen) -> Finding:
    """Each step asks for one flag a record at the plan's rate, and the number of steps is the plan's."""
    rate = specimen.plan.terms.sampling_rate
    for what, place in _places(specimen):
        sampling = place.sampling()
        _run(practice, specimen, place, sampling, Noise(1.0))
        expected = [(len(np.unique(place.units)), rate)] * MANY_STEPS
        if sampling.asked != expected:
            came = f"{len(sampling.asked)} times {sorted(set(sampling.asked))} (flags, rate), when {what}"
            return stated("steps", specimen.name, _STEPS.format(MANY_STEPS, rate), False, came)
    return stated("steps", specimen.name, _STEPS.format(MANY_STEPS, rate), True, "")


_STEPS = "a round of {} steps draws as many times one flag a record, at the plan's rate {:g}"


def _not_finite(practice: Practice, specimen: Specimen) -> Finding:
    """A record that is not finite changes nothing and stops nothing."""
    whole, norm = company(specimen), specimen.plan.terms.clipping_norm
    without = _sum(practice, specimen, whole, "everyone", 1.0)
    cases = []
    for value in (float("nan"), float("inf")):
        spoiled = whole.joined_by(torch.full_like(specimen.features[0], value), specimen.targets[0])
        error = np.linalg.norm(_sum(practice, specimen, spoiled, "everyone", 1.0) - without) / norm
        slack = ROUNDING * float(np.linalg.norm(without)) / norm
        cases.append(Case(float(error), slack, f"a record of {value} was added"))
    promise = "a record that is not finite leaves no trace, in units of C"
    return at_most("not finite", specimen.name, promise, 0.0, cases)


def _what_leaves(practice: Practice, specimen: Specimen) -> Finding:
    """Trainable parameters, and nothing beside them."""
    task, whole = task_for(specimen), company(specimen)
    load_arrays(specimen.head, task.head)
    randomness = whole.sampling(), Noise(1.0)
    released = practice.update(specimen.head, task, whole.records, specimen.plan, randomness)
    load_arrays(specimen.head, task.head)
    return leaving("what leaves", specimen.name, released, task.head)


def leaving(check: str, subject: str, released: dict[str, Tensor], sent: dict[str, Tensor]) -> Finding:
    """Whether a release has the names, shapes and type of the trainable parameters that were sent."""
    expected = {name: (tuple(value.shape), torch.float32) for name, value in sent.items()}
    came = {name: (tuple(value.shape), value.dtype) for name, value in released.items()}
    promise = "nothing leaves but the head's trainable parameters"
    odd = sorted(name for name in {*came, *expected} if came.get(name) != expected.get(name))
    return stated(check, subject, promise, not odd, f"more, less or another form of {', '.join(odd)}")


def _places(specimen: Specimen) -> list[tuple[str, Company]]:
    """Data sets of different sizes."""
    whole = company(specimen)
    return [
        ("no record is there", whole.take(np.zeros(len(whole.numbers), dtype=bool))),
        ("one record is there", whole.take(np.arange(1))),
        ("all records are there", whole),
    ]


def _sampled(specimen: Specimen) -> Specimen:
    """With a rate at which some records stay out, so that it can be seen which."""
    rate = specimen.plan.terms.sampling_rate
    return specimen.with_terms(sampling_rate=min(rate, 0.5))


def _sum(practice: Practice, specimen: Specimen, place: Company, who: Who, noise: Noise | float) -> NDArray[np.float64]:
    source = noise if isinstance(noise, Noise) else Noise(noise, seed=1)
    return _run(practice, specimen, place, place.sampling(who), source)


def _run(
    practice: Practice, specimen: Specimen, place: Company, sampling: Sampling | PatientSampling, noise: Noise
) -> NDArray[np.float64]:
    return private_steps(practice, specimen, task_for(specimen), place.records, (sampling, noise))


def _another(targets: Tensor) -> int:
    """A record whose target differs from the first one's."""
    differs = (targets != targets[0]).flatten(start_dim=1).any(dim=1) if targets.dim() > 1 else targets != targets[0]
    return int(torch.nonzero(differs)[0]) if bool(differs.any()) else 0

"""Attacks on sums over nodes: what the server with its colluders sees, and what whoever sees the model does.

Half of the rounds are played with one unit more at the first node. The server knows what its colluders sent and takes
it off, and the worst drop-outs that are allowed for happen: it sees the sum of what the honest survivors sent. Whoever
sees the model knows nobody's noise. Masks change no number, and there are none here.
"""

from __future__ import annotations

import time
from collections.abc import Collection, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from client.distributed_noise import rounded
from client.training import sampled_sum
from common.grafting import threads
from common.privacy.accountant import noise_multiplier_for
from common.privacy.noise import SeededRandomness
from common.privacy.shares import NoiseShares
from common.privacy.sums import epsilon_against_model
from common.tasks import task_named
from simulations.audits.alarms import ALARM, LOUD, Estimate
from simulations.audits.estimators import clopper_pearson, gaussian_fit
from simulations.audits.findings import Vector
from simulations.audits.practice import Company, Practice, Specimen, company
from simulations.audits.replay import builtin_specimen
from simulations.audits.sum_specimens import masked_by, shares_of, sum_specimen

EPSILON, DELTA = 8.0, 1e-5
RECORDS = 20  # of a patient that is there or not


@dataclass(frozen=True)
class SumAttack:
    """Who looks at which sums.

    Attributes:
        name: of the attack.
        unit: that is there or not.
        colluding: whether the attacker knows what the colluders sent.
    """

    name: str
    unit: str
    colluding: bool


ATTACKS = (
    SumAttack("server and colluders, a record", "record", True),
    SumAttack("model, a record", "record", False),
    SumAttack("server and colluders, a patient", "patient", True),
)


def audit_sums(practice: Practice, seed: int = 0, runs: int = 300, only: Collection[str] = ()) -> tuple[Estimate, ...]:
    """Attack what nodes mask.

    Args:
        practice: whose ``share`` and ``spent`` are looked at.
        seed: of everything that is drawn.
        runs: with the unit, and as many without it.
        only: names of attacks; all of them where empty.
    """
    with threads(1):
        return tuple(
            estimate
            for attack in ATTACKS
            if not only or attack.name in only
            for estimate in _estimates(practice, attack, seed, runs)
        )


def _estimates(practice: Practice, attack: SumAttack, seed: int, runs: int) -> Iterator[Estimate]:
    began, specimen = time.perf_counter(), _specimen(attack.unit)
    terms, shares = specimen.offer.terms, shares_of(specimen)
    nobody = company(specimen).nobody
    times = 1 if attack.unit == "record" else RECORDS
    somebody = nobody.joined_by_unit((LOUD * torch.eye(4)[:1]).repeat(times, 1), torch.ones(times, dtype=torch.int64))
    seen = shares.cohort.honest if attack.colluding else shares.cohort.survivors
    direction = _direction(specimen, somebody, shares)
    inside, outside = (
        np.array(
            [_opened(practice, specimen, [place] + [nobody] * (seen - 1), (seed, name, run)) for run in range(runs)]
        )
        @ direction
        for name, place in ((f"{attack.name} in", somebody), (f"{attack.name} out", nobody))
    )
    claimed = practice.spent(specimen.plan, 1) if attack.colluding else epsilon_against_model(terms, 1)
    bounds = {
        "Clopper-Pearson": clopper_pearson(inside, outside, DELTA, 1 - ALARM, seed=seed),
        "Gaussian fit": gaussian_fit(inside, outside, DELTA, 1 - ALARM)[0],
    }
    seconds = time.perf_counter() - began
    for name, bound in bounds.items():
        yield Estimate(attack.name, f"projection, {name}", bound, claimed, 2 * runs, seconds)


def _opened(practice: Practice, specimen: Specimen, places: list[Company], stream: tuple[int, str, int]) -> Vector:
    """The sum of what nodes with these records sent, in clipping norms."""
    shares, (seed, name, run) = shares_of(specimen), stream
    sent: list[NDArray[np.int64]] = [
        masked_by(
            practice,
            specimen,
            place,
            SeededRandomness(seed, f"{name}, node-{number}", run, "sampling"),
            SeededRandomness(seed, f"{name}, node-{number}", run, "share of noise"),
            f"node-{number}",
        )
        for number, place in enumerate(places)
    ]
    return shares.opened(shares.add(sent)) / specimen.offer.terms.clipping_norm


def _direction(specimen: Specimen, somebody: Company, shares: NoiseShares) -> Vector:
    """Unit vector along what the unit adds, shape (d,)."""
    loss = task_named(specimen.offer.model.task).loss
    sampling = somebody.sampling("everyone")
    values = sampled_sum(specimen.head, loss, somebody.records, specimen.offer.terms, sampling).values
    whole = rounded(torch.cat([values[name].flatten() for name in sorted(values)]).numpy(), shares).astype(np.float64)
    return np.asarray(whole / np.linalg.norm(whole))


def _specimen(unit: str) -> Specimen:
    """The built-in linear head under a plan of one sum with everybody in it."""
    changes = {
        "sampling_rate": 1.0,
        "rounds": 1,
        "noise_multiplier": noise_multiplier_for(EPSILON, DELTA, 1.0, 1),
        "clipping_norm": 0.1,
    }
    return sum_specimen(builtin_specimen().with_terms(**changes), unit)

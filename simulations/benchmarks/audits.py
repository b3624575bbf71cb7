"""How much of a known epsilon do attacks show? Threats times estimators, the median of twenty audits each.

The mechanism is that of ``configs/digits.toml``: ten nodes, thirty steps with every record (q = 1); and once more with
a fifth of them (q = 0.2). Its noise is what the accountant asks for, so that epsilon is known. The canaries are
gradient canaries. ``FEDGRAFT_SETTINGS="server q=1 4 8"`` chooses threats, sampling rates and epsilons.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
from rich.console import Console
from rich.table import Table

from common.privacy.accountant import Event, epsilon_pld, noise_multiplier_for
from simulations.audits.attacks import attack_gradient, attack_in_one_run
from simulations.audits.estimators import clopper_pearson, gaussian_fit
from simulations.audits.findings import THREATS, Claim, Threat, Vector
from simulations.audits.one_run import count_correct, one_run, one_run_fdp, plan_guesses
from simulations.audits.trade_offs import Family, sampled_gaussian_family, with_memory
from simulations.audits.two_sample import two_sample

EPSILONS, DELTA, CONFIDENCE = (1.0, 2.0, 4.0, 8.0), 1e-5, 0.95
NODES, STEPS, RATES = 10, 30, (1.0, 0.2)
AUDITS, HEADS = 20, 4000
CANARIES = 5000  # in one head
TOGETHER = (400, 256)  # heads, and canaries in each: one for every feature of the digits' backbone

Bounds = dict[str, tuple[float, float | None]]


@dataclass(frozen=True)
class Planned:
    """What is fixed before the audits of one mechanism.

    Attributes:
        claim: of the mechanism.
        threat: who attacks.
        family: that it is one of.
        guesses: canaries -> how many guesses to make, without the family and with it.
    """

    claim: Claim
    threat: Threat
    family: Family
    guesses: Mapping[int, tuple[int, int]]


@dataclass(frozen=True)
class Measured:
    """Twenty audits by one estimator.

    Attributes:
        bounds: lower bounds, shape (20,).
        estimate: median point estimate; None where there is none.
        seconds: median time of an audit, attack and estimate.
    """

    bounds: Vector
    estimate: float | None
    seconds: float

    def __str__(self) -> str:
        """Median, and the least and the greatest of all."""
        middle, estimate = float(np.median(self.bounds)), "" if self.estimate is None else f" ({self.estimate:.2f})"
        return f"{middle:.2f}{estimate} {self.bounds.min():.2f}–{self.bounds.max():.2f}"


def main() -> None:
    """Print a table for each sampling rate."""
    chosen = os.environ.get("FEDGRAFT_SETTINGS", "").split()
    threats = [name for name in THREATS if name in chosen] or list(THREATS)
    rates = [rate for rate in RATES if f"q={rate:g}" in chosen] or list(RATES)
    epsilons = [epsilon for epsilon in EPSILONS if f"{epsilon:g}" in chosen] or list(EPSILONS)
    for rate in rates:
        families = with_memory(sampled_gaussian_family(rate, STEPS, DELTA))
        columns = [f"ε = {epsilon:g}" for epsilon in epsilons]
        table = Table("threat", "estimator", *columns, "s", title=_title(rate))
        for threat in threats:
            found = [_audit(_plan(threat, rate, epsilon, families)) for epsilon in epsilons]
            for method in found[0]:
                each = [one[method] for one in found]
                table.add_row(threat, method, *map(str, each), f"{np.mean([one.seconds for one in each]):.2f}")
        Console(width=170).print(table)


def _title(rate: float) -> str:
    return (
        f"lower bounds at {100 * CONFIDENCE:g} %, δ = {DELTA:g}, {NODES} nodes, {STEPS} steps, q = {rate:g}; median "
        f"(point estimate) least–greatest of {AUDITS} audits"
    )


def _plan(threat: Threat, rate: float, epsilon: float, family: Family) -> Planned:
    sigma = noise_multiplier_for(epsilon, DELTA, rate, STEPS)
    truth = epsilon_pld([Event(sigma, rate, STEPS)], DELTA)
    claim = Claim(truth, DELTA, "record", "local", STEPS, rate, sigma, 1.0)
    expected = attack_in_one_run(claim, threat, canaries=50_000, nodes=NODES, seed=10**6)[0]
    sizes = [CANARIES, *([TOGETHER[0] * TOGETHER[1]] if threat == "server" else [])]
    guesses = {
        size: (
            plan_guesses(expected, size, DELTA, CONFIDENCE, None),
            plan_guesses(expected, size, DELTA, CONFIDENCE, family),
        )
        for size in sizes
    }
    return Planned(claim, threat, family, guesses)


def _audit(planned: Planned) -> dict[str, Measured]:
    """Estimator -> what it made of the audits."""
    bounds: dict[str, list[tuple[float, float | None]]] = {}
    seconds: dict[str, list[float]] = {}
    for seed in range(AUDITS):
        attacks = [_many_heads, _one_head, *([_many_canaries] if planned.threat == "server" else [])]
        for attack in attacks:
            began = time.perf_counter()
            estimators = attack(planned, seed)
            attacked = time.perf_counter() - began
            for method, estimate in estimators.items():
                began = time.perf_counter()
                bounds.setdefault(method, []).append(estimate())
                seconds.setdefault(method, []).append(attacked + time.perf_counter() - began)
    return {
        method: Measured(
            np.array([bound for bound, _ in found]),
            None if found[0][1] is None else float(np.median([estimate or 0.0 for _, estimate in found])),
            float(np.median(seconds[method])),
        )
        for method, found in bounds.items()
    }


Estimators = dict[str, Callable[[], tuple[float, float | None]]]


def _many_heads(planned: Planned, seed: int) -> Estimators:
    """4,000 heads, half of them with one canary."""
    claim, family = planned.claim, planned.family
    inside, outside = attack_gradient(claim, planned.threat, heads=HEADS, nodes=NODES, parameters=4, seed=seed)
    return {
        "Clopper–Pearson": lambda: (clopper_pearson(inside, outside, DELTA, CONFIDENCE, seed=seed), None),
        "both rates": lambda: (two_sample(inside, outside, DELTA, CONFIDENCE, seed=seed), None),
        "both rates, family": lambda: (two_sample(inside, outside, DELTA, CONFIDENCE, seed=seed, family=family), None),
        "Gaussian fit": lambda: gaussian_fit(inside, outside, DELTA, CONFIDENCE),
    }


def _one_head(planned: Planned, seed: int) -> Estimators:
    """One head, with about half of 5,000 canaries."""
    return _in_one_run(planned, seed, 1, CANARIES, f"one run, {CANARIES:,} canaries")


def _many_canaries(planned: Planned, seed: int) -> Estimators:
    """400 heads, each with about half of 256 canaries."""
    return _in_one_run(planned, seed, *TOGETHER, f"one run, {TOGETHER[0]} heads x {TOGETHER[1]}")


def _in_one_run(planned: Planned, seed: int, heads: int, canaries: int, name: str) -> Estimators:
    claim, total = planned.claim, heads * canaries
    scores, coins = attack_in_one_run(claim, planned.threat, canaries=canaries, nodes=NODES, seed=seed, heads=heads)
    plain, shaped = planned.guesses[total]
    tosses = coins.astype(np.float64)

    def by_epsilon() -> tuple[float, None]:
        return one_run(count_correct(scores, tosses, plain), plain, total, DELTA, CONFIDENCE), None

    def by_family() -> tuple[float, None]:
        correct = count_correct(scores, tosses, shaped)
        return one_run_fdp(correct, shaped, total, planned.family, CONFIDENCE), None

    return {name: by_epsilon, f"{name}, family": by_family}

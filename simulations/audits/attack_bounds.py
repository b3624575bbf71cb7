"""From an attacker's scores to lower bounds: every estimator, at the confidence asked for and at the alarm's."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from time import perf_counter

import numpy as np
from numpy.typing import NDArray

from simulations.audits.attack_request import ONE_RUN, ceiling
from simulations.audits.audit_report import ALARM_LEVEL, Bound
from simulations.audits.estimators import GAUSSIAN_ASSUMPTION, clopper_pearson, gaussian_fit
from simulations.audits.findings import Claim, LowerBound, Threat, Vector
from simulations.audits.one_run import can_show, count_correct, one_run, one_run_fdp, plan_guesses
from simulations.audits.trade_offs import Family, sampled_gaussian_family, with_memory
from simulations.audits.two_sample import two_sample

MANY_HEADS = ("clopper-pearson", "two-sample", "two-sample-fdp", "gaussian-fit")


@dataclass(frozen=True, eq=False)
class Scored:
    """What one attack gave.

    Attributes:
        threat: who attacked.
        canary: with what.
        inside: scores of heads with the canary, shape (m,).
        outside: of heads without it, shape (m',).
        heads: how many were trained.
        seconds: that training them and scoring took.
    """

    threat: Threat
    canary: str
    inside: Vector
    outside: Vector
    heads: int
    seconds: float


def one_run_can_show(method: str, canaries: int, delta: float, confidence: float) -> bool:
    """Whether a method of ``ONE_RUN`` would show anything with this confidence if no guess were wrong."""
    return can_show(canaries, delta, confidence, family=method == "one-run-fdp")


def family_of(claim: Claim) -> Family:
    """The mechanisms among which the claimed one is a member: as many Gaussian steps, of unknown noise."""
    return with_memory(sampled_gaussian_family(claim.sampling_rate, claim.steps, claim.delta))


def many_heads(scored: Scored, methods: Sequence[str], claim: Claim, confidence: float, family: Family) -> list[Bound]:
    """Bound epsilon by scores of many heads, with every method of ``MANY_HEADS`` that is asked for.

    Args:
        scored: of the attack.
        methods: names.
        claim: of the mechanism.
        confidence: one-sided.
        family: see ``family_of``.
    """
    found = []
    for method in (name for name in MANY_HEADS if name in methods):
        began = perf_counter()
        low, estimate = _estimate(method, scored, claim, confidence, family)
        sure = (
            _estimate(method, scored, claim, 1 - ALARM_LEVEL, family)[0] if _may_alarm(method, scored, claim) else None
        )
        most = ceiling(min(len(scored.inside), len(scored.outside)), claim.delta, confidence)
        bound = _bound(scored, method, low, estimate, claim, confidence, _assumption(method, family))
        spent = scored.seconds + perf_counter() - began
        found.append(_timed(Bound(bound, sure, most if method == "clopper-pearson" else None), spent))
    return found


def one_run_bounds(
    scored: Scored,
    included: NDArray[np.bool_],
    scores: Vector,
    expected: Vector,
    methods: Sequence[str],
    claim: Claim,
    confidence: float,
    family: Family,
) -> list[Bound]:
    """Bound epsilon by the guesses on the many canaries of one run, with every method of ``ONE_RUN`` that is asked for.

    What an alarm goes by is left out where even right guesses alone could not raise one.

    Args:
        scored: of the attack.
        included: which canaries took part, shape (m,).
        scores: log-likelihood ratios, shape (m,).
        expected: of canaries of another run, by which the number of guesses is fixed beforehand, shape (n,).
        methods: names.
        claim: of the mechanism.
        confidence: one-sided.
        family: see ``family_of``.
    """
    found = []
    for method in (name for name in ONE_RUN if name in methods):
        began = perf_counter()
        low = _guessed(method, included, scores, expected, claim, confidence, family)
        loud = one_run_can_show(method, len(scores), claim.delta, 1 - ALARM_LEVEL)
        sure = _guessed(method, included, scores, expected, claim, 1 - ALARM_LEVEL, family) if loud else None
        bound = _bound(scored, method, low, None, claim, confidence, _assumption(method, family))
        found.append(_timed(Bound(bound, sure, None), scored.seconds + perf_counter() - began))
    return found


def _guessed(
    method: str,
    included: NDArray[np.bool_],
    scores: Vector,
    expected: Vector,
    claim: Claim,
    confidence: float,
    family: Family,
) -> float:
    supposed = family if method == "one-run-fdp" else None
    guesses = plan_guesses(expected, len(scores), claim.delta, confidence, supposed)
    correct = count_correct(scores, included.astype(np.float64), guesses)
    if supposed is not None:
        return one_run_fdp(correct, guesses, len(scores), supposed, confidence)
    return one_run(correct, guesses, len(scores), claim.delta, confidence)


def _estimate(
    method: str, scored: Scored, claim: Claim, confidence: float, family: Family
) -> tuple[float, float | None]:
    """A lower bound, and the point estimate where the method has one."""
    inside, outside, delta = scored.inside, scored.outside, claim.delta
    if method == "clopper-pearson":
        return clopper_pearson(inside, outside, delta, confidence), None
    if method == "gaussian-fit":
        return gaussian_fit(inside, outside, delta, confidence)
    supposed = family if method == "two-sample-fdp" else None
    return two_sample(inside, outside, delta, confidence, family=supposed), None


def _assumption(method: str, family: Family) -> str | None:
    if method == "gaussian-fit":
        return GAUSSIAN_ASSUMPTION
    return family.name if method.endswith("-fdp") else None


def _may_alarm(method: str, scored: Scored, claim: Claim) -> bool:
    """Whether the method's bound holds of every mechanism that does as it claims.

    A family has the claimed mechanism among its members. Scores are normal for gradient canaries that are in every
    step; those of records need not be.
    """
    return method != "gaussian-fit" or (scored.canary == "gradient" and claim.sampling_rate >= 1)


def _bound(
    scored: Scored,
    method: str,
    low: float,
    estimate: float | None,
    claim: Claim,
    confidence: float,
    assumption: str | None,
) -> LowerBound:
    return LowerBound(
        threat=scored.threat,
        canary=scored.canary,
        method=method,
        epsilon=low,
        estimate=estimate,
        delta=claim.delta,
        confidence=confidence,
        assumption=assumption,
        heads=scored.heads,
        seconds=scored.seconds,
        scores_in=scored.inside,
        scores_out=scored.outside,
    )


def _timed(bound: Bound, seconds: float) -> Bound:
    return replace(bound, found=replace(bound.found, seconds=seconds))

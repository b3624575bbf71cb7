"""Lower bounds through the private steps that a node runs, one round after another, so that a mistake in them shows."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from simulations.audits.alarms import ALARM, Estimate, audit_steps
from simulations.audits.practice import Practice
from simulations.audits.replay_finding import STOP, Finding, stated
from simulations.audits.sum_alarms import audit_sums

SUBJECT = "linear head on four features"


def attack_steps(practice: Practice, seed: int) -> tuple[Finding, ...]:
    """Attack the private steps of a practice, a few hundred heads each with and without a record.

    Bounds from gradient canaries come from arithmetic for thousands of heads at once. These do not: every head is
    trained by ``practice.update``, under plans of its own, in about two seconds.

    Args:
        practice: whose private steps and books are looked at.
        seed: of everything that is drawn.

    Returns:
        A finding for each bound; a practice that keeps its promise fails each with probability ``ALARM`` at most.
    """
    return _findings(lambda: audit_steps(practice, seed))


def attack_sums(practice: Practice, seed: int) -> tuple[Finding, ...]:
    """The same for sums over nodes: see ``simulations.audits.sum_alarms``."""
    return _findings(lambda: audit_sums(practice, seed))


def _findings(attacked: Callable[[], Iterable[Estimate]]) -> tuple[Finding, ...]:
    try:
        return tuple(_finding(estimate) for estimate in attacked())
    except Exception as error:  # steps that stop are a finding, too
        came = f"they stopped with {type(error).__name__}: {error}"
        return (stated("private steps under attack", SUBJECT, "private steps end, whatever the records", False, came),)


def _finding(estimate: Estimate) -> Finding:
    """One bound beside what the books claim."""
    promise = (
        f"{estimate.heads} heads through the private steps show no more epsilon than the {estimate.claimed:.4g} that "
        f"their books claim, with {100 * (1 - ALARM):g} % confidence"
    )
    came = f"they show at least {estimate.epsilon:.4g}"
    sentence = f"{promise}: not so, {came}; {STOP}" if estimate.alarm else f"{promise}: {came}"
    check = f'attack "{estimate.attack}": {estimate.estimator}'
    return Finding(check, SUBJECT, not estimate.alarm, estimate.epsilon, estimate.claimed, sentence)

"""One audit for the shipped code and for every mutant: all replay checks, all attacks, and what they say."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from dataclasses import dataclass

from simulations.audits.alarms import Estimate, audit_rounds, audit_steps
from simulations.audits.practice import Practice
from simulations.audits.replay import builtin_replay
from simulations.audits.replay_finding import Finding
from simulations.audits.sum_alarms import audit_sums


@dataclass(frozen=True)
class Killing:
    """What an audit says of one practice.

    Attributes:
        name: of the practice.
        killers: checks that do not hold and attacks that raised an alarm.
        margin: the clearest of them in figures; a dash where the check has none.
        seconds: of processor time that the audit took.
    """

    name: str
    killers: tuple[str, ...]
    margin: str
    seconds: float


def kill(name: str, practice: Practice) -> Killing:
    """Audit a practice in full."""
    began = time.process_time()
    failed = [finding for finding in builtin_replay(practice) if not finding.holds]
    estimates = (*audit_steps(practice), *audit_rounds(practice), *audit_sums(practice))
    raised = [estimate for estimate in estimates if estimate.alarm]
    killers = list(dict.fromkeys(f"replay: {finding.check}" for finding in failed))
    killers += [f"{estimate.attack} ({estimate.estimator})" for estimate in raised]
    margins = [*map(_figure, failed), *map(_ratio, raised)]
    best = next((margin for margin in margins if margin), "–")
    return Killing(name, tuple(killers), best, time.process_time() - began)


def _figure(finding: Finding) -> str:
    """In figures, how far a check was from what is promised."""
    if finding.measured is None or not math.isfinite(finding.measured):
        return ""
    if finding.margin is None:
        return f"off by {finding.measured:.3g} where nothing is allowed"
    return f"{finding.margin:.3g} times what is allowed"


def _ratio(estimate: Estimate) -> str:
    return f"ε ≥ {estimate.epsilon:.3g} where {estimate.claimed:.3g} is claimed"


def pitfall_rows(page: str) -> Iterator[str]:
    """First cells of the tables of a page of pitfalls."""
    for line in page.splitlines():
        if line.startswith("| ") and not line.startswith("| Pitfall"):
            yield line.split("|")[1].strip()

"""The audit as JSON, for machines: every number of the page, and the scores that the bounds were computed from."""

from __future__ import annotations

import json
import math
from dataclasses import asdict
from typing import Any

import numpy as np
from numpy.typing import NDArray

from simulations.audits.audit_report import words
from simulations.audits.audit_report.audit import ALARM_LEVEL, Audit, Bound, MembershipTest
from simulations.audits.findings import Claim, Vector

FORMAT = "fedgraft audit 1"
BINS = 40
POINTS = 400  # of a curve


def to_dict(audit: Audit, *, scores: bool = True) -> dict[str, Any]:
    """Return an audit as JSON values.

    Args:
        audit: finished.
        scores: whether to include the attackers' scores, from which every bound can be computed again.

    Returns:
        Plain values; what is infinite, or was not computed, is None. Of single records, only how many are how
        vulnerable.
    """
    return {
        "format": FORMAT,
        "alarm": words.broken(audit),
        "alarms": [words.refuted(audit.claim, one) for one in audit.alarms],
        "alarm_level": ALARM_LEVEL,
        "verdict": words.verdict(audit),
        "claim": {name: number(value) for name, value in asdict(audit.claim).items()},
        "bounds": [bound(audit.claim, one) for one in audit.bounds],
        **({"attacks": attacks(audit)} if scores else {}),
        "memberships": [membership(test) for test in audit.memberships],
        "reconstructions": [asdict(one) for one in audit.reconstructions],
        "shipped_steps": [{name: number(value) for name, value in asdict(found).items()} for found in audit.steps],
        "replay": [{name: number(value) for name, value in asdict(check).items()} for check in audit.checks],
        "not_run": dict(audit.not_run),
        "origin": origin(audit),
        "cost": {"heads": audit.heads, "seconds": round(audit.seconds, 3)},
    }


def to_bytes(audit: Audit) -> bytes:
    """Return ``report.json``."""
    return (json.dumps(to_dict(audit), indent=1, allow_nan=False, ensure_ascii=False) + "\n").encode()


def number(value: Any) -> Any:
    """Return None instead of an infinity."""
    return None if isinstance(value, float) and not math.isfinite(value) else value


def bound(claim: Claim, one: Bound) -> dict[str, Any]:
    """Return one lower bound."""
    found = one.found
    return {
        "threat": found.threat,
        "sees": claim.sees(found.threat),
        "canary": found.canary,
        "method": found.method,
        "epsilon": number(found.epsilon),
        "estimate": number(found.estimate),
        "delta": found.delta,
        "confidence": found.confidence,
        "assumption": found.assumption,
        "epsilon_at_alarm_level": None if one.sure is None else number(one.sure),
        "most_that_the_scores_could_show": number(one.most),
        "heads": found.heads,
        "seconds": round(found.seconds, 3),
    }


def attacks(audit: Audit) -> list[dict[str, Any]]:
    """Return each attack's scores once, however many methods read them."""
    known = {(one.found.threat, one.found.canary, len(one.found.scores_in)): one.found for one in audit.bounds}
    return [
        {
            "threat": found.threat,
            "canary": found.canary,
            "scores_in": short(found.scores_in),
            "scores_out": short(found.scores_out),
        }
        for found in known.values()
    ]


def short(values: Vector) -> list[float]:
    """Return six significant digits of each value."""
    return [float(f"{value:.6g}") for value in values]


def membership(test: MembershipTest) -> dict[str, Any]:
    """Return one membership test; of single records only a histogram."""
    found = test.found
    known = found.vulnerability[np.isfinite(found.vulnerability)]
    points = thinned(found.false_positive_rates)
    counts, edges = np.histogram(known, bins=BINS)
    return {
        "method": found.method,
        "threat": test.threat,
        "private": test.private,
        "false_positive_rates": short(found.false_positive_rates[points]),
        "true_positive_rates": short(found.true_positive_rates[points]),
        "area": found.area,
        "true_positive_rate_at": {f"{rate:g}": value for rate, value in found.true_positive_rate_at.items()},
        "vulnerability": {"counts": [int(count) for count in counts], "edges": short(edges)},
        "records": len(known),
        "heads": found.heads,
        "seconds": round(found.seconds, 3),
    }


def thinned(rates: Vector) -> NDArray[np.int64]:
    """Return indices of at most ``POINTS`` points of a curve, denser where rates are small; the ends are among them."""
    wanted = np.concatenate([[0.0], np.geomspace(1e-4, 1.0, POINTS - 2)])
    places = np.searchsorted(rates, wanted, side="right") - 1
    return np.unique(np.concatenate([np.maximum(places, 0), [0, len(rates) - 1]]))


def origin(audit: Audit) -> dict[str, Any]:
    """Return what was audited; the configuration in full, as its digest means little without it."""
    values = asdict(audit.origin)
    return {
        **values,
        "backbone": {"name": audit.origin.backbone[0], "digest": audit.origin.backbone[1]},
        "head": {"kind": audit.origin.head[0], "parameters": audit.origin.head[1]},
        "records": {"smallest_node": audit.origin.records[0], "largest_node": audit.origin.records[1]},
        "versions": dict(audit.origin.versions),
    }

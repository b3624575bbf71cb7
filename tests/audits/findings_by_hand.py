"""Audits put together by hand: what a report must be able to show."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from scipy.stats import norm

from simulations.audits.audit_report.audit import Audit, Bound, MembershipTest, Origin
from simulations.audits.findings import Claim, LowerBound, Membership, Reconstruction, Threat
from simulations.audits.replay_finding import Case, at_most, stated


def claim(**changes: Any) -> Claim:
    values: dict[str, Any] = {
        "epsilon": 3.0,
        "delta": 1e-5,
        "unit": "record",
        "trust": "local",
        "steps": 30,
        "sampling_rate": 1.0,
        "noise_multiplier": 8.6,
        "clipping_norm": 1.5,
    }
    return Claim(**{**values, **changes})


def bound(
    threat: Threat = "server",
    canary: str = "gradient",
    method: str = "clopper-pearson",
    *,
    epsilon: float = 1.1,
    estimate: float | None = 1.4,
    sure: float = 0.7,
    most: float | None = 5.9,
    distance: float = 0.66,
) -> Bound:
    rng = np.random.default_rng(len(threat) + len(canary))
    assumption = "the scores are Gaussian" if method == "gaussian-fit" else None
    scores = rng.normal(distance, 1, 2000), rng.normal(0, 1, 2000)
    found = LowerBound(threat, canary, method, epsilon, estimate, 1e-5, 0.95, assumption, 4000, 3.2, *scores)
    return Bound(found, sure, None if assumption else most)


def membership(*, private: bool, method: str = "lira-online") -> MembershipTest:
    distance = 0.2 if private else 1.6
    rates = np.geomspace(1e-4, 1, 300)
    found = norm.sf(norm.isf(rates) - distance)
    exposed = np.clip(np.random.default_rng(0).beta(2, 8 if private else 3, 120), 0, 1)
    at = {0.01: float(norm.sf(norm.isf(0.01) - distance)), 0.001: float(norm.sf(norm.isf(0.001) - distance))}
    area = float(norm.cdf(distance / math.sqrt(2)))
    return MembershipTest(Membership(method, rates, found, area, at, exposed, 256, 11.0), "model", private)


def origin(**changes: Any) -> Origin:
    values: dict[str, Any] = {
        "name": "digits",
        "config": '[federation]\nnodes = 10\n\n[data]\nsource = "digits"\n',
        "config_digest": "1a" * 32,
        "data": "digits",
        "data_digest": "2b" * 32,
        "backbone": ("embedded/glyph", "3c" * 32),
        "head": ("linear", 2570),
        "nodes": 10,
        "records": (143, 144),
        "audited": "node-000",
        "seed": 0,
        "noise": "seeded",
        "versions": {"fedgraft": "0.1.0", "torch": "2.15"},
        "written": "2026-11-21T12:00:00+00:00",
        "confidential": False,
    }
    return Origin(**{**values, **changes})


BOUNDS = (
    bound(),
    bound(method="gaussian-fit", epsilon=2.6, estimate=2.85, sure=2.3),
    bound("peer", epsilon=0.1, estimate=0.3, sure=0.0, distance=0.2),
    bound("model", "mislabelled", epsilon=0.0, estimate=0.02, sure=0.0, distance=0.05),
    bound(method="one-run", epsilon=0.9, estimate=None, sure=0.4),
)


CHECKS = (
    at_most("sensitivity", "linear head", "one record moves the sum by at most C", 1.0, [Case(1.0, 1e-6, "added")]),
    stated("repeat", "linear head", "the same task is answered with the same bytes", True, ""),
)
FAILED = at_most("sensitivity", "linear head", "one record moves the sum by at most C", 1.0, [Case(7.0, 0, "added")])


def audit(**changes: Any) -> Audit:
    values: dict[str, Any] = {
        "claim": claim(),
        "bounds": BOUNDS,
        "memberships": tuple(
            membership(private=private, method=method)
            for private in (True, False)
            for method in ("lira-online", "lira-offline", "rmia")
        ),
        "reconstructions": (
            Reconstruction("class counts", True, 6.1, 5.2),
            Reconstruction("class counts", False, 0.04, 5.2),
            Reconstruction("features", True, 0.97, 0.99),
            Reconstruction("features", False, 0.001, 0.99),
        ),
        "checks": CHECKS,
        "not_run": {},
        "origin": origin(),
        "seconds": 61.5,
    }
    return Audit(**{**values, **changes})


def broken_audit() -> Audit:
    return audit(bounds=(*BOUNDS, bound("peer", "records", epsilon=4.4, estimate=5.0, sure=3.6, distance=2.0)))

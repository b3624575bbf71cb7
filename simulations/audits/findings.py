"""What an audit finds: plain values that the terminal, the report and scripts read alike."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

Threat = Literal["server", "peer", "model"]
Vector = NDArray[np.float64]

THREATS: dict[Threat, str] = {
    "server": "sees every update of a node",
    "peer": "sees the global head before and after each round",
    "model": "sees the final head only",
}
OF_SUMS: dict[Threat, str] = {
    "server": "sees every sum over nodes, and knows the noise of the colluders that the plan allows for",
    "peer": "sees every sum over nodes, and knows its own share of the noise",
    "model": "sees the final head only, and knows no node's noise",
}
"""The same under trust secagg."""


@dataclass(frozen=True)
class Claim:
    """The promise that is audited.

    Attributes:
        epsilon: upper bound, at ``delta``; infinity without noise.
        delta: of the promise.
        unit: privacy unit.
        trust: trust model.
        steps: noisy steps that it composes over.
        sampling_rate: q.
        noise_multiplier: sigma.
        clipping_norm: C.
        survivors: nodes whose shares of noise are in a sum at least, under trust ``"secagg"``; else 0.
        honest: of these, whose shares the server and its colluders do not know.
        epsilon_against_model: against whoever knows no node's noise, under trust ``"secagg"``.
    """

    epsilon: float
    delta: float
    unit: str
    trust: str
    steps: int
    sampling_rate: float
    noise_multiplier: float
    clipping_norm: float
    survivors: int = 0
    honest: int = 0
    epsilon_against_model: float | None = None

    def promised(self, threat: Threat) -> float:
        """Epsilon against this attacker."""
        if threat == "model" and self.epsilon_against_model is not None:
            return self.epsilon_against_model
        return self.epsilon

    def sees(self, threat: Threat) -> str:
        """What this attacker sees, as a clause."""
        return (OF_SUMS if self.survivors else THREATS)[threat]


@dataclass(frozen=True)
class LowerBound:
    """What one estimator makes of one attack.

    Attributes:
        threat: who attacks.
        canary: what is inserted, or not: ``"gradient"``, ``"mislabelled"``, ``"out-of-distribution"``, ``"records"``.
        method: ``"clopper-pearson"``, ``"gaussian-fit"``, ``"two-sample"``, ``"two-sample-fdp"``, ``"one-run"`` or
            ``"one-run-fdp"``.
        epsilon: lower confidence bound at ``delta``, >= 0.
        estimate: the point estimate; None where the method has none.
        delta: at which both hold.
        confidence: one-sided, with which ``epsilon`` is no larger than the truth.
        assumption: what the confidence is conditional on; None where on nothing.
        heads: how many were trained for it.
        seconds: what it took.
        scores_in: the attacker's scores where the canary took part, shape (m,).
        scores_out: and where it did not, shape (m',).
    """

    threat: Threat
    canary: str
    method: str
    epsilon: float
    estimate: float | None
    delta: float
    confidence: float
    assumption: str | None
    heads: int
    seconds: float
    scores_in: Vector
    scores_out: Vector


@dataclass(frozen=True)
class Membership:
    """Membership inference on real records.

    Attributes:
        method: ``"lira-online"``, ``"lira-offline"`` or ``"rmia"``.
        false_positive_rates: ascending, shape (k,).
        true_positive_rates: at each of them, shape (k,).
        area: under the curve.
        true_positive_rate_at: at 1 % and 0.1 % false positives: rate -> rate.
        vulnerability: of each attacked record, its own true positive rate or advantage, shape (n,); sensitive.
        heads: shadow heads that were trained.
        seconds: what it took.
    """

    method: str
    false_positive_rates: Vector
    true_positive_rates: Vector
    area: float
    true_positive_rate_at: dict[float, float]
    vulnerability: Vector
    heads: int
    seconds: float


@dataclass(frozen=True)
class Reconstruction:
    """What a server reads from one update of a head.

    Attributes:
        target: ``"class counts"``, ``"class features"`` (their means) or ``"features"`` of a record alone at its node.
        private: whether the update was noised as the plan says.
        error: mean absolute error of counts, or 1 - cosine similarity of features; 0 is a perfect reading.
        chance: the same error of a guess that ignores the update.
    """

    target: str
    private: bool
    error: float
    chance: float

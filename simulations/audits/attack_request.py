"""What an auditor asks for: which attackers, canaries and methods, how sure, with how many heads."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import cast

import numpy as np

from common.config_mistakes import closest
from common.errors import ConfigError
from simulations.audits.audit_report import ALARM_LEVEL
from simulations.audits.estimators import clopper_pearson
from simulations.audits.findings import THREATS, Threat
from simulations.audits.one_run import canaries_needed

CANARIES = ("gradient", "mislabelled", "out-of-distribution", "records")
BOUNDS = ("clopper-pearson", "two-sample", "two-sample-fdp", "gaussian-fit", "one-run", "one-run-fdp")
MEMBERSHIPS = ("lira-online", "lira-offline", "rmia")
METHODS = (*BOUNDS, *MEMBERSHIPS)
ONE_RUN = ("one-run", "one-run-fdp")
HEADS = 4000
LEAST_SHADOWS = 64
MOST_HEADS = 10_000_000


@dataclass(frozen=True)
class Request:
    """What is asked for.

    Attributes:
        threats: who attacks.
        canaries: what is inserted, or not.
        methods: estimators of epsilon, and membership tests.
        confidence: one-sided, of each bound.
        heads: trained for each attack on the mechanism, half of them with the canary.
        named: what was asked for by name: where it cannot be done, it is refused and not passed over.
    """

    threats: tuple[Threat, ...]
    canaries: tuple[str, ...]
    methods: tuple[str, ...]
    confidence: float
    heads: int
    named: frozenset[str] = frozenset()

    @property
    def bounds(self) -> tuple[str, ...]:
        """The estimators of epsilon that are asked for."""
        return tuple(name for name in BOUNDS if name in self.methods)

    @property
    def memberships(self) -> tuple[str, ...]:
        """The membership tests that are asked for."""
        return tuple(name for name in MEMBERSHIPS if name in self.methods)


def make_request(
    threat: str, methods: Sequence[str], canaries: Sequence[str], confidence: float, heads: int
) -> Request:
    """Check what was asked for on the command line.

    Args:
        threat: a name of ``THREATS``, or ``"all"``.
        methods: names, or empty for all.
        canaries: names, or empty for all.
        confidence: above 0.5 and below 1.
        heads: for each attack.

    Raises:
        ConfigError: there is no such thing, or what was named has nothing to work with.
    """
    threats = tuple(THREATS) if threat == "all" else _known("--threat", [threat], (*THREATS, "all"))
    if not 0.5 < confidence < 1:
        raise ConfigError(f"--confidence must lie above 0.5 and below 1, got {confidence:g}; choose such as 0.95")
    if not 1 <= heads <= MOST_HEADS:
        raise ConfigError(f"--heads must be from 1 to {MOST_HEADS}, got {heads}; {HEADS} is a good start")
    request = Request(
        threats=cast(tuple[Threat, ...], threats),
        canaries=_known("--canary", canaries or CANARIES, CANARIES),
        methods=_known("--method", methods or METHODS, METHODS),
        confidence=confidence,
        heads=heads,
        named=frozenset((threat, *methods, *canaries)) - {"all"},
    )
    _check_pairs(request)
    return request


def _check_pairs(request: Request) -> None:
    """Refuse a method without a canary or an attacker that it can use, and a canary without a method."""
    came = f"--canary {', '.join(request.canaries)} and --threat {', '.join(request.threats)}"
    for method in (name for name in request.methods if name in request.named):
        if any(_suits(method, canary, threat) for canary in request.canaries for threat in request.threats):
            continue
        if method in ONE_RUN:
            raise ConfigError(f"--method {method} guesses at gradient canaries, got {came}; add --canary gradient")
        raise ConfigError(
            f"--method {method} looks for a node's own records in final heads, which the attackers server and model "
            f"have, got {came}; choose --canary records and --threat server, model or all"
        )
    for canary in (name for name in request.canaries if name in request.named):
        if not any(_suits(method, canary, threat) for method in request.methods for threat in request.threats):
            raise ConfigError(
                f"--canary {canary} needs a method that uses it, got --method {', '.join(request.methods)} and "
                f"--threat {', '.join(request.threats)}; add --method clopper-pearson, or leave the canary out"
            )


def _suits(method: str, canary: str, threat: Threat) -> bool:
    if method in MEMBERSHIPS:
        return canary == "records" and threat != "peer"
    return canary == "gradient" or method not in ONE_RUN


def check_heads(request: Request, delta: float) -> None:
    """Make sure that an attack that never errs would show something, at the confidence asked for and for an alarm.

    Raises:
        ConfigError: there are too few heads, and the sentence says how many are needed; or no number of heads is
            enough for a method that was named.
    """
    sure = max(request.confidence, 1 - ALARM_LEVEL)
    needed = 2 * scores_needed(delta, sure) if "clopper-pearson" in request.bounds else 0
    if request.heads < needed and needed >= (LEAST_SHADOWS if request.memberships else 0):
        raise ConfigError(
            f"--heads must be at least {needed}, half of them with the canary, so that an attack that never errs shows "
            f"anything at all with {percent(sure)} confidence (the bounds' {percent(request.confidence)}, the "
            f"alarm's {percent(1 - ALARM_LEVEL)}), got {request.heads}; train more, {HEADS} is a good start"
        )
    if request.memberships and request.heads < LEAST_SHADOWS:
        raise ConfigError(
            f"--heads must be at least {LEAST_SHADOWS} for membership tests, so that each record is in some heads and "
            f"not in others, got {request.heads}; train more, or name other methods by --method"
        )
    if "one-run" in request.named and canaries_needed(delta, request.confidence) is None:
        raise ConfigError(f"--method one-run does not suit: {out_of_reach(delta, request.confidence)}")


def out_of_reach(delta: float, confidence: float) -> str:
    """Say why guesses in one run, all of them right, do not show anything with this confidence."""
    return (
        f"delta {delta:g} alone allows guesses that are all right with a probability of about {4 * delta:g}, so that "
        f"{percent(confidence)} confidence is out of its reach, whatever the number of canaries; choose another method "
        "or less confidence"
    )


def percent(confidence: float) -> str:
    """Write a confidence level; no number of nines is rounded to 100.

    >>> percent(0.95), percent(1 - 1e-8)
    ('95 %', '99.999999 %')
    """
    return f"{100 * confidence:.12g} %"


@lru_cache(maxsize=64)
def scores_needed(delta: float, confidence: float) -> int:
    """The least number of scores of each kind from which a perfect attack shows an epsilon above zero."""
    low, high = 0, 1
    while ceiling(high, delta, confidence) <= 0:
        low, high = high, 2 * high
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if ceiling(middle, delta, confidence) <= 0 else (low, middle)
    return high


@lru_cache(maxsize=64)
def ceiling(scores: int, delta: float, confidence: float) -> float:
    """The bound that Clopper-Pearson gives when all of ``scores`` scores of each kind are told apart; 0 if too few."""
    spread = np.linspace(0.0, 0.1, scores)
    try:
        return clopper_pearson(1 + spread, spread - 1, delta, confidence)
    except ConfigError:
        return 0.0


def _known(option: str, names: Iterable[str], choices: Sequence[str]) -> tuple[str, ...]:
    chosen = tuple(dict.fromkeys(names))
    for name in chosen:
        if name not in choices:
            guess = closest(name, choices)
            hint = f"did you mean {guess}?" if guess else "choose one of them"
            raise ConfigError(f"{option} must be one of {', '.join(choices)}, got {name!r}; {hint}")
    return tuple(name for name in choices if name in chosen)

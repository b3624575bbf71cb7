"""What happened to one data set, read from the raw entries of its ledger: plans, charges, releases, caps.

It is read here once more, apart from ``common.privacy.statement``, so that what the two say can be compared.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from common.errors import FederationError
from common.privacy.entries import LedgerEntry, broken_chain
from common.privacy.plan import MAX_STEPS, PrivacyPlan
from simulations.audits.recompute import Steps


@dataclass(frozen=True)
class Charge:
    """One round that was paid for.

    Attributes:
        position: of the entry that reserved it.
        run_id: the server's name of the run.
        digest: of the plan.
        round: number of the round.
        head: digest of the head that the server sent.
        steps: noised steps.
        at: when it was reserved, UTC; None in a simulated ledger.
        committed: position of the entry that released it at most; None where that never came: spent for ever.
        committed_at: when, UTC.
        reply_sha256: of the reply that was made.
    """

    position: int
    run_id: str
    digest: str
    round: int
    head: str
    steps: int
    at: str | None
    committed: int | None = None
    committed_at: str | None = None
    reply_sha256: str | None = None


@dataclass(frozen=True)
class AcceptedPlan:
    """A plan as one run used it.

    Attributes:
        position: of its entry.
        run_id: the server's name of the run.
        plan: terms and declared size.
        at: when it was accepted, UTC; None in a simulated ledger.
        charges: of its rounds.
    """

    position: int
    run_id: str
    plan: PrivacyPlan
    at: str | None
    charges: tuple[Charge, ...] = ()

    @property
    def charged(self) -> Steps:
        """The noised steps that were paid for."""
        return self.steps(sum(charge.steps for charge in self.charges))

    def steps(self, count: int) -> Steps:
        """So many of its steps."""
        return Steps(self.plan.terms.noise_multiplier, self.plan.terms.sampling_rate, count)


@dataclass(frozen=True)
class Cap:
    """The operator's cap on epsilon, from one entry on, and who signed it off for which reason, where it says so."""

    position: int
    epsilon: float
    at: str | None
    signed_off_by: str | None = None
    reason: str | None = None


@dataclass(frozen=True)
class History:
    """A whole ledger.

    Attributes:
        dataset_id: as the operator declares it.
        delta: of the data set.
        plans: in the order in which they were accepted.
        caps: the first one, and each that replaced it.
        chain_head: hash of the last entry.
        entries: how many there are.
    """

    dataset_id: str
    delta: float
    plans: tuple[AcceptedPlan, ...]
    caps: tuple[Cap, ...]
    chain_head: str
    entries: int

    @property
    def charges(self) -> tuple[Charge, ...]:
        """All that was paid for, in order."""
        return tuple(sorted((one for plan in self.plans for one in plan.charges), key=lambda one: one.position))

    @property
    def adaptive(self) -> bool:
        """Whether a plan may have been chosen after seeing what another one released."""
        return sum(1 for plan in self.plans if plan.charges) > 1

    @property
    def timed(self) -> bool:
        """Whether charges carry times, as a deployed node's do."""
        return any(charge.at is not None for charge in self.charges)

    def until(self, position: int) -> History:
        """The history without charges from ``position`` on; plans without a charge left are dropped."""
        cut = [replace(one, charges=tuple(c for c in one.charges if c.position < position)) for one in self.plans]
        return replace(self, plans=tuple(one for one in cut if one.charges))


def history_of(entries: Sequence[LedgerEntry]) -> History:
    """Read a chain that was verified.

    Raises:
        PrivacyError: an entry does not hold what its kind must.
    """
    read = _Read()
    for entry in entries:
        try:
            read.take(entry)
        except (LookupError, TypeError, ValueError, OverflowError, RecursionError, FederationError) as error:
            raise broken_chain(f"entry {entry.position} makes no sense where it stands") from error
    plans = _with_charges(read.plans, read.charges)
    return History(read.dataset_id, read.delta, plans, tuple(read.caps), entries[-1].hash, len(entries))


@dataclass
class _Read:
    """What was read so far."""

    dataset_id: str = ""
    delta: float = 0.0
    plans: dict[tuple[str, str], AcceptedPlan] = field(default_factory=dict)
    charges: dict[int, Charge] = field(default_factory=dict)
    caps: list[Cap] = field(default_factory=list)

    def take(self, entry: LedgerEntry) -> None:
        body, position = entry.body, entry.position
        at = _text(body, "at") if "at" in body else None
        if entry.kind == "opened":
            self.dataset_id, self.delta = _text(body, "dataset_id"), _delta(body)
        if entry.kind in ("opened", "cap"):
            by, reason = (_text(body, key) if key in body else None for key in ("signed_off_by", "reason"))
            self.caps.append(Cap(position, _number(body, "epsilon_cap"), at, by, reason))
            if entry.kind == "cap" and {"dataset_id", "delta"} & set(body):
                raise ValueError("a cap changes nothing else")
        elif entry.kind == "plan":
            key = (_text(body, "run_id"), _text(body, "digest"))
            self.plans[key] = AcceptedPlan(position, key[0], PrivacyPlan.from_dict(body["plan"]), at)
        elif entry.kind == "reserve":
            self.charges[position] = _charge(body, position, at)
        elif entry.kind == "commit":
            charge, reply = self.charges[body["reservation"]], _text(body, "reply_sha256")
            self.charges[charge.position] = replace(charge, committed=position, committed_at=at, reply_sha256=reply)


def _with_charges(
    plans: Mapping[tuple[str, str], AcceptedPlan], charges: Mapping[int, Charge]
) -> tuple[AcceptedPlan, ...]:
    return tuple(
        replace(plan, charges=tuple(one for one in charges.values() if (one.run_id, one.digest) == key))
        for key, plan in plans.items()
    )


def _charge(body: Mapping[str, Any], position: int, at: str | None) -> Charge:
    steps, round = body["steps"], body["round"]
    if type(steps) is not int or type(round) is not int or not 0 < steps <= MAX_STEPS:
        raise ValueError("no round")
    run_id, digest, head = (_text(body, key) for key in ("run_id", "digest", "head"))
    return Charge(position, run_id, digest, round, head, steps, at)


def _text(body: Mapping[str, Any], key: str) -> str:
    value = body[key]
    if not isinstance(value, str):
        raise ValueError("no text")
    return value


def _number(body: Mapping[str, Any], key: str) -> float:
    value = body[key]
    if isinstance(value, bool) or not isinstance(value, int | float) or not (math.isfinite(value) and value > 0):
        raise ValueError("no number")
    return float(value)


def _delta(body: Mapping[str, Any]) -> float:
    value = _number(body, "delta")
    if value >= 1:
        raise ValueError("no delta")
    return value

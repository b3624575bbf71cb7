"""A finished audit: what was claimed, what the attacks found, and of which configuration, data and code."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from simulations.audits.findings import Claim, LowerBound, Membership, Reconstruction, Threat
from simulations.audits.replay_finding import Finding

ALARM_LEVEL = 1e-4
"""Chance, for each bound, that a mechanism which keeps its promise raises an alarm."""


@dataclass(frozen=True)
class Bound:
    """A lower bound with what an alarm goes by.

    Attributes:
        found: what the estimator made of the attack, at the confidence that was asked for.
        sure: the same bound at confidence 1 - ``ALARM_LEVEL``; None where what it rests on need not hold of a mechanism
            that does as it claims, so that no alarm may go by it.
        most: the bound that as many scores would give if the attack never erred, at the confidence asked for; None
            where the method has no such ceiling.
    """

    found: LowerBound
    sure: float | None
    most: float | None

    def breaks(self, claim: Claim) -> bool:
        """Whether the promise is refuted, at ``ALARM_LEVEL``."""
        return self.sure is not None and self.sure > claim.promised(self.found.threat)


@dataclass(frozen=True)
class MembershipTest:
    """Membership inference in one world.

    Attributes:
        found: how well records that took part were told from others.
        threat: what the attacker sees.
        private: whether the heads were trained as the plan says, or with neither clipping nor noise.
    """

    found: Membership
    threat: Threat
    private: bool


@dataclass(frozen=True)
class Origin:
    """What was audited, by what.

    Attributes:
        name: of the configuration.
        config: its TOML, in full.
        config_digest: SHA-256 of it.
        data: the source's name.
        data_digest: SHA-256 over every record and label, in order.
        backbone: reference and, after it, SHA-256.
        head: kind, and how many parameters are trained.
        nodes: how many.
        records: training records of the smallest and of the largest node.
        audited: the node whose records are attacked.
        seed: of the attacks; None draws from the operating system.
        noise: ``"seeded"`` or ``"system"``, of the run that the configuration describes.
        versions: of what computed.
        written: UTC, ISO 8601.
        confidential: whether real data were used.
    """

    name: str
    config: str
    config_digest: str
    data: str
    data_digest: str
    backbone: tuple[str, str]
    head: tuple[str, int]
    nodes: int
    records: tuple[int, int]
    audited: str
    seed: int | None
    noise: str
    versions: Mapping[str, str]
    written: str
    confidential: bool


@dataclass(frozen=True)
class Audit:
    """All that an audit found.

    Attributes:
        claim: what is promised.
        bounds: from attacks on the mechanism.
        memberships: on real records, with DP and, to compare, without.
        reconstructions: from single updates.
        checks: what a replay found.
        not_run: what was left out -> why.
        origin: what was audited.
        seconds: in all.
        steps: what attacks found that go through the shipped private steps, a bound each.
    """

    claim: Claim
    bounds: tuple[Bound, ...]
    memberships: tuple[MembershipTest, ...]
    reconstructions: tuple[Reconstruction, ...]
    checks: tuple[Finding, ...]
    not_run: Mapping[str, str]
    origin: Origin
    seconds: float
    steps: tuple[Finding, ...] = ()

    @property
    def alarms(self) -> tuple[Bound, ...]:
        """The bounds that refute the promise, the clearest first."""
        return tuple(sorted((one for one in self.bounds if one.breaks(self.claim)), key=lambda one: -(one.sure or 0.0)))

    @property
    def failed(self) -> tuple[Finding, ...]:
        """The findings about the code whose promise does not hold; bounds first."""
        return tuple(found for found in (*self.steps, *self.checks) if not found.holds)

    def best(self, *, conditional: bool) -> Bound | None:
        """The largest bound, of those that rest on an assumption or of those that rest on none."""
        found = [one for one in self.bounds if (one.found.assumption is not None) == conditional]
        return max(found, key=lambda one: one.found.epsilon, default=None)

    @property
    def heads(self) -> int:
        """How many heads were trained, each counted once however many estimators read it."""
        attacks = {(one.found.threat, one.found.canary, one.found.heads) for one in self.bounds}
        shadows = {(test.threat, test.private, test.found.heads) for test in self.memberships}
        return sum(heads for _, _, heads in (*attacks, *shadows))

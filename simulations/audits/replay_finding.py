"""What one check of a replay found."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Finding:
    """The outcome of one check.

    Attributes:
        check: its name, see ``simulations.audits.replay``.
        subject: what was looked at, such as a kind of head.
        holds: whether it is as promised.
        measured: the figure that was compared; None where the check has none.
        bound: what it may be at most, or must equal.
        sentence: what was expected and, where it does not hold, what came and what follows from it.
    """

    check: str
    subject: str
    holds: bool
    measured: float | None
    bound: float | None
    sentence: str

    @property
    def margin(self) -> float | None:
        """How many times the bound was measured; None where there are no figures."""
        if self.measured is None or not self.bound:
            return None
        return self.measured / self.bound


@dataclass(frozen=True)
class Case:
    """One comparison within a check.

    Attributes:
        measured: a figure, not negative.
        slack: by how much rounding may exceed the bound.
        what: in which case it was measured, in words that fit behind "when".
    """

    measured: float
    slack: float
    what: str


def at_most(check: str, subject: str, promise: str, bound: float, cases: Sequence[Case]) -> Finding:
    """The worst of some cases against a bound; what is no number exceeds every bound.

    Args:
        check: its name.
        subject: what was looked at.
        promise: a clause that says what holds.
        bound: of all cases.
        cases: at least one.
    """
    worst = max(cases, key=lambda case: _excess(case, bound))
    if _excess(worst, bound) <= 0:
        return Finding(check, subject, True, worst.measured, bound, f"{promise}: as promised in {len(cases)} cases")
    came = f"measured {worst.measured:.4g}, expected at most {bound:.4g}, when {worst.what}"
    return Finding(check, subject, False, worst.measured, bound, f"{promise}: not so, {came}; {STOP}")


def _excess(case: Case, bound: float) -> float:
    excess = case.measured - bound - case.slack
    return float("inf") if np.isnan(excess) else excess


def stated(check: str, subject: str, promise: str, holds: bool, came: str) -> Finding:
    """A promise that holds or does not."""
    sentence = f"{promise}: as promised" if holds else f"{promise}: not so, {came}; {STOP}"
    return Finding(check, subject, holds, None, None, sentence)


def guarded(check: str, subject: str, look: Callable[[], Finding]) -> Finding:
    """The finding of a check; an exception is one as well, being an un-noised answer about the records."""
    try:
        return look()
    except Exception as error:
        came = f"it stopped with {type(error).__name__}: {error}"
        return stated(check, subject, "a round ends as every other, whatever the records", False, came)


STOP = "the stated epsilon does not hold, so release nothing that this code trained"

"""What an auditor asks of one ledger: do its epsilon, its events and its caps agree, and what is odd about them."""

from __future__ import annotations

import math
from itertools import pairwise

from common.privacy.statement import Statement
from simulations.audits.ledger_history import AcceptedPlan, Cap, History
from simulations.audits.recompute import Epsilons, rdp_at, tight_and_rdp
from simulations.audits.renyi import ORDERS, epsilon_renyi

TOLERANCE = 0.01  # relative, by which two accountants may differ
SLACK = 2e-4  # and absolute, where epsilon is tiny
PRV_DELTA = 1e-9  # below it the PRV accountant's Fourier transforms lose their digits
TABLE_STRIDE = 1.25  # the ledger tabulates long plans at numbers of rounds that grow by less than this
RDP_ORDERS = 1.5  # the most that fewer orders cost, where noise is small
REACH = 200.0  # beyond this epsilon the ledger takes Renyi DP, and at few orders


def compare(history: History, statement: Statement, computed: Epsilons) -> tuple[list[str], list[str]]:
    """Hold the ledger's own epsilon against what other accountants make of the same events.

    Returns:
        How the numbers hang together; and where they differ by more than ``TOLERANCE`` without a rule of the ledger
        that says why. A sentence each.
    """
    if _counts(history) != (statement.steps, statement.committed, statement.open_reservations):
        return [], ["its statement must count the events that it holds, but counts others; do not rely on it"]
    reference = computed.rdp if history.adaptive else computed.tight
    notes = [_which_claim(history, computed) if history.charges else "No round was charged: nothing was spent."]
    problems = []
    if statement.epsilon < reference * (1 - TOLERANCE) - SLACK:
        problems.append(
            f"its statement must not say less than its events cost, but says ε = {statement.epsilon:.4g} where "
            f"{reference:.4g} is computed from them; do not rely on it, and report this as a bug of the accountant"
        )
    elif statement.epsilon > reference * (1 + TOLERANCE) + SLACK:
        why = _why_more(history, statement, computed)
        more = f"ε = {statement.epsilon:.4g} where {reference:.4g} is computed from its events"
        if why is None:
            problems.append(f"its statement says {more}, which no rule of it explains; report this as a bug")
        else:
            notes.append(f"The ledger says more than was spent, {more}: {why}.")
    if computed.prv is not None and abs(computed.prv - computed.tight) > TOLERANCE * computed.tight + SLACK:
        problems += _prv_differs(computed, history.delta, notes)
    return notes, problems


def _counts(history: History) -> tuple[int, tuple[tuple[str, int], ...], tuple[tuple[str, int], ...]]:
    charges = history.charges
    done = sorted((one for one in charges if one.committed is not None), key=lambda one: one.committed or 0)
    waiting = [one for one in charges if one.committed is None]
    return (
        sum(one.steps for one in charges),
        tuple((one.run_id, one.round) for one in done),
        tuple((one.run_id, one.round) for one in waiting),
    )


def _which_claim(history: History, computed: Epsilons) -> str:
    looser = f"{computed.rdp:.4g}" if computed.tight == 0 else f"{computed.rdp / computed.tight - 1:.1%} looser"
    if history.adaptive:
        return (
            f"{len(history.plans)} plans, of which later ones may have been chosen after earlier results: Rényi DP is "
            f"the claim, as it holds then too; had all been fixed beforehand, it would be {computed.tight:.4g}."
        )
    if computed.exact is not None:
        return (
            "Every unit is in every step (q = 1): the steps are one Gaussian mechanism, whose curve is known exactly; "
            f"Rényi DP is {looser}."
        )
    return f"One plan, fixed before its first round: privacy loss distributions are the claim; Rényi DP is {looser}."


def _why_more(history: History, statement: Statement, computed: Epsilons) -> str | None:
    """Why a ledger may say more than the truth, where it may."""
    if statement.epsilon > REACH:
        return f"beyond ε = {REACH:g} it computes coarsely"
    rounding = history.delta < 1e-11 + 1e-13 * statement.steps
    if (history.adaptive or rounding) and statement.epsilon <= RDP_ORDERS * computed.rdp:
        return "at so small a delta it takes Rényi DP" if rounding else "it computes Rényi DP at fewer orders"
    if not history.adaptive:
        (plan,) = (plan for plan in history.plans if plan.charges)
        per_round = plan.plan.terms.steps_per_round
        later = math.ceil(len(plan.charges) * TABLE_STRIDE + 1) * per_round
        most, _ = tight_and_rdp([plan.steps(min(later, plan.plan.terms.steps))], history.delta)
        if statement.epsilon <= most * (1 + TOLERANCE) + SLACK:
            return "it tabulates long plans at some numbers of rounds, and takes the next"
    return None


def second_opinion(history: History, computed: Epsilons) -> tuple[float, list[str], list[str]]:
    """Hold dp-accounting's Renyi DP against a formula of our own, at the same integer orders.

    Returns:
        Epsilon by the formula; and, as ``compare`` does, what no other library has checked, and a difference.
    """
    steps = [plan.charged for plan in history.plans]
    if not history.charges:
        return 0.0, [], []
    ours = epsilon_renyi([(one.noise_multiplier, one.sampling_rate, one.count) for one in steps], history.delta)
    theirs = rdp_at(steps, history.delta, ORDERS)
    notes = [] if computed.independent else [_by_one_library(history, ours)]
    return ours, notes, formula_differs(ours, theirs)


def formula_differs(ours: float, theirs: float) -> list[str]:
    """A problem where the formula and dp-accounting make different numbers of the same orders."""
    if abs(ours - theirs) <= TOLERANCE * ours + SLACK:
        return []
    said = f"it is ε = {ours:.4g} by the formula and {theirs:.4g} by dp-accounting"
    return [f"Rényi DP at integer orders must be one number, but {said}; report this as a bug"]


def _by_one_library(history: History, ours: float) -> str:
    said = "Neither Opacus's PRV accountant nor the exact Gaussian curve reaches these steps"
    if history.adaptive:
        return f"{said}; the claim, Rényi DP, was checked at integer orders by a formula of our own."
    return (
        f"{said}: the tight value rests on dp-accounting alone, on which the node's accountant is built too. A formula "
        f"of our own (Rényi DP at integer orders) allows at most ε = {ours:.4g}."
    )


def _prv_differs(computed: Epsilons, delta: float, notes: list[str]) -> list[str]:
    """A note where Opacus's accountant is known to be imprecise, else a problem."""
    said = f"ε = {computed.prv:.4g} by Opacus's PRV accountant and {computed.tight:.4g} by the others"
    if delta < PRV_DELTA:
        notes.append(f"{said}: at so small a delta the first is not precise.")
        return []
    return [f"independent accountants must agree within {TOLERANCE:.0%}, but it is {said}; report this as a bug"]


def over_caps(history: History) -> list[str]:
    """Say where a charge passed the cap of its time."""
    problems = []
    ends = [*(cap.position for cap in history.caps[1:]), history.entries]
    for cap, end in zip(history.caps, ends, strict=True):
        until = history.until(end)
        if not any(cap.position < charge.position for charge in until.charges):
            continue
        spent = tight_and_rdp((plan.charged for plan in until.plans), history.delta)[until.adaptive]
        if spent > cap.epsilon * (1 + TOLERANCE) + SLACK:
            problems.append(
                f"rounds must be charged within the cap of their time, but under the cap ε = {cap.epsilon:g} of entry "
                f"{cap.position} they reach ε = {spent:.4g}; ask the hospital how its node let them pass"
            )
    return problems


def oddities(history: History) -> list[str]:
    """Say what an auditor should know of the events, a sentence each."""
    notes = []
    waiting = sum(charge.committed is None for charge in history.charges)
    if waiting:
        notes.append(f"Rounds reserved and never released: {waiting}; they stay spent, so ε says more than was seen.")
    notes += [note for plan in history.plans for note in _oddities_of(plan)]
    for before, after in pairwise(history.caps):
        notes.append(_change(before, after))
    return notes


def _change(before: Cap, after: Cap) -> str:
    said = f"The cap was changed from ε = {before.epsilon:g} to {after.epsilon:g} (entry {after.position})"
    if after.epsilon <= before.epsilon:
        return f"{said}."
    if after.signed_off_by is None:
        return f"{said}; nobody signed it off."
    return f"{said}, signed off by {after.signed_off_by!r}" + (f": {after.reason!r}." if after.reason else ".")


def _oddities_of(plan: AcceptedPlan) -> list[str]:
    notes = []
    rounds = [charge.round for charge in plan.charges]
    twice = sorted({round for round in rounds if rounds.count(round) > 1})
    if twice:
        notes.append(
            f"Run {plan.run_id!r} was charged several times for {'rounds' if len(twice) > 1 else 'round'} "
            f"{', '.join(map(str, twice))}, from different heads: each is a release of its own."
        )
    if len(rounds) > plan.plan.terms.rounds:
        notes.append(f"Run {plan.run_id!r} was charged {len(rounds)} rounds under a plan of {plan.plan.terms.rounds}.")
    return notes

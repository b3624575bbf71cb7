"""Whether a plan fits what a data set's ledger says: its delta, its unit, and the cap that its operator signed off."""

from __future__ import annotations

from common.errors import BudgetSpentError, PrivacyError
from common.privacy.plan import PrivacyPlan
from common.privacy.statement import Balance, Spend


def check_terms(balance: Balance, plan: PrivacyPlan, cap_wanted: float | None = None) -> None:
    """Make sure that a plan speaks of what the ledger speaks of.

    Args:
        balance: of the ledger.
        plan: that is offered.
        cap_wanted: what the ledger was opened with, where nobody has signed it off yet.

    Raises:
        PrivacyError: delta or unit are not the ledger's, or a higher cap was not signed off.
    """
    if cap_wanted is not None and cap_wanted > balance.epsilon_cap:
        raise PrivacyError(
            f"the cap of data set {balance.dataset_id!r} is epsilon {balance.epsilon_cap:g} in its "
            f"ledger, but {cap_wanted:g} is asked for, which the operator has not signed off; run `fedgraft "
            f"node ledger raise-cap {cap_wanted!r}`, or lower privacy.max_epsilon in node.toml"
        )
    if plan.terms.delta != balance.delta:
        raise PrivacyError(
            f"delta of data set {balance.dataset_id!r} must be {balance.delta:g}, got a plan with "
            f"{plan.terms.delta:g}; offer a plan with the data set's own delta"
        )
    if balance.unit not in (None, plan.terms.unit):
        raise PrivacyError(
            f"the privacy unit of data set {balance.dataset_id!r} must stay {balance.unit!r}, got "
            f"{plan.terms.unit!r}; offer a plan with that unit"
        )


def check_session(balance: Balance, spend: Spend) -> None:
    """Make sure that no other answer was charged for the session of a sum.

    Raises:
        PrivacyError: one was, of another node on this ledger, say: a record that both hold would move the sum by twice
            the clipping norm, which is more than two charges say.
    """
    other = balance.sessions.get(spend.session)
    if other is not None:
        raise PrivacyError(
            f"a ledger answers in one sum once, but for round {spend.round} of run {spend.run_id!r} it has paid for "
            f"{other.spend.node or 'another answer'} already; let one node of these records take part in a run with "
            "secure aggregation"
        )


def check_whole(balance: Balance, plan: PrivacyPlan, run_id: str, cap_wanted: float | None = None) -> None:
    """Make sure that a plan fits to its last round; arguments as in ``check_terms``.

    Raises:
        PrivacyError: as in ``check_terms``, or the cap would be passed.
    """
    check_terms(balance, plan, cap_wanted)
    after = balance.with_plan(plan, run_id)
    if not after.epsilon <= balance.epsilon_cap:
        raise BudgetSpentError(
            f"the privacy budget of data set {balance.dataset_id!r} must stay within epsilon "
            f"{balance.epsilon_cap:g}, but the {plan.terms.rounds} rounds of this plan would make it "
            f"{after.epsilon:.4g} ({after.accountant}); ask the server for a shorter plan or more noise, or have "
            "the operator raise the cap"
        )

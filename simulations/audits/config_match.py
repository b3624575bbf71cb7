"""Whether the plans in a ledger are those that a run's configuration asks for."""

from __future__ import annotations

from common.config import RunConfig
from common.privacy.plan import PrivacyTerms
from simulations.audits.ledger_history import AcceptedPlan, History
from simulations.audits.recompute import tight_and_rdp

TOLERANCE = 0.01  # of epsilon: the noise is rounded to four digits
LEAST_NOISE = 0.01  # no plan has less, however large the epsilon that is asked for


def matching_runs(config: RunConfig, history: History) -> tuple[tuple[str, ...], str | None]:
    """Find the runs in a ledger whose plans keep a configuration's promise.

    Args:
        config: its privacy section, ``federation.rounds`` and ``training.local_steps`` are compared. A clipping norm
            that is ``"auto"`` depends on the model, and is not.
        history: of one ledger.

    Returns:
        Their run ids, in order, and None; or, where there is none, a sentence about the nearest.
    """
    differences = [(plan.run_id, plan_differences(config, plan)) for plan in history.plans]
    runs = tuple(run_id for run_id, wrong in differences if not wrong)
    if runs:
        return runs, None
    if not differences:
        return (), "the configuration must fit a plan in the ledger, but it has none yet; run it first"
    run_id, wrong = min(differences, key=lambda one: len(one[1]))
    return (), (
        f"the configuration must be the one that a run was accepted under, but run {run_id!r} has {'; '.join(wrong)}; "
        "give the configuration of that run, or ask why the node accepted other terms"
    )


def plan_differences(config: RunConfig, plan: AcceptedPlan) -> list[str]:
    """Say where a plan is not the configuration's: ``key = value (configuration: value)`` each."""
    terms, privacy = plan.plan.terms, config.privacy
    pairs: list[tuple[str, object, object]] = [
        ("privacy.unit", terms.unit, privacy.unit),
        ("privacy.trust", terms.trust, privacy.trust),
        ("privacy.delta", terms.delta, privacy.delta),
        ("privacy.sampling_rate", terms.sampling_rate, privacy.sampling_rate),
        ("federation.rounds", terms.rounds, config.federation.rounds),
        ("training.local_steps", terms.steps_per_round, config.training.local_steps),
    ]
    if privacy.clipping_norm != "auto":
        pairs.append(("privacy.clipping_norm", terms.clipping_norm, float(privacy.clipping_norm)))
    wrong = [_difference(key, ours, asked) for key, ours, asked in pairs if ours != asked]
    epsilon = tight_and_rdp([plan.steps(terms.steps)], terms.delta)[0]
    if not _keeps(epsilon, privacy.epsilon, terms):
        wrong.append(_difference("privacy.epsilon", float(f"{epsilon:.4g}"), privacy.epsilon))
    return wrong


def _keeps(epsilon: float, asked: float, terms: PrivacyTerms) -> bool:
    """Whether the noise is what the epsilon asks for: not less, and not so much more that it is another plan's."""
    low = terms.noise_multiplier <= LEAST_NOISE
    return epsilon <= asked * (1 + TOLERANCE) and (low or epsilon >= asked * (1 - TOLERANCE))


def _difference(key: str, ours: object, asked: object) -> str:
    def show(value: object) -> str:
        return f"{value:g}" if isinstance(value, float) else str(value)

    return f"{key} = {show(ours)} (configuration: {show(asked)})"

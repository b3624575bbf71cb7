"""Whether the plans in a ledger are those that a run's configuration asks for."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

from common.config import RunConfig
from common.privacy.hospitals import part_of
from common.privacy.plan import PrivacyTerms
from simulations.audits.ledger_history import AcceptedPlan, History
from simulations.audits.recompute import tight_and_rdp

TOLERANCE = 0.01  # of epsilon: the noise is rounded to four digits
LEAST_NOISE = 0.01  # no plan has less, however large the epsilon that is asked for


@dataclass(frozen=True)
class ConfigMatch:
    """How a ledger and a configuration hang together.

    Attributes:
        runs: run ids whose plans are the configuration's, in order.
        notes: which those are, and what else was spent, a sentence each.
        problems: what breaks the configuration's promise, a sentence each.
    """

    runs: tuple[str, ...]
    notes: tuple[str, ...]
    problems: tuple[str, ...]


def match_config(config: RunConfig, history: History, spent: float) -> ConfigMatch:
    """Find the runs in a ledger whose plans are a configuration's, and hold what was charged against it.

    Args:
        config: its privacy section, ``federation.rounds`` and ``training.local_steps`` are compared. A clipping norm
            that is ``"auto"`` depends on the model, and is not.
        history: of one ledger.
        spent: epsilon of the whole ledger.

    Returns:
        No run, and a sentence about the nearest, where no plan fits. A run that fits but was charged more than its
        rounds, or more than the configuration's epsilon, is a problem too; what other runs spent is a note.
    """
    differences = [(plan, plan_differences(config, plan)) for plan in history.plans]
    fitting = [plan for plan, wrong in differences if not wrong]
    if not fitting:
        return ConfigMatch((), (), (_no_match(differences),))
    runs = tuple(plan.run_id for plan in fitting)
    others = [plan for plan, wrong in differences if wrong and plan.charges]
    notes = (f"The configuration fits run {', '.join(runs)}.", *_beyond(config, others, spent))
    return ConfigMatch(runs, notes, tuple(text for plan in fitting for text in _overcharged(config, plan)))


def _no_match(differences: list[tuple[AcceptedPlan, list[str]]]) -> str:
    if not differences:
        return "the configuration must fit a plan in the ledger, but it has none yet; run it first"
    plan, wrong = min(differences, key=lambda one: len(one[1]))
    return (
        f"the configuration must be the one that a run was accepted under, but run {plan.run_id!r} has "
        f"{'; '.join(wrong)}; give the configuration of that run, or ask why the node accepted other terms"
    )


def _beyond(config: RunConfig, others: list[AcceptedPlan], spent: float) -> Iterator[str]:
    """Say what the ledger holds beside the configuration's promise."""
    promised = config.privacy.epsilon
    if others:
        delta = config.privacy.delta
        each = (f"{one.run_id!r} (ε = {tight_and_rdp([one.charged], delta)[0]:.4g} by itself)" for one in others)
        yield f"But it does not fit what was charged to run {', '.join(each)}."
    if spent > promised * (1 + TOLERANCE):
        yield f"But this ledger spent ε = {spent:.4g} in all, the configuration promises {promised:g}."


def _overcharged(config: RunConfig, plan: AcceptedPlan) -> Iterator[str]:
    rounds, charged = plan.plan.terms.rounds, len(plan.charges)
    if charged > rounds:
        yield (
            f"run {plan.run_id!r} must be charged at most the {rounds} rounds of its configuration, but was charged "
            f"{charged}; ask the hospital why its node answered more"
        )
    epsilon, promised = tight_and_rdp([plan.charged], plan.plan.terms.delta)[0], config.privacy.epsilon
    if epsilon > promised * (1 + TOLERANCE):
        yield (
            f"run {plan.run_id!r} must spend at most the configuration's ε = {promised:g}, but spent {epsilon:.4g}; do "
            "not rely on the configuration's promise"
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
    if terms.unit == privacy.unit == "patient":
        pairs.append(("privacy.records_per_patient", terms.records_per_unit, privacy.records_per_patient))
        pairs.append(("privacy.hospitals_per_patient", terms.hospitals_per_unit, privacy.most_hospitals))
    if terms.trust == privacy.trust == "secagg":
        pairs.append(("privacy.dropouts", terms.dropouts, privacy.most_dropouts))
        pairs.append(("privacy.colluders", terms.colluders, privacy.most_colluders))
        pairs.append(("privacy.largest_node", terms.largest_node, privacy.most_declared))
    if privacy.clipping_norm != "auto":
        pairs.append(("privacy.clipping_norm", terms.clipping_norm, float(privacy.clipping_norm)))
    wrong = [_difference(key, ours, asked) for key, ours, asked in pairs if ours != asked]
    own, hospitals = plan.steps(terms.steps), terms.hospitals_per_unit
    of_patient = replace(own, noise_multiplier=part_of(own.noise_multiplier, terms.trust, hospitals))
    epsilon = tight_and_rdp([replace(of_patient, count=hospitals * own.count)], terms.delta)[0]
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

"""The rounds of a federation: choose a cohort, send the head, collect updates, aggregate, evaluate, checkpoint."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType

import numpy as np
from flwr.serverapp.strategy import FedAvg
from torch import Tensor

from common import wire
from common.durable import read_lines
from common.errors import PrivacyError, ProtocolError
from common.messages import Offer, Reason
from common.privacy.accountant import epsilon_by_round
from common.privacy.plan import NOISE_RANGE
from common.solved_heads import SOLVED_HEADS
from common.tasks import Scores
from server.aggregation import aggregate, restore_strategy, strategy_state
from server.checkpoints import Checkpoint, Line, RunStore
from server.defaults import default_learning_rate
from server.link import Answers, CohortView, Link, Member, unanswered
from server.solving import noise_in_mean, solved

Evaluate = Callable[[dict[str, Tensor]], Scores]
NOTHING: Mapping[str, Evaluate] = MappingProxyType({})


@dataclass(frozen=True)
class RoundPlan:
    """What stays the same over all rounds of a run.

    Attributes:
        nodes: of the federation; the run waits until so many are connected.
        offer: model and privacy terms.
        learning_rate: of the nodes' local steps; None takes the default for the nodes that accept the offer.
        cohort: nodes a round; None is all of them.
        seed: of the choice of cohorts; public, and the same after a resume.
        weighting: ``"equal"`` or ``"declared"`` (by the nodes' declared sizes).
        evaluate_every: the head is evaluated after every so many rounds, and after the last.
        patience: evaluations without a lower validation loss after which the run stops; None is never.
        least_updates: that the strategy needs in a round.
        last_round: after which the run ends before all of its plan is played; None plays all.
    """

    nodes: int
    offer: Offer
    learning_rate: float | None
    cohort: int | None
    seed: int
    weighting: str
    evaluate_every: int
    patience: int | None = None
    least_updates: int = 1
    last_round: int | None = None

    @property
    def rounds(self) -> int:
        """Rounds of the whole run."""
        planned = self.offer.terms.rounds
        return planned if self.last_round is None else min(self.last_round, planned)


PlayRound = Callable[[Checkpoint, RoundPlan, Link, FedAvg, Evaluate, Mapping[str, Evaluate]], Checkpoint]


def run_rounds(
    plan: RoundPlan,
    link: Link,
    strategy: FedAvg,
    store: RunStore,
    start: dict[str, Tensor],
    evaluate: Evaluate,
    watch: Mapping[str, Evaluate] = NOTHING,
    join: Callable[[Link, Offer], None] = Link.offer,
    play: PlayRound | None = None,
) -> Checkpoint:
    """Run, or continue, a federation to its last round, or until its patience ends.

    Args:
        plan: public constants of the run.
        link: to the nodes.
        strategy: Flower's, fresh; its memory is restored from the checkpoint.
        store: where checkpoints are read and written.
        start: the head before the first round.
        evaluate: scores a head on the server's own held-out records.
        watch: scores it on others, by their name; nothing but ``"validation"`` decides when to stop.
        join: offers the run to nodes that have not answered yet, before the first round and between rounds.
        play: plays a round; None is ``run_round``, for trust ``"local"``.

    Returns:
        The state after the last round.

    Raises:
        ProtocolError: no node accepted the offer, or none released an update in a round.
        PrivacyError: every node refused for the sake of privacy.
        ConfigError: a checkpoint could not be read or written.
    """
    state = store.latest() or Checkpoint(0, start, {}, {}, {})
    restore_strategy(strategy, state.strategy)
    link.wait_for(plan.nodes)
    join(link, plan.offer)
    _check_members(link, plan)
    plan = replace(plan, learning_rate=learning_rate(plan, link.members.values(), state.head))
    while state.round < plan.rounds and not out_of_patience(store, plan.patience):
        if link.named is not None:
            join(link, plan.offer)  # those that have come since
            cohort = choose_cohort(link.members, plan.cohort, plan.seed, state.round + 1)
            store.note_asked(state.round + 1, [member.name for member in cohort])
        state = (play or run_round)(state, plan, link, strategy, evaluate, watch)
        store.save(state)
    return state


def out_of_patience(store: RunStore, patience: int | None) -> bool:
    """Whether the validation loss has not fallen below its lowest for so many evaluations.

    It is the server's own records' loss, a public signal: stopping by it spends nothing, and saves the rounds' epsilon.
    """
    if patience is None:
        return False
    losses = [line["validation_loss"] for line in read_lines(store.log) if "validation_loss" in line]
    known = [math.inf if loss is None else loss for loss in losses]
    return len(known) > patience and min(known[-patience:]) >= min(known[:-patience])


def run_round(
    state: Checkpoint,
    plan: RoundPlan,
    link: Link,
    strategy: FedAvg,
    evaluate: Evaluate,
    watch: Mapping[str, Evaluate] = NOTHING,
) -> Checkpoint:
    """One round: the state before it, and the state after it.

    Raises:
        ProtocolError: no node released an update.
        PrivacyError: every node refused for the sake of privacy.
    """
    began, round_ = time.perf_counter(), state.round + 1
    cohort = choose_cohort(link.members, plan.cohort, plan.seed, round_)
    view = CohortView(link.grid, [member.node_id for member in cohort])
    config = wire.encode_task(plan.offer, plan.learning_rate)
    messages = strategy.configure_train(round_, wire.encode_head(state.head), config, view)
    answers = link.collect(messages, state.head)
    weights = {member.node_id: _weight(member, plan.weighting) for member in cohort}
    enough = len(answers.updates) >= plan.least_updates
    head = aggregate(strategy, round_, answers.updates.values(), weights) if enough else None
    if not answers.updates:
        raise _nobody(answers.failed, round_)
    if head is None:
        raise ProtocolError(
            f"expected at least {plan.least_updates} updates for federation.strategy, got "
            f"{len(answers.updates)} updates in round {round_}; see the nodes' logs, then resume the run"
        )
    if plan.offer.model.head in SOLVED_HEADS:
        replied = [member for member in cohort if member.name in answers.updates]
        sizes = [member.declared_size for member in replied]
        noise = noise_in_mean(plan.offer.terms, [weights[member.node_id] for member in replied], sizes)
        head = solved(plan.offer.model.head, head, noise, plan.offer.terms.clipping_norm)
    participation = _count(state.participation, answers)
    due = round_ % plan.evaluate_every == 0 or round_ == plan.rounds
    scores = evaluate(head) if due else None
    line = _line(round_, scores, answers, participation, plan, state.head)
    line |= watched(head, watch if due else NOTHING) | {"seconds": time.perf_counter() - began}
    return Checkpoint(round_, head, strategy_state(strategy), participation, line)


def learning_rate(plan: RoundPlan, members: Iterable[Member], head: Mapping[str, Tensor]) -> float:
    """The configured learning rate, or the default for these nodes; from public constants only."""
    if plan.learning_rate is not None:
        return plan.learning_rate
    nodes = list(members)
    parameters = sum(value.numel() for value in head.values())
    weights = [_weight(member, plan.weighting) for member in nodes]
    sizes = [member.declared_size for member in nodes]
    terms, model = plan.offer.terms, plan.offer.model
    if terms.trust == "secagg":
        return _rate_of_sums(plan, parameters, sizes)
    return default_learning_rate(terms, parameters, sizes, weights, plan.cohort, model.head, model.train)


def _rate_of_sums(plan: RoundPlan, parameters: int, sizes: list[int]) -> float:
    """As of one node that holds all records of a cohort; the shares of all nodes are in its noise."""
    terms, model, asked = plan.offer.terms, plan.offer.model, plan.cohort or len(sizes)
    shares = asked / (terms.nodes - terms.dropouts - terms.colluders)
    noised = replace(terms, noise_multiplier=min(NOISE_RANGE[1], terms.noise_multiplier * math.sqrt(shares)))
    records = round(sum(sizes) * asked / len(sizes))
    return default_learning_rate(noised, parameters, [records], [1.0], None, model.head, model.train)


def choose_cohort(members: Mapping[str, Member], size: int | None, seed: int, round_: int) -> list[Member]:
    """Choose the nodes of a round, by name, so that the choice survives a resume and another engine.

    The choice is the server's, who sees every update: it amplifies no privacy, and none is claimed.
    """
    names = sorted(members)
    if size is None or size >= len(names):
        return [members[name] for name in names]
    generator = np.random.default_rng([seed, round_])
    chosen = generator.choice(len(names), size=size, replace=False)
    return [members[names[index]] for index in sorted(chosen)]


def _check_members(link: Link, plan: RoundPlan) -> None:
    if not link.members:
        raise _nobody(link.refused, 0)
    if plan.cohort is not None and plan.cohort > len(link.members):
        raise ProtocolError(
            f"expected at least {plan.cohort} nodes (federation.cohort), only {len(link.members)} accepted the offer; "
            "lower federation.cohort or see the nodes' logs"
        )
    if len(link.members) < plan.least_updates:
        raise ProtocolError(
            f"expected at least {plan.least_updates} nodes for federation.strategy, only {len(link.members)} accepted "
            "the offer; see the nodes' logs"
        )
    if len(link.members) < plan.offer.terms.nodes:
        raise ProtocolError(
            f"expected at least {plan.offer.terms.nodes} nodes for a sum, only {len(link.members)} accepted the offer; "
            "see the nodes' logs"
        )


def _weight(member: Member, weighting: str) -> float:
    return float(member.declared_size) if weighting == "declared" else 1.0


def _count(before: Mapping[str, int], answers: Answers) -> dict[str, int]:
    """Add this round for every node that may have paid for it: all that were asked, but those without a budget."""
    unpaid = {name for name, reason in answers.failed.items() if reason == Reason.BUDGET.value}
    paid = ({*answers.updates, *answers.failed}) - unpaid
    return {**before, **{name: before.get(name, 0) + 1 for name in sorted(paid)}}


def _line(
    round_: int,
    scores: Scores | None,
    answers: Answers,
    participation: Mapping[str, int],
    plan: RoundPlan,
    head: Mapping[str, Tensor],
) -> Line:
    head_bytes = sum(value.numel() * value.element_size() for value in head.values())
    asked = len(answers.updates) + len(answers.failed)
    return {
        "round": round_,
        "accuracy": None if scores is None else scores.accuracy,
        "loss": None if scores is None else finite(scores.loss),
        "epsilon": epsilon_by_round(plan.offer.terms)[max(participation.values())],
        "nodes": len(answers.updates),
        "failed": dict(answers.failed),
        **({"unfit": dict(answers.unfit)} if answers.unfit else {}),
        "learning_rate": plan.learning_rate,
        "bytes_down": head_bytes * asked,
        "bytes_up": head_bytes * len(answers.updates),
    }


def watched(head: dict[str, Tensor], watch: Mapping[str, Evaluate]) -> Line:
    """Accuracy and loss on the records that are watched, each under their name."""
    line: Line = {}
    for name, evaluate in watch.items():
        scores = evaluate(head)
        line |= {f"{name}_accuracy": scores.accuracy, f"{name}_loss": finite(scores.loss)}
    return line


def finite(loss: float) -> float | None:
    """A loss as JSON can hold it."""
    return loss if math.isfinite(loss) else None


def _nobody(failed: Mapping[str, str], round_: int) -> ProtocolError | PrivacyError:
    return unanswered(f"updates in round {round_}" if round_ else "nodes that accept the offer", failed)

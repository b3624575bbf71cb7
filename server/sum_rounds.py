"""A round under trust ``"secagg"``: one step of all nodes together, of which the server sees the sum and nothing else.

A round with too few survivors is discarded: the head stays, what nodes reserved for it stays spent, the round log says
so, and the next round begins. After ``MOST_DISCARDED`` in a row the run stops; resumed, it goes on with the next one.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from flwr.serverapp.strategy import FedAvg
from numpy.typing import NDArray
from torch import Tensor

from common import wire
from common.errors import RoundDiscardedError
from common.messages import Reason, SumTask
from common.privacy.accountant import epsilon_after
from common.privacy.sums import epsilon_against_model, noise_shares, sum_run
from common.secagg.masks import word_type
from common.secagg.messages import Stage
from common.secagg.roster import Roster
from common.secagg.session import Session
from common.solved_heads import SOLVED_HEADS
from server.aggregation import apply_step, strategy_state
from server.checkpoints import Checkpoint, Line, RunStore
from server.link import CohortView, Link, Member, unanswered
from server.rounds import NOTHING, Evaluate, RoundPlan, choose_cohort, finite, watched
from server.secagg_round import NO_REPLY, MaskedSum, Replies, Requests, masked_sum
from server.solving import solved
from server.sum_replies import KeptReplies

MOST_DISCARDED = 3

Peers = Callable[[Iterable[str]], Roster]


class SumRounds:
    """Plays the rounds of a run, as ``server.rounds.run_round`` does under local trust."""

    def __init__(self, store: RunStore, peers: Peers) -> None:
        """Use a run's folder for the replies of a round under way, and the keys of the nodes of these names."""
        self._store, self._peers = store, peers
        self._discarded, self._failed = 0, dict[str, str]()

    def __call__(
        self,
        state: Checkpoint,
        plan: RoundPlan,
        link: Link,
        strategy: FedAvg,
        evaluate: Evaluate,
        watch: Mapping[str, Evaluate] = NOTHING,
    ) -> Checkpoint:
        """One round: the state before it, and the state after it.

        Raises:
            ProtocolError: too many rounds in a row were discarded.
            PrivacyError: so they were, as the nodes refuse for the sake of privacy.
        """
        began, round_ = time.perf_counter(), state.round + 1
        cohort = choose_cohort(link.members, plan.cohort, plan.seed, round_)
        roster = self._peers(member.name for member in cohort)
        asking = Asking(link, plan, round_, state.head, KeptReplies(self._store.folder, round_, roster.fingerprints))
        found = self._sum(asking, roster)
        if found is None and plan.offer.model.head in SOLVED_HEADS:
            raise unanswered("a sum in the only round of a head that is solved from it", self._failed)
        head = state.head if found is None else _step(state, plan, link, strategy, cohort, found)
        due = round_ % plan.evaluate_every == 0 or round_ == plan.rounds
        participation: Mapping[str, int] = state.participation
        for names in (*asking.kept.before, asking.may_have_paid):
            participation = _count(participation, names)
        line = _line(asking, found, participation)
        if due:
            scores = evaluate(head)
            line |= {"accuracy": scores.accuracy, "loss": finite(scores.loss)}
        line |= watched(head, watch if due else NOTHING) | {"seconds": time.perf_counter() - began}
        return Checkpoint(round_, head, strategy_state(strategy), participation, line)

    def _sum(self, asking: Asking, roster: Roster) -> MaskedSum | None:
        """The round's sum; None where it is discarded."""
        offer = asking.plan.offer
        if self._discarded >= MOST_DISCARDED:
            self._discarded = 0
            raise unanswered(f"a sum in one of {MOST_DISCARDED} rounds", self._failed)
        run = sum_run(offer.run_id, offer.model, offer.terms, asking.numbers)
        session = Session.of(run, asking.round, roster, attempt=asking.kept.attempt)
        try:
            found = masked_sum(session, roster, asking.ask)
        except RoundDiscardedError as error:
            self._discarded, self._failed = self._discarded + 1, dict(asking.failed)
            asking.discarded = str(error)
            return None
        self._discarded = 0
        return found


@dataclass
class Asking:
    """Asks the nodes stage by stage, and remembers who failed and what went over the wire.

    Attributes:
        link: to the nodes.
        plan: of the run.
        round: 1-based.
        head: the global head.
        kept: replies of stages that were over before the run was killed, and of those that are over now.
        failed: node name to the reason why there is no reply.
        may_have_paid: nodes that were asked for their masked vector, but those without a budget.
        bytes_down: sent to the nodes.
        bytes_up: that came.
        discarded: why the round was; empty if it was not.
    """

    link: Link
    plan: RoundPlan
    round: int
    head: dict[str, Tensor]
    kept: KeptReplies
    failed: dict[str, str] = field(default_factory=dict)
    may_have_paid: list[str] = field(default_factory=list)
    bytes_down: int = 0
    bytes_up: int = 0
    discarded: str = ""

    @property
    def numbers(self) -> int:
        """Trained parameters."""
        return sum(value.numel() for value in self.head.values())

    def ask(self, stage: Stage, requests: Requests) -> Replies:
        """Send the requests of a stage, or take the replies that were kept of it."""
        head = self.head if stage is Stage.VECTOR else {}
        tasks = {name: SumTask(self.plan.offer, self.round, stage, request, head) for name, request in requests.items()}
        came = self.kept.read(stage)
        if came is None:
            terms = sum_run(self.plan.offer.run_id, self.plan.offer.model, self.plan.offer.terms, self.numbers).terms
            came = self.link.sum_answers(tasks, self.numbers * word_type(terms).itemsize)
            self.kept.keep(stage, *came)
        replies, failed = came
        self.failed |= failed
        if stage is Stage.VECTOR:
            self.may_have_paid = [name for name in requests if failed.get(name) != Reason.BUDGET.value]
        head_bytes = sum(value.numel() * value.element_size() for value in head.values())
        self.bytes_down += sum(len(request) + head_bytes for request in requests.values())
        self.bytes_up += sum(map(len, replies.values()))
        return replies


def _step(
    state: Checkpoint, plan: RoundPlan, link: Link, strategy: FedAvg, cohort: Sequence[Member], found: MaskedSum
) -> dict[str, Tensor]:
    """Move the head by the survivors' mean gradient, and let the strategy's optimiser have its say."""
    assert plan.learning_rate is not None
    terms = plan.offer.terms
    values = opened(plan, found.values)
    survivors = [member for member in cohort if member.name in found.survivors]
    divisor = terms.sampling_rate * sum(member.declared_size for member in survivors)  # public, whatever was drawn
    view = CohortView(link.grid, [member.node_id for member in cohort])
    list(strategy.configure_train(state.round + 1, wire.encode_head(state.head), wire.encode_task(plan.offer), view))
    head = apply_step(strategy, state.round + 1, stepped(state.head, values / divisor, plan.learning_rate))
    if plan.offer.model.head not in SOLVED_HEADS:
        return head
    shares = noise_shares(terms, len(values))
    noise = math.sqrt(len(survivors) * shares.share_variance) / shares.scale / divisor
    return solved(plan.offer.model.head, head, noise, terms.clipping_norm)


def opened(plan: RoundPlan, values: NDArray[np.int64]) -> NDArray[np.float64]:
    """The noised sum that integers stand for."""
    return values.astype(np.float64) / noise_shares(plan.offer.terms, len(values)).scale


def stepped(head: Mapping[str, Tensor], gradient: NDArray[np.float64], rate: float) -> dict[str, Tensor]:
    """A head after one step along a gradient whose numbers stand end to end, in the order of names."""
    names = sorted(head)
    parts = torch.split(torch.from_numpy(gradient), [head[name].numel() for name in names])
    change = dict(zip(names, parts, strict=True))
    limits = torch.finfo(torch.float32)
    after = {name: value.double() - rate * change[name].view_as(value) for name, value in head.items()}
    return {name: value.clamp(limits.min, limits.max).float() for name, value in after.items()}


def _count(before: Mapping[str, int], paid: Sequence[str]) -> dict[str, int]:
    return {**before, **{name: before.get(name, 0) + 1 for name in sorted(paid)}}


def _line(asking: Asking, found: MaskedSum | None, participation: Mapping[str, int]) -> Line:
    spoilt: dict[str, str] = {} if found is None else {n: why for n, why in found.dropped.items() if why != NO_REPLY}
    rounds = max(participation.values(), default=0)
    real = asking.link.named is not None  # a simulation says so once, in its result
    against_model = epsilon_against_model(asking.plan.offer.terms, rounds) if real else None
    failed = asking.failed | dict.fromkeys(spoilt, Reason.PROTOCOL.value)
    return {
        "round": asking.round,
        "accuracy": None,
        "loss": None,
        "epsilon": epsilon_after(asking.plan.offer.terms, rounds),
        **({"epsilon_against_model": against_model} if against_model is not None else {}),
        "nodes": 0 if found is None else len(found.survivors),
        "failed": dict(sorted(failed.items())),
        **({"unfit": spoilt} if spoilt else {}),
        **({"survivors": list(found.survivors)} if found is not None else {"discarded": asking.discarded}),
        "learning_rate": asking.plan.learning_rate,
        "bytes_down": asking.bytes_down,
        "bytes_up": asking.bytes_up,
    }

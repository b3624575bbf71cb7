"""One stage of a sum over nodes at a node, as a straight path."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray
from torch import nn

from client import egress
from client.distributed_noise import noised_share
from client.ledger import Reservation, Spend, StoredReply
from client.node import Node
from client.training import accepted, sampled_sum
from common.errors import PrivacyError, ProtocolError
from common.heads import arrays_digest, head_arrays
from common.messages import SumAnswer, SumTask
from common.model import make_head, trained_head
from common.privacy.plan import PrivacyPlan
from common.privacy.sums import noise_shares, sum_run
from common.secagg.messages import Delivery, Invitation, Stage
from common.secagg.session import SumRun
from common.tasks import task_named


def answer_stage(task: SumTask, node: Node) -> SumAnswer:
    """Answer one stage of a round: keys, shares, the masked vector, agreement, and shares again.

    Guarantees:
        The budget is reserved, durably, before a record is read for this round; the masked vector is recorded before it
        leaves, and the same request again gets the same bytes and costs nothing more. Each session is charged by
        itself, whatever round the server says it belongs to.

    Raises:
        PrivacyError: the plan is refused, the budget does not suffice, or the request is none of this round's.
        ProtocolError: the plan has no such round.
        ConfigError: the task means other classes, or another backbone, than the node's.
    """
    offer, plan = accepted(task.offer, node)
    task = replace(task, offer=offer)
    if not 1 <= task.round <= plan.terms.rounds:
        raise ProtocolError(f"expected a round from 1 to {plan.terms.rounds}, got {task.round}; refuse the message")
    numbers = sum(value.numel() for value in head_arrays(make_head(offer.model)).values())
    run = sum_run(offer.run_id, offer.model, plan.terms, numbers)
    if task.stage is Stage.VECTOR:
        return _masked_vector(task, node, plan, run)
    if task.stage is Stage.KEYS and Invitation.parse(task.request).session.round != task.round:
        raise PrivacyError("an invitation must be for the round that it is sent in, it is for another; refuse it")
    return egress.release_sum(node.sums().answer(task.stage, task.request, run, _none), task.stage, run.terms)


def _masked_vector(task: SumTask, node: Node, plan: PrivacyPlan, run: SumRun) -> SumAnswer:
    module = trained_head(task.offer.model, task.head)  # one that does not fit is refused before anything is paid
    session = Delivery.parse(task.request).session
    spend = Spend(task.offer.run_id, task.round, arrays_digest(task.head), node.name, session)
    with node.open_ledger() as ledger:

        def reserved() -> Reservation | StoredReply:
            return ledger.reserve(spend, plan, whole=not node.policy.partial)

        def values() -> NDArray[np.int64]:
            if isinstance(reserved(), StoredReply):
                raise _released_once(task.round)
            return noised_sum(module, task, node, plan)

        answer = egress.release_sum(node.sums().answer(task.stage, task.request, run, values), task.stage, run.terms)
        reservation = reserved()
        paid = reservation.reply if isinstance(reservation, StoredReply) else ledger.settle(reservation, answer.data)
    if paid != answer.data:  # another process that shares the ledger, but no record of what was sent, was quicker
        raise _released_once(task.round)
    return answer


def noised_sum(head: nn.Module, task: SumTask, node: Node, plan: PrivacyPlan) -> NDArray[np.int64]:
    """This node's integers: its clipped sum over the units that Poisson sampling drew, with its share of the noise."""
    loss = task_named(task.offer.model.task).loss
    sampling, noise = node.randomness(task.round)[0], node.share_of_noise(task.round)
    records = node.records(task.offer.model)  # sensitive from here
    clipped = sampled_sum(head, loss, records, plan.terms, sampling)
    numbers = sum(value.numel() for value in clipped.values.values())
    return noised_share(clipped, noise_shares(plan.terms, numbers), noise)


def _released_once(round_: int) -> PrivacyError:
    return PrivacyError(
        f"round {round_} must be released once, and this node has no record of what was sent; take the next round"
    )


def _none() -> NDArray[np.int64]:
    raise PrivacyError("only a masked vector has values; refuse the request")

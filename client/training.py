"""One private round at a node, as a straight path."""

from __future__ import annotations

import logging
from dataclasses import replace

import safetensors.numpy
import safetensors.torch
from torch import Tensor, nn

from client import egress
from client.caps import check_whole
from client.descent import Step, descend
from client.ledger import Spend, StoredReply
from client.mechanism import Batch, ClippedSum, Noising, clipped_sums, noisy_gradients
from client.node import Node, Records, check_backbone
from client.patient_sums import draw, patient_clipped_sum
from common.errors import ConfigError, PrivacyError, ProtocolError
from common.heads import arrays_digests, load_arrays, trained_arrays
from common.lockstep import Asked, Steps, to_the_end
from common.messages import EvaluateTask, Hello, Metrics, Offer, TrainTask, Update
from common.model import make_head, shared_head, trained_head
from common.privacy.noise import Randomness
from common.privacy.plan import PrivacyPlan, PrivacyTerms
from common.tasks import PerUnitLoss, task_named

log = logging.getLogger("fedgraft.node")


def accept_offer(offer: Offer, node: Node) -> Hello:
    """Answer an offer, before any record is read.

    Raises:
        PrivacyError: the offer is weaker than the node's policy.
        ConfigError: it means other classes than the node's.
    """
    own, plan = accepted(offer, node)
    make_head(own.model)  # cut, head and what of it is trained
    if plan.terms.trust == "secagg":
        node.sums().check_ready(plan.terms.nodes)
    untouched = node.untouched()
    if untouched is not None:
        check_whole(untouched, plan, offer.run_id)
        return egress.release_hello(node.name, node.declared_size)
    with node.open_ledger() as ledger:
        ledger.check_plan(plan, offer.run_id, whole=not node.policy.partial)
    return egress.release_hello(node.name, node.declared_size)


def train_round(task: TrainTask, node: Node) -> Update:
    """Train the head on this node's records for one round and release it; as ``round_in_steps``."""
    return to_the_end(round_in_steps(task, node))


def round_in_steps(task: TrainTask, node: Node) -> Steps[Update]:
    """Train the head on this node's records for one round and release it.

    Where it yields, an engine may let other nodes come as far; a node by itself goes on at once.

    Guarantees:
        The budget is reserved, durably, before a record is read for this round, and the update's bytes are stored
        before it leaves; the same task again is answered with the same bytes and costs nothing more.

    Raises:
        PrivacyError: the plan is refused, or the budget does not suffice.
        ProtocolError: the plan has no such round.
        ConfigError: the task means other classes, or another backbone, than the node's.
    """
    offer, plan = accepted(task.offer, node)
    require_local(plan)
    task = replace(task, offer=offer)
    if not 1 <= task.round <= plan.terms.rounds:
        raise ProtocolError(f"expected a round from 1 to {plan.terms.rounds}, got {task.round}; refuse the message")
    digest = yield Asked(arrays_digests, task.head)
    module = head_for(task, digest, plan)  # one that does not fit is refused before anything is paid
    with node.open_ledger() as ledger:
        spend = Spend(task.offer.run_id, task.round, digest, node.name)
        reservation = ledger.reserve(spend, plan, whole=not node.policy.partial)
        if isinstance(reservation, StoredReply):
            return egress.release_update(safetensors.torch.load(reservation.reply), task.head)
        yield None
        records = node.records(task.offer.model)  # sensitive from here
        head = yield from update_in_steps(module, task, records, plan, node.randomness(task.round))
        update: Update = yield Asked(egress.release_updates, egress.Leaving.like(head, task.head))
        reply = safetensors.numpy.save({name: value.numpy() for name, value in update.head.items()})
        yield None
        if (settled := ledger.settle(reservation, reply)) != reply:
            update = egress.release_update(safetensors.torch.load(settled), task.head)
    yield None
    return update


def head_for(task: TrainTask, digest: str, plan: PrivacyPlan) -> nn.Module:
    """The head that was sent: the one of all nodes of this process where no step changes it, else one of its own."""
    if plan.terms.steps_per_round > 1:
        return trained_head(task.offer.model, task.head)
    return shared_head(task.offer.model, task.head, digest)


def require_local(plan: PrivacyPlan) -> None:
    """Make sure that what is released by itself has all of its noise.

    Raises:
        PrivacyError: by the plan a node's noise counts in a sum over nodes only.
    """
    if plan.terms.trust != "local":
        raise PrivacyError(
            f'a node releases by itself under trust "local" only, the plan says {plan.terms.trust!r}; ask for a sum'
        )


def private_update(
    head: nn.Module, task: TrainTask, records: Records, plan: PrivacyPlan, randomness: tuple[Randomness, Randomness]
) -> dict[str, Tensor]:
    """The global head after this round's private gradient steps; as ``update_in_steps``."""
    return to_the_end(update_in_steps(head, task, records, plan, randomness))


def update_in_steps(
    head: nn.Module, task: TrainTask, records: Records, plan: PrivacyPlan, randomness: tuple[Randomness, Randomness]
) -> Steps[dict[str, Tensor]]:
    """The global head after this round's private gradient steps (DP-SGD, Abadi et al. 2016, arXiv:1607.00133).

    A step without a single sampled record is a step like any other: noise is added and it is paid for.

    Args:
        head: the model's, with the parameters that were sent; one step leaves it as it is, several train it in place.
        task: the round's work.
        records: the node's features and targets.
        plan: clipping norm, noise multiplier, sampling rate and number of steps.
        randomness: for sampling and for noise, in this order.

    Returns:
        The new head, name to float32 tensor.
    """
    loss = task_named(task.offer.model.task).loss
    trained = trained_arrays(head)
    reached: dict[str, Tensor] = {}
    sampling, noise = randomness
    non_finite = 0
    for _ in range(plan.terms.steps_per_round):
        clipped = yield from sampled_sum_in_steps(head, loss, records, plan.terms, sampling)
        non_finite += clipped.non_finite
        gradient = yield Asked(noisy_gradients, Noising(clipped, plan, noise))
        reached = yield Asked(descend, Step(trained, gradient, task))
        if plan.terms.steps_per_round > 1:
            load_arrays(head, reached)
    _tell(non_finite)
    return reached


def sampled_sum(
    head: nn.Module, loss: PerUnitLoss, records: Records, terms: PrivacyTerms, sampling: Randomness
) -> ClippedSum:
    """The clipped sum over a Poisson sample of units; a unit is a record, or a patient with all of its records."""
    clipped = to_the_end(sampled_sum_in_steps(head, loss, records, terms, sampling))
    _tell(clipped.non_finite)
    return clipped


def sampled_sum_in_steps(
    head: nn.Module, loss: PerUnitLoss, records: Records, terms: PrivacyTerms, sampling: Randomness
) -> Steps[ClippedSum]:
    """As ``sampled_sum``; sums over records may be made together with those of other nodes."""
    if terms.unit == "record":
        features, targets = records.take(sampling.bernoulli(len(records), terms.sampling_rate))
        clipped: ClippedSum = yield Asked(clipped_sums, Batch(head, loss, features, targets, terms.clipping_norm))
        return clipped
    if records.patients is None:
        raise PrivacyError('the plan protects one patient, and the data name none; use unit "record", or name them')
    drawn, sizes = draw(records.patients, terms.sampling_rate, terms.records_per_unit, sampling)
    return patient_clipped_sum(head, loss, *records.take(drawn), sizes, terms.clipping_norm)


def _tell(non_finite: int) -> None:
    """Say in the node's own log, once a message, that units did not count."""
    if non_finite:
        log.warning("gradients of %d sampled units were not finite; they counted zero", non_finite)


def evaluate(task: EvaluateTask, node: Node) -> Metrics:
    """Score a head on this node's own records; the metrics policy decides whether the result may leave.

    Raises:
        PrivacyError: the metrics policy lets nothing out; no record is read.
        ConfigError: the task means other classes than the node's.
    """
    egress.release_metrics(0.0, node.policy.metrics, simulated=node.simulated)
    model = accepted(task.offer, node)[0].model
    records = node.records(model)
    head = trained_head(model, task.head)
    scores = task_named(model.task).score(head, *records.everything())
    return egress.release_metrics(scores.accuracy, node.policy.metrics, simulated=node.simulated)


def accepted(offer: Offer, node: Node) -> tuple[Offer, PrivacyPlan]:
    """The offer as this node knows its backbone, and the plan of it; or refuse it, from public constants only.

    The classes are compared because a head too narrow for a label fails just where a record has that label: the
    failure would be an un-noised answer about the records.
    """
    plan = node.policy.accept(offer, node.declared_size)
    offer = replace(offer, model=node.own(offer.model))
    check_backbone(offer.model)
    if offer.model.task != node.task:
        raise ConfigError(
            f"expected the task {node.task!r} of this node's data, the server's model is for {offer.model.task!r}; "
            "agree on one task"
        )
    if offer.model.classes != node.classes:
        raise ConfigError(
            f"expected the {len(node.classes)} classes of this node's data, the server's model has "
            f"{len(offer.model.classes)}, or other names or another order; agree on one class list"
        )
    return offer, plan

"""One private release of what a candidate backbone is scored by, as a straight path."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from client import egress
from client.ledger import Spend, StoredReply
from client.node import Node, Records
from client.training import accept_offer, require_local
from common.errors import PrivacyError, ProtocolError
from common.features import as_tensor
from common.grafting import Layout
from common.messages import Statistics
from common.model import layout_at
from common.noised_moments import NOISE_UNIT, SENSITIVITY, StatisticsTask, bounded_sums, packed_size, projection
from common.privacy.noise import Randomness
from common.privacy.plan import PrivacyPlan
from common.scored_rows import rows_of
from common.scored_targets import Rows, target_bound

AT_ONCE = 512  # records whose rows are in memory together


def release_statistics(task: StatisticsTask, node: Node) -> Statistics:
    """Add up what a candidate is scored by over this node's records, add noise and release it.

    Guarantees:
        The budget is reserved, durably, before a record is read, and the reply is stored before it leaves; the same
        task again is answered with the same bytes and costs nothing more. A record that is not finite counts zero.

    Raises:
        PrivacyError: the plan is refused, or the budget does not suffice.
        ProtocolError: the plan has no such candidate.
        ConfigError: the task means other classes, or another backbone, than the node's.
    """
    plan = _accept(task, node)
    require_local(plan)
    task = replace(task, offer=replace(task.offer, model=node.own(task.offer.model)))
    model = task.offer.model
    size = packed_size(task.sketch.width, model.task, len(model.classes))
    with node.open_ledger() as ledger:
        spend = Spend(task.offer.run_id, task.candidate, task.digest, node.name)
        reservation = ledger.reserve(spend, plan)
        if isinstance(reservation, StoredReply):
            return egress.release_statistics(np.frombuffer(reservation.reply, dtype="<f8"), size)
        records = node.records(model)  # sensitive from here
        values = noised_sums(task, records, plan, node.randomness(NOISE_UNIT - task.candidate)[1])
        released = egress.release_statistics(values, size)
        settled = ledger.settle(reservation, released.values.astype("<f8").tobytes())
    return egress.release_statistics(np.frombuffer(settled, dtype="<f8"), size)


def noised_sums(
    task: StatisticsTask, records: Records, plan: PrivacyPlan, randomness: Randomness
) -> NDArray[np.float64]:
    """The Gaussian mechanism on sums that one record more or less changes by at most ``SENSITIVITY`` in L2."""
    model = task.offer.model
    shapes = layout_at(model.backbone, model.cut)
    total = np.zeros(packed_size(task.sketch.width, model.task, len(model.classes)))
    matrix = None
    for rows in _parts(task, records, shapes):
        if matrix is None:
            matrix = projection(rows.features.shape[1], task.sketch)
        total += bounded_sums(rows, matrix, target_bound(model.task, len(model.classes)))
    deviation = plan.terms.noise_multiplier * plan.terms.clipping_norm
    return total + deviation * randomness.normal(total.shape)


def _parts(task: StatisticsTask, records: Records, shapes: Layout) -> Iterator[Rows]:
    model = task.offer.model
    for start in range(0, len(records), AT_ONCE):
        features = as_tensor(records.features, records.rows[start : start + AT_ONCE]).numpy()
        targets = records.targets[start : start + AT_ONCE]
        yield rows_of(features, targets, model.task, shapes, len(model.classes))


def _accept(task: StatisticsTask, node: Node) -> PrivacyPlan:
    """Make the plan, or refuse it, from public constants only."""
    accept_offer(task.offer, node)
    terms = task.offer.terms
    if terms.unit != "record":
        raise PrivacyError(
            f"statistics are clipped record by record, and would not protect one {terms.unit}; rank backbones on other "
            "data, or without asking nodes"
        )
    if not 1 <= task.candidate <= terms.rounds:
        raise ProtocolError(f"expected a candidate from 1 to {terms.rounds}, got {task.candidate}; refuse the message")
    if (terms.sampling_rate, terms.steps_per_round, terms.clipping_norm) != (1.0, 1, SENSITIVITY):
        raise PrivacyError(
            f"statistics are released once a candidate, from all records, with the sensitivity {SENSITIVITY:g}; the "
            "server offers other terms: refuse them"
        )
    return terms.for_node(node.declared_size)

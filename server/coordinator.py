"""From a configuration to what the server proposes: model, privacy terms, first head, held-out records."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from common.config import RunConfig
from common.data import LocalData
from common.data.federation import Federation, assemble, source_features, source_targets
from common.errors import PrivacyError
from common.features import as_tensor, cached_backbone
from common.grafting import threads
from common.heads import head_arrays
from common.messages import ModelSpec, Offer
from common.model import choose_cut, classifier_width, make_head, suited, trained_head
from common.precision import resolve
from common.privacy.canonical import sha256_hex
from common.privacy.hospitals import noise_multiplier_across
from common.privacy.plan import PrivacyTerms
from common.solved_heads import SOLVED_HEADS
from common.tasks import Scores, task_named
from server.defaults import default_clipping_norm
from server.rounds import Evaluate, RoundPlan


@dataclass(frozen=True)
class Proposal:
    """Everything a run is started with.

    Attributes:
        plan: public constants of the rounds.
        start: the head before the first round.
        evaluate: scores a head on the held-out records.
        watch: scores a head on other records, by what they are: ``"validation"``, the server's own; and ``"train"``, in
            a simulation that lets exact metrics out.
    """

    plan: RoundPlan
    start: dict[str, Tensor]
    evaluate: Evaluate
    watch: Mapping[str, Evaluate]


def propose(config: RunConfig, run_id: str, federation: Federation | None = None) -> Proposal:
    """Work out what a run will do.

    Args:
        config: of the run.
        run_id: ours, the same after a resume.
        federation: the records that the server knows of; None assembles those of a simulation.

    Raises:
        ConfigError: data, backbone or cut are not usable.
        PrivacyError: the privacy section asks for a promise that cannot be kept.
    """
    federation = federation or assemble(config)
    offer = offer_of(config, run_id, federation)
    model = offer.model
    start = make_head(model, seed=config.federation.seed or 0)
    plan = RoundPlan(
        nodes=len(federation.shares),
        offer=offer,
        learning_rate=_learning_rate(config),
        cohort=config.federation.cohort,
        seed=_cohort_seed(config, run_id),
        weighting=config.federation.weighting,
        evaluate_every=config.evaluation.every,
        patience=config.evaluation.patience,
        least_updates=config.federation.least_updates,
    )
    watched = {"validation": federation.validation} if len(federation.validation) else {}
    if config.evaluation.node_metrics == "exact":
        watched["train"] = np.concatenate(list(federation.shares.values()))
    watch = {name: _scorer(federation, model.finished, rows) for name, rows in watched.items()}
    return Proposal(plan, head_arrays(start), _scorer(federation, model.finished, federation.test), watch)


def _learning_rate(config: RunConfig) -> float | None:
    """None for the default; a step of length 1 leads to the sums that a head is solved from."""
    if config.model.head in SOLVED_HEADS:
        return 1.0
    return None if config.training.learning_rate == "auto" else float(config.training.learning_rate)


def offer_of(config: RunConfig, run_id: str, federation: Federation) -> Offer:
    """What the nodes of a run are offered; errors as in ``propose``."""
    check_unit(config, federation)
    model = model_spec(config, federation.data)
    nodes = len(federation.shares) or config.federation.nodes
    return Offer(run_id, model, privacy_terms(config, classifier_width(model), model.task, nodes))


def _scorer(federation: Federation, model: ModelSpec, rows: NDArray[np.int64]) -> Evaluate:
    """Scores a head on some records."""
    task = task_named(model.task)
    features = as_tensor(source_features(federation, model.backbone, model.cut, model.precision), rows)
    targets = source_targets(federation, model.backbone)[torch.from_numpy(rows)]

    def score(head: dict[str, Tensor]) -> Scores:
        with threads(1):
            return task.score(trained_head(model, head), features, targets)

    return score


def _cohort_seed(config: RunConfig, run_id: str) -> int:
    """The run's seed; without one, a number that its id decides, so that a resumed run asks the same nodes again."""
    seed = config.federation.seed
    return int(sha256_hex("fedgraft cohorts", run_id), 16) if seed is None else seed


def model_spec(config: RunConfig, data: LocalData) -> ModelSpec:
    """The model section with everything filled in.

    Raises:
        ConfigError: backbone or cut are not usable, or do not suit the data.
    """
    reference = suited(config.model.reference, data)
    cut = choose_cut(reference, config.model.cut, data.task)
    return ModelSpec(
        backbone=reference,
        backbone_digest=cached_backbone(reference).digest,
        cut=cut,
        head=config.model.head,
        hidden=config.model.hidden,
        classes=data.classes,
        task=data.task,
        train=config.model.train,
        precision=resolve(config.model.precision, cached_backbone(reference), cut),
    )


def privacy_terms(
    config: RunConfig, features: int, task: str = "classification", nodes: int | None = None
) -> PrivacyTerms:
    """The privacy section as terms, with the least noise that keeps epsilon after the last step.

    Args:
        config: of the run.
        features: how many the classifier is given, which a default clipping norm depends on.
        task: what is learnt, which it depends on, too.
        nodes: in the federation; None for ``federation.nodes``.

    Raises:
        PrivacyError: the section asks for what cannot be promised.
    """
    privacy, steps = config.privacy, config.federation.rounds * config.training.local_steps
    clipping_norm, summed = privacy.clipping_norm, privacy.trust == "secagg"
    return PrivacyTerms(
        unit=privacy.unit,
        trust=privacy.trust,
        sampling_rate=privacy.sampling_rate,
        rounds=config.federation.rounds,
        steps_per_round=config.training.local_steps,
        clipping_norm=default_clipping_norm(features, task, config.model.head)
        if clipping_norm == "auto"
        else float(clipping_norm),
        noise_multiplier=noise_multiplier_across(
            privacy.epsilon, privacy.delta, privacy.sampling_rate, steps, privacy.trust, privacy.most_hospitals
        ),
        delta=privacy.delta,
        records_per_unit=privacy.records_per_patient if privacy.unit == "patient" else 1,
        nodes=(config.federation.cohort or nodes or config.federation.nodes) if summed else 0,
        dropouts=privacy.most_dropouts if summed else 0,
        colluders=privacy.most_colluders if summed else 0,
        largest_node=privacy.most_declared if summed else 0,
        hospitals_per_unit=privacy.most_hospitals,
    )


def check_unit(config: RunConfig, federation: Federation) -> None:
    """A data set that names patients must say which unit is meant.

    A coordinator's own records may name no patient: those of the nodes do, and each node sees to it.

    Raises:
        PrivacyError: unit "record" on data with a patient column, without acknowledgement; unit "patient" on the data
            of a simulation without one.
    """
    names_patients, acknowledged = federation.data.patient is not None, config.privacy.acknowledge_record_unit
    if federation.shares and config.privacy.unit == "patient" and not names_patients:
        raise PrivacyError(
            'privacy.unit = "patient" needs data that name patients, got none; say patient = "<column>" in '
            '[data.keys], or choose unit = "record"'
        )
    if names_patients and config.privacy.unit == "record" and not acknowledged:
        raise PrivacyError(
            'the data name patients, and privacy.unit = "record" protects one record of a patient only; set '
            "privacy.acknowledge_record_unit = true if that is what you mean"
        )

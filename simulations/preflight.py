"""Everything that can be found wrong with a run before it starts, so that nothing half-made is left behind."""

from __future__ import annotations

import time
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from common.backbones.backbone import CutsTexts
from common.config import RunConfig, check_updates
from common.data.federation import Federation, assemble, source_features
from common.errors import ConfigError
from common.features import Progress, cached_backbone, default_cache, first_not_finite
from server.aggregation import build_strategy
from server.coordinator import Proposal, model_spec, offer_of, propose


@dataclass(frozen=True)
class Preflight:
    """What a run is about to do.

    Attributes:
        federation: all records and who holds them.
        proposal: plan, first head and evaluation.
        features: of all records, shape (N, D).
        seconds: time that loading and computing the features took.
        truncated: texts that are longer than the backbone takes; None where records are no texts.
    """

    federation: Federation
    proposal: Proposal
    features: NDArray[np.float32]
    seconds: float
    truncated: int | None


def check(config: RunConfig, progress: Progress | None = None) -> Preflight:
    """Read the data, compute the features and work out the plan; write nothing but the feature cache.

    Args:
        config: of the run.
        progress: called with (records done, records to do) while features are computed.

    Raises:
        ConfigError: data, backbone, cut, strategy or features are not usable.
        PrivacyError: the promise that is asked for cannot be kept.
    """
    began = time.perf_counter()
    federation = assemble(config)
    model = model_spec(config, federation.data)
    offer_of(config, "preflight", federation)  # a promise that cannot be kept is refused before an hour of computing
    default_cache().features(
        cached_backbone(model.backbone), model.cut, federation.data, progress, precision=model.precision
    )
    features = source_features(federation, model.backbone, model.cut, model.precision)
    _check_finite(features, federation)
    seconds = time.perf_counter() - began
    settings = config.federation
    build_strategy(
        settings.strategy,
        server_learning_rate=settings.server_learning_rate,
        server_momentum=settings.server_momentum,
        proximal_mu=settings.proximal_mu,
        malicious=settings.malicious,
    )
    proposal = propose(config, "preflight")
    for share in federation.shares.values():
        proposal.plan.offer.terms.for_node(federation.units(share, config.privacy.unit))
    _check_cohort(config, federation)
    preprocessing = cached_backbone(model.backbone).preprocessing
    truncated = preprocessing.truncated(federation.data.inputs) if isinstance(preprocessing, CutsTexts) else None
    return Preflight(federation, proposal, features, seconds, truncated)


def _check_finite(features: NDArray[np.float32], federation: Federation) -> None:
    bad = first_not_finite(features)
    if bad is not None:
        holder = next((name for name, share in federation.shares.items() if bad in share), "the held-out records")
        raise ConfigError(
            f"expected finite features, got NaN or infinity for record {bad} ({holder}); look at that record, or "
            "choose another backbone"
        )


def _check_cohort(config: RunConfig, federation: Federation) -> None:
    cohort, nodes = config.federation.cohort, len(federation.shares)
    if cohort is not None and cohort > nodes:
        raise ConfigError(f"federation.cohort must be at most the number of nodes, {nodes}, got {cohort}; lower it")
    check_updates(config, nodes)

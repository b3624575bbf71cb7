"""What is attacked: a configuration as a claim, with the data and the way of training that go with it."""

from __future__ import annotations

import hashlib
import importlib.metadata
import platform
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from common.config import RunConfig, config_digest, dump_toml
from common.data import LocalData
from common.data.federation import source_targets
from common.errors import ConfigError
from common.features import Progress, as_tensor, cached_backbone
from common.model import make_head
from common.privacy.accountant import epsilon_by_round
from common.privacy.plan import PrivacyTerms
from common.privacy.sums import epsilon_against_model
from server.defaults import default_learning_rate
from simulations import preflight
from simulations.audits.audit_report import Origin
from simulations.audits.findings import Claim
from simulations.report.results import printable

LARGEST_EPSILON = 20.0
_VERSIONS = ("fedgraft", "torch", "numpy", "scipy", "dp-accounting", "cryptography")


@dataclass(frozen=True, eq=False)
class Subject:
    """A configuration made ready for attacks.

    Attributes:
        config: of the run that is audited.
        claim: what it promises each unit.
        ready: data, features and plan.
        parameters: how many of the head are trained.
        learning_rate: of the local steps.
        node: the one whose records are attacked: the smallest, where the noise is divided by the least.
    """

    config: RunConfig
    claim: Claim
    ready: preflight.Preflight
    parameters: int
    learning_rate: float
    node: str

    @property
    def terms(self) -> PrivacyTerms:
        """The privacy terms of the plan."""
        return self.ready.proposal.plan.offer.terms

    @property
    def nodes(self) -> int:
        """How many nodes a round averages over."""
        return self.config.federation.cohort or len(self.ready.federation.shares)

    def weights(self, sizes: Sequence[int]) -> list[float]:
        """What the plan weights nodes of these declared sizes by."""
        return weights_of(self.ready.proposal.plan.weighting, sizes)

    @property
    def count(self) -> int:
        """How many training records there are."""
        return sum(len(share) for share in self.ready.federation.shares.values())

    @property
    def confidential(self) -> bool:
        """Whether real data are used."""
        return self.config.data.source != "digits"

    @property
    def whole_nodes(self) -> str | None:
        """Why attacks with single records of one node do not suit, or None."""
        if self.claim.unit != "record":
            return "attacks with records plant single records, and here a patient's records belong together"
        if self.claim.survivors:
            return "attacks with records read the updates of one node, and under secagg trust nobody sees those"
        return None

    @property
    def has_linear_head(self) -> bool:
        """Whether records can be attacked: one linear layer over one feature vector, one class a record."""
        return self.config.model.head == "linear" and self.ready.federation.data.task == "classification"

    def records(self, rows: NDArray[np.int64]) -> tuple[Tensor, Tensor]:
        """Features (n, D) and targets (n,) of some records."""
        targets = source_targets(self.ready.federation, self.ready.proposal.plan.offer.model.backbone)
        return as_tensor(self.ready.features, rows), targets[torch.from_numpy(rows)]


def make_subject(config: RunConfig, progress: Progress | None = None) -> Subject:
    """Load data, compute features and work out what is promised.

    Args:
        config: of the run that is audited.
        progress: called with (records done, records to do) while features are computed.

    Raises:
        ConfigError: data, backbone or cut are not usable, or the promise is too weak to be put to a test.
        PrivacyError: the promise that is asked for cannot be kept.
    """
    ready = preflight.check(config, progress)
    plan, shares = ready.proposal.plan, ready.federation.shares
    claim = claim_of(plan.offer.terms)
    if claim.epsilon > LARGEST_EPSILON:
        raise ConfigError(
            f"expected a promise that attacks can put to the test, epsilon of at most {LARGEST_EPSILON:g}, got "
            f"{claim.epsilon:.4g}: that is as good as no privacy, and no number of heads could show that it is broken; "
            "lower privacy.epsilon"
        )
    head = make_head(plan.offer.model)
    parameters = sum(value.numel() for value in head.parameters() if value.requires_grad)
    sizes = [len(share) for share in shares.values()]
    weights = weights_of(plan.weighting, sizes)
    model = plan.offer.model
    rate = plan.learning_rate or default_learning_rate(
        plan.offer.terms, parameters, sizes, weights, plan.cohort, model.head, model.train
    )
    smallest = min(shares, key=lambda name: len(shares[name]))
    return Subject(config, claim, ready, parameters, rate, smallest)


def weights_of(weighting: str, sizes: Sequence[int]) -> list[float]:
    """Weights of nodes of these declared sizes in the server's average.

    >>> weights_of("declared", [20, 30]), weights_of("equal", [20, 30])
    ([20.0, 30.0], [1.0, 1.0])
    """
    return [float(size) if weighting == "declared" else 1.0 for size in sizes]


def claim_of(terms: PrivacyTerms) -> Claim:
    """What a plan's terms promise, by the accountant that the ledgers use."""
    return Claim(
        epsilon=epsilon_by_round(terms)[terms.rounds],
        delta=terms.delta,
        unit=terms.unit,
        trust=terms.trust,
        steps=terms.steps,
        sampling_rate=terms.sampling_rate,
        noise_multiplier=terms.noise_multiplier,
        clipping_norm=terms.clipping_norm,
        **(_of_sums(terms) if terms.trust == "secagg" else {}),
    )


def _of_sums(terms: PrivacyTerms) -> dict[str, Any]:
    survivors = terms.nodes - terms.dropouts
    return {
        "survivors": survivors,
        "honest": survivors - terms.colluders,
        "epsilon_against_model": epsilon_against_model(terms, terms.rounds),
    }


def origin_of(subject: Subject, name: str, seed: int | None) -> Origin:
    """Say what was audited, by what, so that somebody else can audit the same.

    Args:
        subject: what was audited.
        name: of its configuration.
        seed: of the attacks.
    """
    config, ready = subject.config, subject.ready
    sizes = [len(share) for share in ready.federation.shares.values()]
    backbone = cached_backbone(ready.proposal.plan.offer.model.backbone)
    return Origin(
        name=printable(name),
        config=printable(dump_toml(config)),
        config_digest=config_digest(config),
        data=printable(config.data.source),
        data_digest=data_digest(ready.federation.data),
        backbone=(backbone.name, backbone.digest),
        head=(config.model.head, subject.parameters),
        nodes=len(sizes),
        records=(min(sizes), max(sizes)),
        audited=subject.node,
        seed=seed,
        noise="system" if config.federation.seed is None else "seeded",
        versions={
            **{name: importlib.metadata.version(name) for name in _VERSIONS},
            "python": platform.python_version(),
        },
        written=datetime.now(UTC).isoformat(timespec="seconds"),
        confidential=subject.confidential,
    )


def data_digest(data: LocalData) -> str:
    """SHA-256 over every record's own digest, the labels and the class names, in order."""
    digest = hashlib.sha256(b"fedgraft data 1\n")
    digest.update(np.ascontiguousarray(data.record_digests()).tobytes())
    digest.update(np.ascontiguousarray(data.labels, dtype="<i8").tobytes())
    digest.update("\n".join(data.classes).encode())
    return digest.hexdigest()

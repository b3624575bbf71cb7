"""Replay: the same randomness on neighbouring data sets, for every promise that a single run can break visibly.

Statistical audits need thousands of runs to see that noise is too small. Much of what goes wrong shows in a few runs
when randomness is held still: what a record changes, where noise is missing, what else leaves. A replay looks at the
code that trains, through its own seams; ``replay`` does so for the model and the records of a configuration.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from client.node import Node
from client.open_node import open_node
from client.simulated_node import simulated_in_process
from common.config import RunConfig, to_flat
from common.data.federation import source_targets
from common.data.local import LocalData
from common.features import as_tensor, cached_backbone
from common.grafting import threads
from common.messages import ModelSpec, Offer
from common.model import make_head, trained_head
from common.privacy.plan import PrivacyTerms
from simulations.audits.practice import SHIPPED, Practice, Specimen
from simulations.audits.replay_finding import Finding
from simulations.audits.replay_node import replay_books, replay_features, replay_node
from simulations.audits.replay_steps import replay_steps
from simulations.audits.replay_sums import SUM_CHECKS, replay_sums
from simulations.audits.sum_specimens import sum_specimen
from simulations.preflight import Preflight, check

__all__ = [
    "CHECKS",
    "SUM_CHECKS",
    "Finding",
    "builtin_replay",
    "builtin_specimen",
    "replay",
    "replay_node",
    "replay_steps",
]

CHECKS = {
    "sensitivity": "one record more or less moves the clipped sum, and the release, by at most C",
    "noise": "every released value has noise of its own, C sigma over the plan's divisor, whatever the data",
    "empty batch": "a step without a record is noised like any other",
    "sampling": "those take part whose independent flag was drawn",
    "steps": "the plan's number of steps, at the plan's rate",
    "not finite": "a record that is not finite leaves no trace and stops nothing",
    "what leaves": "nothing but trainable parameters comes out of the private steps",
    "noise of each round": "no round is trained without the node's own noise",
    "fresh noise": "no two rounds and no two nodes share their noise",
    "repeat": "a repeated task is answered with the same bytes",
    "budget": "a round beyond the cap is refused",
    "company": "one record more at a node changes what leaves it by at most C over the divisor",
    "what leaves the node": "nothing but the head leaves",
    "books": "the node's books show no less epsilon than what was released certainly cost",
    "features": "the features of the other records do not change when one is added",
}


def replay(config: RunConfig, practice: Practice = SHIPPED, records: int = 6) -> tuple[Finding, ...]:
    """Run every check on the model, the plan and some records of a configuration.

    Args:
        config: of the run.
        practice: how the node works; what is shipped.
        records: how many of the first node's records take part, at least 2.

    Returns:
        One finding a check, in the order of ``CHECKS``; under trust ``"secagg"`` those of ``SUM_CHECKS``, and of
        ``CHECKS`` the books and the features.

    Raises:
        ConfigError: data, backbone or cut are not usable.
        PrivacyError: the privacy section asks for what cannot be promised.
    """
    preflight = check(config)
    specimen = _specimen_of(preflight, records)
    model, federation = specimen.offer.model, preflight.federation
    rows = next(iter(federation.shares.values()))[: records + 1]
    subject, rounds = specimen.name, specimen.offer.terms.rounds
    sources = _sources_of(config)
    with threads(1):
        if specimen.offer.terms.trust == "secagg":
            looked = replay_sums(practice, specimen, {name: node.share_of_noise for name, node in sources.items()})
        else:
            own = {name: node.randomness for name, node in sources.items()}
            looked = (*replay_steps(practice, specimen), *replay_node(practice, specimen, own))
        return (
            *looked,
            replay_books(practice, subject, specimen.plan, rounds),
            replay_features(practice, subject, cached_backbone(model.backbone), model.cut, federation.data, rows),
        )


def builtin_replay(practice: Practice = SHIPPED) -> tuple[Finding, ...]:
    """Run every check on a small linear head with made-up records, where mistakes show within a second or two.

    Args:
        practice: how the node works.
    """
    specimen = builtin_specimen()
    pixels = np.random.default_rng(0).integers(0, 255, (5, 2, 2), dtype=np.uint8)
    data = LocalData(pixels, np.arange(5, dtype=np.int64) % 3, specimen.offer.model.classes)
    long = specimen.with_terms(rounds=4, steps_per_round=250, sampling_rate=0.05, noise_multiplier=1.0)
    backbone = cached_backbone(specimen.offer.model.backbone)
    with threads(1):
        return (
            *replay_steps(practice, specimen),
            *replay_node(practice, specimen),
            replay_books(practice, specimen.name, long.plan, 4),
            replay_features(practice, specimen.name, backbone, specimen.offer.model.cut, data, np.arange(5)),
            *replay_sums(practice, sum_specimen(specimen)),
            *replay_sums(practice, sum_specimen(specimen, "patient")),
        )


def builtin_specimen() -> Specimen:
    """A linear head on four features, three classes and eight records; the gradients of half of them exceed C."""
    reference = "pixels/2"
    model = ModelSpec(
        backbone=reference,
        backbone_digest=cached_backbone(reference).digest,
        cut="pixels",
        head="linear",
        hidden=1,
        classes=("0", "1", "2"),
    )
    terms = PrivacyTerms(
        unit="record",
        trust="local",
        sampling_rate=0.5,
        rounds=4,
        steps_per_round=1,
        clipping_norm=2.0,
        noise_multiplier=1.5,
        delta=1e-5,
    )
    features = torch.randn((8, 4), generator=torch.Generator().manual_seed(0)) * torch.linspace(0.1, 3, 8)[:, None]
    return Specimen("linear", make_head(model), Offer("audit", model, terms), features, torch.arange(8) % 3, 20)


def _specimen_of(preflight: Preflight, records: int) -> Specimen:
    """The run's head, plan and some records of its first node."""
    offer = preflight.proposal.plan.offer
    share = next(iter(preflight.federation.shares.values()))
    rows = _mixed(preflight.federation.data.strata[share], share, records)
    head = trained_head(offer.model, preflight.proposal.start)
    targets = source_targets(preflight.federation, offer.model.backbone)[torch.from_numpy(rows)]
    name = f"{offer.model.head} head on {offer.model.backbone}"
    declared = preflight.federation.units(share, offer.terms.unit)
    return Specimen(name, head, offer, as_tensor(preflight.features, rows), targets, declared)


def _mixed(strata: NDArray[np.int64], share: NDArray[np.int64], records: int) -> NDArray[np.int64]:
    """So many records of a share, the first of each stratum before the second of any."""
    order = np.argsort(strata, kind="stable")
    ranks = np.empty(len(share), dtype=np.int64)
    ranks[order] = np.concatenate([np.arange(count) for count in np.unique(strata, return_counts=True)[1]])
    return share[np.argsort(ranks, kind="stable")[:records]]


def _sources_of(config: RunConfig) -> dict[str, Node]:
    """The run's first nodes, which say where they draw from."""
    nodes = min(2, config.federation.nodes)
    with tempfile.TemporaryDirectory() as folder, simulated_in_process(Path(folder)):
        opened = [open_node(1, to_flat(config), {"partition-id": number}) for number in range(nodes)]
    return {node.name: node for node in opened}

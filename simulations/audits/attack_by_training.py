"""Gradient canaries through the code that trains: nodes take private rounds, their heads are averaged, and so on."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from client.node import Records
from client.training import private_update
from common.messages import ModelSpec, Offer, TrainTask
from common.privacy.noise import Randomness
from common.privacy.plan import PrivacyPlan, PrivacyTerms
from simulations.audits.canaries import CLASSES, Canaries, along_canaries, gradient_canaries, small_learning_rate
from simulations.audits.findings import Claim, Threat, Vector

Streams = Callable[[int, int], tuple[Randomness, Randomness]]


def released(
    claim: Claim,
    threat: Threat,
    included: NDArray[np.bool_],
    features: int,
    nodes: int,
    rounds: int,
    streams: Streams,
) -> Vector:
    """Train one global head and take from it what the attacker sees of each canary.

    The first node holds the canaries that are included and nothing else, the others hold nothing; all of this the
    attacker knows.

    Args:
        claim: of the mechanism.
        threat: who attacks.
        included: which gradient canaries are among the first node's records, shape (m,).
        features: of the head, at least m.
        nodes: that average with equal weights; a peer is the last of them.
        rounds: that divide the claim's steps.
        streams: (node, round) -> randomness for sampling and for noise.

    Returns:
        Sums over the steps of a round of how often each canary was sampled, with noise, shape (R, m); for the final
        head one such sum over all rounds.
    """
    canaries = gradient_canaries(features, claim.clipping_norm)
    plan = _plan(claim, rounds, features)
    rate = small_learning_rate(claim.clipping_norm, claim.noise_multiplier, claim.steps, plan.expected_batch)
    kept = np.flatnonzero(included)
    shares = [_records(canaries, kept), *[_records(canaries, kept[:0])] * (nodes - 1)]
    unit = -plan.expected_batch / (rate * claim.clipping_norm)
    head, seen = {"bias": torch.zeros(CLASSES), "weight": torch.zeros(CLASSES, features)}, []
    for turn in range(1, rounds + 1):
        task = TrainTask(_offer(plan.terms), turn, head, rate, 0.0)
        found = [
            private_update(_module(head), task, share, plan, streams(node, turn)) for node, share in enumerate(shares)
        ]
        after = {name: torch.stack([each[name] for each in found]).double().mean(dim=0).float() for name in head}
        seen.append(unit * _moved(threat, head["weight"], after["weight"], [each["weight"] for each in found]))
        head = after
    total = np.stack(seen)[:, : len(included)]
    return total.sum(axis=0, keepdims=True) if threat == "model" else total


def _moved(threat: Threat, before: Tensor, after: Tensor, found: Sequence[Tensor]) -> Vector:
    """By how much the attacked node's head moved along each canary, as far as the attacker can tell."""
    moves = [along_canaries(weight.double() - before.double()) for weight in found]
    if threat == "server":
        return np.asarray(moves[0])
    total = len(found) * along_canaries(after.double() - before.double())
    return np.asarray(total - moves[-1] if threat == "peer" else total)


def _records(canaries: Canaries, rows: NDArray[np.int64]) -> Records:
    return Records(canaries.features.numpy(), rows, canaries.targets[torch.from_numpy(rows)])


def _module(head: dict[str, Tensor]) -> nn.Linear:
    module = nn.Linear(head["weight"].shape[1], CLASSES)
    module.load_state_dict(head)
    return module


def _plan(claim: Claim, rounds: int, declared_size: int) -> PrivacyPlan:
    terms = PrivacyTerms(
        unit="record",
        trust="local",
        sampling_rate=claim.sampling_rate,
        rounds=rounds,
        steps_per_round=claim.steps // rounds,
        clipping_norm=claim.clipping_norm,
        noise_multiplier=claim.noise_multiplier,
        delta=claim.delta,
    )
    return terms.for_node(declared_size)


def _offer(terms: PrivacyTerms) -> Offer:
    model = ModelSpec(
        backbone="canaries", backbone_digest="0" * 64, cut="", head="linear", hidden=1, classes=("canary", "none")
    )
    return Offer("audit", model, terms)

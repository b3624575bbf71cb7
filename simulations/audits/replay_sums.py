"""Replay of sums over nodes: what a node masks, on neighbouring data sets with the same share of noise.

A node's integers less those of its neighbour show the unit between them, and integers less the rounded sum show the
share of noise, number by number. What a share has to be is worked out here from the terms.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from itertools import combinations
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from client.distributed_noise import rounded
from client.training import sampled_sum
from common.errors import PrivacyError
from common.privacy.noise import SeededRandomness, WordSource
from common.privacy.shares import NoiseShares
from common.privacy.skellam_noise import skellam_from_words
from common.tasks import task_named
from simulations.audits.practice import Company, Practice, Specimen, company, task_for
from simulations.audits.probes import ShareOfNoise, Who
from simulations.audits.replay_finding import Case, Finding, at_most, guarded, stated
from simulations.audits.replay_node import node_for
from simulations.audits.replay_steps import neighbours
from simulations.audits.sum_specimens import masked_by, shares_of

ROUNDS = 2

ShareSources = Mapping[str, Callable[[int], WordSource]]
"""Node name to where a round's share of noise comes from."""

SUM_CHECKS = {
    "sum": "one unit more or less moves the integers that a node masks by at most what the shares are made for",
    "share of noise": "every node adds its share, sized for drop-outs and colluders, whatever the data",
    "fresh shares": "no two rounds and no two nodes share their noise",
    "alone": "a node releases nothing by itself",
}


def replay_sums(practice: Practice, specimen: Specimen, sources: ShareSources | None = None) -> tuple[Finding, ...]:
    """Check what a node does in a round of sums.

    Args:
        practice: whose ``share`` and ``train`` are looked at.
        specimen: of trust ``"secagg"``; for the unit patient its records are dealt out to patients.
        sources: of several nodes; None makes two seeded ones, as a simulation does.
    """
    drawing = sources or {name: _seeded(name) for name in ("node-0", "node-1")}
    checks = {
        "sum": lambda: _sensitivity(practice, specimen),
        "share of noise": lambda: _shares(practice, specimen),
        "fresh shares": lambda: _fresh(practice, specimen, drawing),
        "alone": lambda: _alone(practice, specimen),
    }
    return tuple(guarded(name, specimen.name, look) for name, look in checks.items())


_WHO: tuple[Who, ...] = ("everyone", "sampled")


def _sensitivity(practice: Practice, specimen: Specimen) -> Finding:
    """One unit more moves a node's integers, with the same share of noise, by at most D; the others are drawn alike."""
    shares, cases = shares_of(specimen), []
    for who in _WHO:
        seen: dict[bytes, NDArray[np.int64]] = {}
        for what, more, less in neighbours(specimen):
            for place in (more, less):
                if place.key not in seen:
                    seen[place.key] = masked_by(practice, specimen, place, place.sampling(who), ShareOfNoise())
            moved = shares.opened(shares.residues(seen[more.key] - seen[less.key])) * shares.scale
            cases.append(Case(float(np.linalg.norm(moved)) / shares.sensitivity, 0.0, what))
    promise = f"one {specimen.offer.terms.unit} more or less moves a node's integers by at most their sensitivity (1 D)"
    return at_most("sum", specimen.name, promise, 1.0, cases)


def _shares(practice: Practice, specimen: Specimen) -> Finding:
    """A node's integers hold its share of noise, which is as large as the terms ask for."""
    shares, whole = shares_of(specimen), company(specimen)
    least = _least_variance(specimen, shares)
    cases = [Case(max(0.0, least / shares.share_variance - 1), 0.0, "the shares were sized")]
    for name in ("node-0", "node-1"):
        for what, place in _places(whole):
            sent = masked_by(practice, specimen, place, place.sampling("everyone"), ShareOfNoise(), name)
            plain = _plain(specimen, place, shares)
            noise = skellam_from_words(ShareOfNoise().words, shares.numbers, shares.share_variance)
            wrong = shares.opened(shares.residues(sent - plain - noise)) * shares.scale
            size = math.sqrt(shares.numbers * shares.share_variance)
            cases.append(Case(float(np.linalg.norm(wrong)) / size, 0.0, f"{what} at {name}"))
    promise = "every node's integers hold a share of noise for the honest survivors alone to suffice"
    return at_most("share of noise", specimen.name, promise, 0.0, cases)


def _least_variance(specimen: Specimen, shares: NoiseShares) -> float:
    """Of one share, by the terms: ((sigma D)^2 + 1) over the honest survivors, D from scale and numbers alone."""
    terms = specimen.offer.terms
    sensitivity = shares.scale * terms.clipping_norm + math.sqrt(shares.numbers)
    return ((terms.noise_multiplier * sensitivity) ** 2 + 1) / (terms.nodes - terms.dropouts - terms.colluders)


def _plain(specimen: Specimen, place: Company, shares: NoiseShares) -> NDArray[np.int64]:
    """The rounded sum of a node's clipped gradients, all units taking part."""
    loss = task_named(specimen.offer.model.task).loss
    sampling = place.sampling("everyone")
    values = sampled_sum(specimen.head, loss, place.records, specimen.offer.terms, sampling).values
    return rounded(torch.cat([values[name].flatten() for name in sorted(values)]).numpy(), shares)


def _places(whole: Company) -> list[tuple[str, Company]]:
    """Data sets of different sizes."""
    return [("nobody was there", whole.nobody), ("one was there", whole.take(np.arange(1))), ("all were there", whole)]


def _fresh(practice: Practice, specimen: Specimen, sources: ShareSources) -> Finding:
    """No two rounds and no two nodes add the same integers."""
    nobody = company(specimen).nobody
    drawn = {
        f"{name} in round {round_}": masked_by(practice, specimen, nobody, nobody.sampling(), source(round_), name)
        for name, source in list(sources.items())[:2]
        for round_ in range(1, ROUNDS + 1)
    }
    promise = "no two rounds and no two nodes share their noise"
    for (one, first), (other, second) in combinations(drawn.items(), 2):
        if np.array_equal(first, second):
            return stated("fresh shares", specimen.name, promise, False, f"{one} and {other} do")
    return stated("fresh shares", specimen.name, promise, True, "")


def _alone(practice: Practice, specimen: Specimen) -> Finding:
    """A round of local trust is refused under a plan with sums, whose noise is too little by itself."""
    promise = "a node with a share of the noise releases nothing by itself"
    place = company(specimen)
    node = node_for(specimen, place, Path(), lambda _: (place.sampling(), place.sampling()))
    try:
        practice.train(task_for(specimen), node)
    except PrivacyError:
        return stated("alone", specimen.name, promise, True, "")
    return stated("alone", specimen.name, promise, False, "it released a head")


def _seeded(name: str) -> Callable[[int], WordSource]:
    return lambda round_: SeededRandomness(0, name, round_, "share of noise")

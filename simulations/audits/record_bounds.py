"""Lower bounds from single records: heads trained with one record more and without it, on a run's own data."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from time import perf_counter

import numpy as np
import torch
from torch import Tensor

from simulations.audits.attack_bounds import Scored, many_heads
from simulations.audits.attack_subject import Subject
from simulations.audits.audit_report import Bound
from simulations.audits.canaries import Canaries, class_means, mislabelled, out_of_distribution, own_record
from simulations.audits.findings import Threat
from simulations.audits.recipes import places_of, private_recipe, seed_for
from simulations.audits.record_attacks import Crowd, attack_records
from simulations.audits.shadows import Recipe
from simulations.audits.trade_offs import Family

CANARIES = ("mislabelled", "out-of-distribution", "records")
WORK = 500_000  # heads times records of one attack, at most
LEAST_HEADS = 200

Advance = Callable[[str, int, int], None]


def record_bounds(
    subject: Subject,
    threats: Sequence[Threat],
    canaries: Sequence[str],
    methods: Sequence[str],
    confidence: float,
    heads: int,
    seed: int,
    family: Family,
    advance: Advance,
) -> Iterator[Bound]:
    """Attack the smallest node with one record of each kind, and bound epsilon by every method.

    Args:
        subject: with a linear head.
        threats: the server looks at the node's own updates, as if it were alone; the others at the whole federation.
        canaries: out of ``CANARIES``.
        methods: out of ``attack_bounds.MANY_HEADS``.
        confidence: one-sided.
        heads: for each attack at most, and at most ``WORK`` over the number of records.
        seed: of everything that is drawn.
        family: see ``attack_bounds.family_of``.
        advance: told (what, heads done, heads to do).
    """
    for threat in threats:
        features, targets, sizes = _world(subject, threat)
        recipe = _recipe(subject, features, sizes)
        for name in (canary for canary in CANARIES if canary in canaries):
            began = perf_counter()
            canary, kept = _canary(name, features[: sizes[0]], targets[: sizes[0]], recipe.classes, seed)
            crowd = _without(features, targets, sizes, subject, kept, threat)
            trained = number_of_heads(heads, len(targets))
            own, shown = seed_for(seed, name, threat), _named(advance, f"{name}, {threat}")
            inside, outside = attack_records(threat, canary, crowd, recipe, heads=trained, seed=own, progress=shown)
            scored = Scored(threat, name, inside, outside, 2 * (trained // 2), perf_counter() - began)
            yield from many_heads(scored, methods, subject.claim, confidence, family)


def number_of_heads(heads: int, records: int) -> int:
    """How many heads an attack on so many records trains.

    >>> number_of_heads(4000, 143), number_of_heads(4000, 1437), number_of_heads(4000, 60_000)
    (3496, 347, 200)
    """
    return min(heads, max(LEAST_HEADS, WORK // records))


def _world(subject: Subject, threat: Threat) -> tuple[Tensor, Tensor, list[int]]:
    """Records of the attacked node, and after them of the others, as far as the attacker's view needs them."""
    shares = subject.ready.federation.shares
    others = [] if threat == "server" else [name for name in shares if name != subject.node]
    names = [subject.node, *others]
    features, targets = subject.records(np.concatenate([shares[name] for name in names]))
    return features, targets, [len(shares[name]) for name in names]


def _recipe(subject: Subject, features: Tensor, sizes: Sequence[int]) -> Recipe:
    classes = len(subject.ready.federation.data.classes)
    return private_recipe(subject.terms, classes, features.shape[1], sizes, subject.learning_rate)


def _canary(name: str, features: Tensor, targets: Tensor, classes: int, seed: int) -> tuple[Canaries, int | None]:
    """A record to insert, and which of the node's own it is, if it is one."""
    odd = _oddest(features, targets, classes)
    if name == "mislabelled":
        return mislabelled(features, targets, classes, which=odd), None
    if name == "out-of-distribution":
        return out_of_distribution(features, targets, classes, seed=seed), None
    return own_record(features, targets, which=odd), odd


def _oddest(features: Tensor, targets: Tensor, classes: int) -> int:
    """The record farthest from the mean of its class."""
    return int((features - class_means(features, targets, classes)[targets]).norm(dim=1).argmax())


def _without(
    features: Tensor, targets: Tensor, sizes: Sequence[int], subject: Subject, left_out: int | None, threat: Threat
) -> Crowd:
    """All records but one of the first node's, divided among the nodes."""
    kept = torch.ones(len(targets), dtype=torch.bool)
    sizes = list(sizes)
    held = sizes.copy()
    if left_out is not None:
        kept[left_out] = False
        held[0] -= 1
    if threat == "server":
        return Crowd(features[kept], targets[kept])
    ends = np.cumsum(held)
    rows = [torch.arange(end - size, end) for size, end in zip(held, ends, strict=True)]
    return Crowd(features[kept], targets[kept], places_of(rows, subject.terms, sizes, subject.weights(sizes)))


def _named(advance: Advance, what: str) -> Callable[[int, int], None]:
    return lambda done, total: advance(what, done, total)

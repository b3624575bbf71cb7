"""Membership inference on a configuration's own records: shadow and target heads, trained as planned and without DP."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from time import perf_counter

import numpy as np
import torch
from torch import Tensor

from simulations.audits.attack_subject import Subject
from simulations.audits.audit_report import MembershipTest
from simulations.audits.findings import Membership, Threat
from simulations.audits.membership import Observed, lira, margins, rmia
from simulations.audits.recipes import open_recipe, places_of, private_recipe, seed_for
from simulations.audits.shadows import Place, Recipe, train_heads

SHADOWS, TARGETS = 256, 64
THREATS: tuple[Threat, ...] = ("server", "model")
POPULATION = 500  # held-out records that RMIA compares with

Advance = Callable[[str, int, int], None]


@dataclass(frozen=True, eq=False)
class _Setting:
    """Records that are in or out, and how heads train on them."""

    threat: Threat
    features: Tensor
    targets: Tensor
    private: Recipe
    bare: Recipe
    places: Sequence[Place] | None


def membership_tests(
    subject: Subject,
    threats: Sequence[Threat],
    methods: Sequence[str],
    heads: int,
    seed: int,
    advance: Advance,
) -> tuple[MembershipTest, ...]:
    """Run every test against every attacker, with DP and without.

    The attacker ``"model"`` sees the final head of the whole federation. The attacker ``"server"`` hands the smallest
    node its own head back in each round, which a server can do, so that the node trains as if alone.

    Args:
        subject: with a linear head.
        threats: out of ``THREATS``; others are left out.
        methods: out of ``"lira-online"``, ``"lira-offline"`` and ``"rmia"``.
        heads: at most so many in all for each attacker and world, at least ``attack_request.LEAST_SHADOWS``.
        seed: of who takes part, sampling and noise.
        advance: told (what, heads done, heads to do).
    """
    found: list[MembershipTest] = []
    for threat in (name for name in THREATS if name in threats):
        setting = _setting(subject, threat)
        for private in (True, False):
            what = f"members, {threat}, {'as planned' if private else 'without DP'}"
            own = seed_for(seed, "members", threat)  # the same records are in with DP and without
            tests = _tests(subject, setting, private, methods, heads, own, _named(advance, what))
            found += [MembershipTest(test, threat, private) for test in tests]
    return tuple(found)


def _named(advance: Advance, what: str) -> Callable[[int, int], None]:
    return lambda done, total: advance(what, done, total)


def _setting(subject: Subject, threat: Threat) -> _Setting:
    shares, terms = subject.ready.federation.shares, subject.terms
    names = [subject.node] if threat == "server" else list(shares)
    rows = np.concatenate([shares[name] for name in names])
    features, targets = subject.records(rows)
    classes, width = len(subject.ready.federation.data.classes), features.shape[1]
    sizes = [len(shares[name]) for name in names]
    private = private_recipe(terms, classes, width, sizes, subject.learning_rate)
    ends = np.cumsum(sizes)
    own = [torch.arange(end - size, end) for size, end in zip(sizes, ends, strict=True)]
    weights = subject.weights(sizes)
    bare_places = None if threat == "server" else places_of(own, None, sizes, weights)
    bare = open_recipe(
        features, targets, classes, terms.rounds, places=bare_places, steps_per_round=terms.steps_per_round
    )
    places = None if threat == "server" else places_of(own, terms, sizes, weights)
    return _Setting(threat, features, targets, private, bare, places)


def _tests(
    subject: Subject,
    setting: _Setting,
    private: bool,
    methods: Sequence[str],
    heads: int,
    seed: int,
    progress: Callable[[int, int], None],
) -> list[Membership]:
    began = perf_counter()
    total = min(heads, SHADOWS + TARGETS)
    attacked = total // 5
    rng = np.random.default_rng([seed, 11])
    included = torch.from_numpy(rng.random((total, len(setting.targets))) < 0.5)
    recipe = setting.private if private else setting.bare
    trained = train_heads(
        setting.features, setting.targets, included, recipe, seed=seed, places=setting.places, progress=progress
    )
    seen = Observed(margins(trained, setting.features, setting.targets), included.numpy())
    shadows, targets = seen.split(attacked)
    others = margins(trained, *subject.records(subject.ready.federation.test[:POPULATION]))
    took = perf_counter() - began
    attacks = {
        "lira-online": lambda: lira(shadows, targets),
        "lira-offline": lambda: lira(shadows, targets, online=False),
        "rmia": lambda: rmia(shadows, targets, others[: total - attacked], others[total - attacked :]),
    }
    tests = [attacks[name]() for name in methods]
    return [replace(test, heads=total, seconds=test.seconds + took / len(methods)) for test in tests]

"""Replay of whole rounds at a node, with a real ledger: what it pays, draws, keeps and lets out."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import lru_cache
from itertools import combinations
from pathlib import Path

import numpy as np
from dp_accounting.pld import privacy_loss_distribution
from numpy.typing import NDArray

from client.ledger import Ledger
from client.node import Node
from client.policy import Policy
from common.backbones.backbone import Backbone
from common.data.local import LocalData
from common.errors import PrivacyError
from common.heads import arrays_digest
from common.messages import TrainTask
from common.privacy.accountant import epsilon_by_round
from common.privacy.noise import Randomness, SeededRandomness
from common.privacy.plan import PrivacyPlan
from simulations.audits.estimators import gaussian_epsilon
from simulations.audits.practice import NO_CAP, Company, Practice, Specimen, company, released_sum, task_for
from simulations.audits.probes import Noise
from simulations.audits.replay_finding import Case, Finding, at_most, guarded, stated
from simulations.audits.replay_steps import ROUNDING, leaving, noise_error, strangers

ROUNDS = 3
ALIKE = 1e-3  # relative distance below which two noises are the same; with P values by chance below 1e-3**P
GRID = 1e-4  # of privacy losses, where a lower bound on epsilon is computed

Sources = Mapping[str, Callable[[int], tuple[Randomness, Randomness]]]
"""Node name to where a round's sampling and noise come from."""


def replay_node(practice: Practice, specimen: Specimen, sources: Sources | None = None) -> tuple[Finding, ...]:
    """Check whole rounds, from a task to what leaves.

    Args:
        practice: whose ``train`` is looked at.
        specimen: its offer names a backbone that is installed here.
        sources: of several nodes; None makes two seeded ones, as a simulation does.
    """
    rounds = specimen.with_terms(rounds=ROUNDS, steps_per_round=1)
    drawing = seeded_sources() if sources is None else sources
    checks = {
        "noise of each round": lambda: _noise(practice, rounds),
        "fresh noise": lambda: _fresh(practice, rounds, drawing),
        "repeat": lambda: _repeat(practice, rounds),
        "budget": lambda: _budget(practice, rounds),
        "company": lambda: _company(practice, rounds),
        "what leaves the node": lambda: _what_leaves(practice, rounds),
    }
    return tuple(guarded(name, specimen.name, look) for name, look in checks.items())


def seeded_sources() -> Sources:
    """Two nodes that draw as simulated ones do."""
    return {name: _seeded(name) for name in ("node-0", "node-1")}


def replay_books(practice: Practice, subject: str, plan: PrivacyPlan, rounds: int) -> Finding:
    """Whether the books show no less than what so many rounds of a plan certainly cost.

    Args:
        practice: whose ``spent`` is looked at.
        subject: what the plan is of.
        plan: its steps are all fixed before the first.
        rounds: that were released.
    """

    def look() -> Finding:
        truth, shown = least_epsilon(plan, rounds), practice.spent(plan, rounds)
        case = Case(truth, 1e-6 * truth, f"{rounds} rounds of {plan.terms.steps_per_round} steps were released")
        promise = "what was released costs no more epsilon than the node's books show"
        return at_most("books", subject, promise, shown, [case])

    return guarded("books", subject, look)


def replay_features(
    practice: Practice, subject: str, backbone: Backbone, cut: str, data: LocalData, rows: NDArray[np.int64]
) -> Finding:
    """Whether the others keep their features, bit for bit, when one record is added.

    Args:
        practice: whose ``features`` is looked at.
        subject: what the data are.
        backbone: that makes the features.
        cut: its last frozen stage.
        data: holds the records.
        rows: of the records, at least two; the last one is the one that is added.
    """

    def look() -> Finding:
        less = practice.features(backbone, cut, data.take(rows[:-1]))
        last = practice.features(backbone, cut, data.take(rows))[:-1]
        first = practice.features(backbone, cut, data.take(np.roll(rows, 1)))[1:]
        same = np.array_equal(less, last, equal_nan=True) and np.array_equal(less, first, equal_nan=True)
        promise = "a record's features do not depend on the records beside it"
        return stated("features", subject, promise, same, "the others' features changed when one record was added")

    return guarded("features", subject, look)


@lru_cache(maxsize=64)
def least_epsilon(plan: PrivacyPlan, rounds: int) -> float:
    """A lower bound on what so many rounds cost: exact where all records take part, else by optimistic rounding."""
    terms, steps = plan.terms, rounds * plan.terms.steps_per_round
    if terms.sampling_rate >= 1:
        return gaussian_epsilon(float(np.sqrt(steps)) / terms.noise_multiplier, terms.delta)
    step = privacy_loss_distribution.from_gaussian_mechanism(
        terms.noise_multiplier,
        sampling_prob=terms.sampling_rate,
        pessimistic_estimate=False,
        value_discretization_interval=GRID,
        use_connect_dots=False,
    )
    return float(step.self_compose(steps).get_epsilon_for_delta(terms.delta))


def node_for(
    specimen: Specimen,
    place: Company,
    folder: Path,
    randomness: Callable[[int], tuple[Randomness, Randomness]],
    name: str = "node-0",
    cap: float = NO_CAP,
) -> Node:
    """A node with these records and a ledger of its own in a folder.

    Args:
        specimen: gives model, task, delta and declared size.
        place: its records.
        folder: of the ledger.
        randomness: for a round's sampling and noise.
        name: of the node.
        cap: on epsilon.
    """
    model, terms = specimen.offer.model, specimen.offer.terms
    path = folder / f"{name}.sqlite"
    return Node(
        name=name,
        declared_size=specimen.declared_size,
        classes=model.classes,
        task=model.task,
        # partial, or a long plan is refused before its first round
        policy=Policy(cap, terms.delta, terms.unit, partial=True, trusts=frozenset({terms.trust})),
        simulated=True,
        open_ledger=lambda: Ledger.open(path, name, delta=terms.delta, epsilon_cap=cap, durable=False),
        records=lambda model: place.records,
        randomness=randomness,
    )


def _noise(practice: Practice, specimen: Specimen) -> Finding:
    """No round is trained without noise, be it the first or a later one, from whatever head."""
    whole = company(specimen)
    cases = []
    for round_ in range(1, ROUNDS + 1):
        noise = Noise(1.0, seed=round_)
        noisy = _released(practice, specimen, whole, round_, noise)
        plain = _released(practice, specimen, whole, round_, Noise(0.0))
        cases.append(Case(*noise_error(noisy, plain, noise, specimen, 1), f"in round {round_}"))
    promise = "every round carries the noise that its node draws for it, in units of C sigma"
    return at_most("noise of each round", specimen.name, promise, 0.0, cases)


def _fresh(practice: Practice, specimen: Specimen, sources: Sources) -> Finding:
    """No two rounds and no two nodes share their noise."""
    nobody = company(specimen).nobody
    drawn = {}
    for name, source in list(sources.items())[:2]:
        with tempfile.TemporaryDirectory() as folder:
            node = node_for(specimen, nobody, Path(folder), source, name)
            for round_ in range(1, ROUNDS + 1):
                task = task_for(specimen, round_)
                drawn[f"{name} in round {round_}"] = released_sum(practice.train(task, node).head, task, specimen.plan)
    promise = "no two rounds and no two nodes share their noise"
    for (one, first), (other, second) in combinations(drawn.items(), 2):
        if min(np.linalg.norm(first - second), np.linalg.norm(first + second)) <= ALIKE * np.linalg.norm(first):
            return stated("fresh noise", specimen.name, promise, False, f"{one} and {other} do: it cancels")
    return stated("fresh noise", specimen.name, promise, True, "")


def _repeat(practice: Practice, specimen: Specimen) -> Finding:
    """The same task again is answered with the same bytes, though the node would draw other noise."""
    calls = iter(range(1000))

    def randomness(round_: int) -> tuple[Randomness, Randomness]:
        return company(specimen).sampling(), Noise(1.0, seed=next(calls))

    with tempfile.TemporaryDirectory() as folder:
        node = node_for(specimen, company(specimen), Path(folder), randomness)
        digests = {arrays_digest(practice.train(task_for(specimen), node).head) for _ in range(2)}
    promise = "the same task again is answered with the same bytes"
    return stated("repeat", specimen.name, promise, len(digests) == 1, "it was trained again and noised anew")


def _budget(practice: Practice, specimen: Specimen) -> Finding:
    """A round that passes the cap is refused."""
    promise = f"round {ROUNDS} is refused where the cap pays for {ROUNDS - 1}"
    cap = epsilon_by_round(specimen.offer.terms)[ROUNDS - 1]
    with tempfile.TemporaryDirectory() as folder:
        node = node_for(specimen, company(specimen), Path(folder), _seeded("node-0"), cap=cap)
        for round_ in range(1, ROUNDS):
            practice.train(task_for(specimen, round_), node)
        try:
            practice.train(task_for(specimen, ROUNDS), node)
        except PrivacyError:
            return stated("budget", specimen.name, promise, True, "")
    return stated("budget", specimen.name, promise, False, "it was trained and released all the same")


def _company(practice: Practice, specimen: Specimen) -> Finding:
    """One record more at the node moves what it releases by at most C over the divisor."""
    norm, whole, cases = specimen.plan.terms.clipping_norm, company(specimen), []
    other = _released(practice, specimen, whole, 1, Noise(1.0))
    for what, features, targets in strangers(specimen):
        one = _released(practice, specimen, whole.joined_by_unit(features, targets), 1, Noise(1.0))
        slack = ROUNDING * float(np.linalg.norm(one) + np.linalg.norm(other)) / norm
        cases.append(Case(float(np.linalg.norm(one - other)) / norm, slack, what))
    unit = specimen.offer.terms.unit
    promise = f"one {unit} more at a node moves the noisy sum that it releases by at most the clipping norm (1 C)"
    return at_most("company", specimen.name, promise, 1.0, cases)


def _what_leaves(practice: Practice, specimen: Specimen) -> Finding:
    """The update is a head and nothing else."""
    with tempfile.TemporaryDirectory() as folder:
        task = task_for(specimen)
        update = practice.train(task, node_for(specimen, company(specimen), Path(folder), _seeded("node-0")))
    beside = sorted(set(vars(update)) - {"head"})
    if beside:
        promise, came = "a reply holds a head and nothing beside it", f"it held {', '.join(beside)} as well"
        return stated("what leaves the node", specimen.name, promise, False, came)
    return leaving("what leaves the node", specimen.name, update.head, task.head)


def _released(practice: Practice, specimen: Specimen, place: Company, round_: int, noise: Noise) -> NDArray[np.float64]:
    """What a node with these records releases in a round, all of them taking part; later rounds start elsewhere."""
    task = _moved(task_for(specimen, round_), 0.25 * (round_ - 1))
    with tempfile.TemporaryDirectory() as folder:
        node = node_for(specimen, place, Path(folder), lambda _: (place.sampling("everyone"), noise))
        return released_sum(practice.train(task, node).head, task, specimen.plan)


def _moved(task: TrainTask, by: float) -> TrainTask:
    return replace(task, head={name: value + by for name, value in task.head.items()})


def _seeded(name: str) -> Callable[[int], tuple[Randomness, Randomness]]:
    return lambda round_: (SeededRandomness(0, name, round_, "sampling"), SeededRandomness(0, name, round_, "noise"))

"""The federated run against its baselines: the differences, and whether they are more than chance."""

from __future__ import annotations

import math
from dataclasses import dataclass

from simulations.report import wording
from simulations.report.results import Facts, Run

FEDERATED = "federated"
SURE = 1.96  # standard errors: 95 %


@dataclass(frozen=True)
class World:
    """One column of the comparison: how it is called, what it is, and whether its training was private.

    ``{at}`` in its meaning stands for the ε that it was trained at.
    """

    key: str
    label: str
    meaning: str
    private: bool = True


WORLDS = (
    World(FEDERATED, "Federated", "this run: the nodes train one head together, each adding noise"),
    World("no_dp", "No privacy", "the same federation without clipping and noise", private=False),
    World("pooled", "Pooled", "all records in one place, one training{at}"),
    World("local_mean", "Node alone", "each node trains by itself{at}; the mean over nodes"),
    World("no_transfer", "No transfer", "the same head on the same network with random weights{at}"),
    World("raw_pixels", "Raw pixels", "the same head on the bare pixels{at}"),
)


@dataclass(frozen=True)
class Comparison:
    """``difference`` is federated minus baseline, a fraction; ``margin`` is its 95 % half-width, where known."""

    baseline: World
    federated: float
    other: float
    margin: float | None

    @property
    def difference(self) -> float:
        """Federated minus baseline."""
        return self.federated - self.other

    @property
    def clear(self) -> bool:
        """Whether the difference is more than chance explains."""
        return self.margin is None or abs(self.difference) > self.margin


def worlds(facts: Facts) -> tuple[World, ...]:
    """Return the known worlds and then whatever else ``accuracy`` holds, under its own name."""
    known = {world.key for world in WORLDS}
    extra = [key for key in facts.items("accuracy") if key not in known]
    return (*WORLDS, *(World(key, key.replace("_", " "), "") for key in extra))


def meaning(facts: Facts, world: World) -> str:
    """Return what a world is, with its ε."""
    return world.meaning.replace("{at}", at_epsilon(facts, world.key))


def at_epsilon(facts: Facts, key: str) -> str:
    """Return " at the same ε" as the federation's, or else at which, as far as it is known."""
    epsilon = facts.number("epsilon", key)
    if epsilon is None:
        return ""
    return " at the same ε" if spends_the_same(facts, key) else f" at ε{wording.EQUALS}{wording.epsilon(epsilon)}"


def spends_the_same(facts: Facts, key: str) -> bool:
    """Return whether a world spends what the federation does, to a hundredth of it, or is not known to spend at all."""
    epsilon, own = facts.number("epsilon", key), facts.number("epsilon", FEDERATED)
    return epsilon is None or (own is not None and math.isclose(epsilon, own, rel_tol=0.01))


def compare(run: Run, key: str) -> Comparison | None:
    """Compare the federated accuracy with a baseline's, or return ``None`` where one of them was not computed.

    The margin counts held-out records as independent draws, and, with several seeds, takes the spread over seeds
    where that is larger. It leaves out that both were tested on the same records, so it errs on the wide side.
    """
    accuracy = run.facts.numbers("accuracy")
    baseline = next((world for world in worlds(run.facts) if world.key == key), None)
    if baseline is None or FEDERATED not in accuracy or key not in accuracy:
        return None
    errors = [standard_error(run, name) for name in (FEDERATED, key)]
    known = [error for error in errors if error is not None]
    margin = SURE * math.hypot(*known) if len(known) == len(errors) else None
    return Comparison(baseline, accuracy[FEDERATED], accuracy[key], margin)


def standard_error(run: Run, key: str) -> float | None:
    """Return the standard error of one accuracy, from the held-out records and the spread over seeds."""
    fraction, records = run.facts.number("accuracy", key), run.facts.number("data", "test")
    spread = run.facts.number("accuracy_std", key)
    errors = []
    if fraction is not None and records is not None and records > 0:
        errors.append(math.sqrt(max(fraction * (1 - fraction), 0) / records))
    if spread is not None:
        errors.append(spread / math.sqrt(max(len(run.seeds), 1)))
    return max(errors, default=None)


def verdict(run: Run) -> str:
    """Return the report's one-sentence verdict."""
    federated = run.facts.number("accuracy", FEDERATED)
    if federated is None:
        return f"The federated accuracy was {wording.NOT_COMPUTED}; {wording.promise(run.facts)}."
    gained = [text for text in (gain(run, "local_mean", "a node alone"), transfer_gain(run)) if text]
    start = f"{wording.percent(federated)} accuracy at {wording.promise(run.facts)}"
    return f"{start}: {', '.join(gained)}{privacy_cost(run)}." if gained else f"{start}{privacy_cost(run)}."


def gain(run: Run, key: str, other: str) -> str | None:
    """Return "16.7 points above a node alone", or that there is no clear difference; with its ε where it is another."""
    comparison = compare(run, key)
    if comparison is None:
        return None
    other += "" if spends_the_same(run.facts, key) else at_epsilon(run.facts, key)
    if not comparison.clear:
        return f"no clear difference from {other}"
    side = "above" if comparison.difference > 0 else "below"
    return f"{wording.points(abs(comparison.difference)).lstrip('+')} points {side} {other}"


def transfer_gain(run: Run) -> str | None:
    """Return the gain over the better of the baselines without a pre-trained backbone."""
    names = {"no_transfer": "an untrained network", "raw_pixels": "raw pixels"}
    known = {key: comparison.other for key in names if (comparison := compare(run, key)) is not None}
    best = max(known, key=lambda key: known[key], default=None)
    return None if best is None else gain(run, best, names[best])


def privacy_cost(run: Run) -> str:
    """Return "; privacy cost 3.5 points"."""
    comparison = compare(run, "no_dp")
    if comparison is None:
        return ""
    if not comparison.clear:
        return "; privacy cost no clear difference"
    cost = wording.points(abs(comparison.difference)).lstrip("+")
    return (
        f"; privacy cost {cost} points" if comparison.difference < 0 else f"; no cost of privacy ({cost} points above)"
    )

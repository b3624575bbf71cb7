"""What was claimed beforehand of these figures, each beside what came."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from simulations.benchmarks.distributed_noise.summary import Cell, Difference, in_points

METRICS = {"digits": "accuracy", "pneumonia": "AUROC"}
"""By which each data set is judged: of unequal classes accuracy says little."""
GAIN = 0.10


def least_difference(epsilon: float) -> float:
    """Above which the interval of secagg less pooled has to lie.

    >>> least_difference(0.5), least_difference(1.0)
    (-0.03, -0.01)
    """
    return -0.01 if epsilon >= 1 else -0.03


def sentences(found: Sequence[Cell]) -> Iterator[str]:
    """One for each claim and cell that it is about: whether it holds, and the figures."""
    judged = [cell for cell in found if METRICS.get(cell.data) == cell.metric]
    for cell in judged:
        difference, least = cell.difference("secagg", "pooled"), least_difference(cell.epsilon)
        claim = f"secagg − pooled above {100 * least:+g} points"
        yield _sentence(cell, claim, difference.low > least, difference)
    for cell in judged:
        if (cell.data, cell.epsilon) == ("digits", 1.0) and cell.nodes >= 10:
            difference = cell.difference("secagg", "local noise")
            yield _sentence(cell, "secagg − local of at least 10 points", difference.mean >= GAIN, difference)


def _sentence(cell: Cell, claim: str, holds: bool, difference: Difference) -> str:
    place = f"{cell.data}, {cell.metric}, {cell.nodes} nodes, ε = {cell.epsilon:g}, {cell.seeds} seeds"
    return f"{'holds' if holds else 'DOES NOT HOLD'}: {claim} ({place}): {in_points(difference)}"

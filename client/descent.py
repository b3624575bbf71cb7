"""Steps down a private gradient, of one node or of many at once. What is noised already is all that they see."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from common.lockstep import SMALL
from common.messages import TrainTask

LARGEST = torch.finfo(torch.float32).max


@dataclass(frozen=True)
class Step:
    """A step that waits to be taken.

    Attributes:
        start: name to float32 tensor; left as it is.
        gradient: noised, name to float64 tensor of the same shape.
        task: gives the learning rate, and FedProx's pull towards the head that was sent.
    """

    start: Mapping[str, Tensor]
    gradient: Mapping[str, Tensor]
    task: TrainTask

    def suits(self, other: Step) -> bool:
        """Whether both can be taken by the same calls."""
        mine, its = self.task, other.task
        same = mine.learning_rate == its.learning_rate and mine.proximal_mu == its.proximal_mu
        return same and (self.start is other.start or _shapes(self.start) == _shapes(other.start))


def descend(steps: Sequence[Step]) -> list[dict[str, Tensor]]:
    """Where each step leads: in float64, then rounded once; the same bit for bit as by itself.

    Values are finite, whatever the learning rate: a round that was paid for must not be refused for what its noise was.
    The refusal would be an answer about a draw that nobody pays for, and the next try would draw anew.

    FedProx's pull (Li et al. 2020, arXiv:1812.06127) is a proximal step, which solves for where it leads: at learning
    rate × mu = 1 half of the way back to the head that was sent, and never beyond it.

    Returns:
        Name to new float32 tensor, for each step.
    """
    first = steps[0]
    if len(steps) > 1 and not (_is_small(first.start) and all(step.suits(first) for step in steps)):
        return [descend([step])[0] for step in steps]
    reached: dict[str, tuple[Tensor, ...]] = {}
    for name in first.start:
        values = _stacked([step.start[name] for step in steps])
        slopes = _stacked([step.gradient[name] for step in steps])
        ends = values - first.task.learning_rate * slopes
        if pull := first.task.learning_rate * first.task.proximal_mu:
            sent = _stacked([step.task.head[name] for step in steps])
            ends = sent + (ends - sent) / (1 + pull)
        reached[name] = ends.float().nan_to_num_(nan=0.0, posinf=LARGEST, neginf=-LARGEST).unbind()
    return [{name: rows[place] for name, rows in reached.items()} for place in range(len(steps))]


def _stacked(values: list[Tensor]) -> Tensor:
    """Along a new first axis; a single one is not copied."""
    return values[0].unsqueeze(0) if len(values) == 1 else torch.stack(values)


def _shapes(head: Mapping[str, Tensor]) -> list[tuple[str, torch.Size]]:
    return [(name, value.shape) for name, value in head.items()]


def _is_small(head: Mapping[str, Tensor]) -> bool:
    return sum(value.numel() for value in head.values()) <= SMALL

"""Learning rate and clipping norm where the configuration says "auto": rules that look at public constants only.

How they were found, and how well they do: docs/decisions/0003-default-step.md, for heads other than linear ones
docs/decisions/0007-heads.md; ``python -m simulations.benchmarks`` with ``defaults`` and ``head_defaults``.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from common.privacy.plan import PrivacyTerms
from common.solved_heads import SOLVED_HEADS

LARGEST_STEP = 2.0
CLIPPED_AT: Mapping[str, float] = {"tokens": 0.03}  # clipping norm / sqrt(D); 0.1 for other tasks
NOISE_OF_LINEAR, NOISE_OF_DEEP = 4.4, 13.2
"""Where most parameters lie far below the logits, noise does less harm."""


def noise_tolerated(head: str, train: str = "all") -> float:
    """Length that all noise together may have in a head's parameters.

    Args:
        head: its kind, out of ``common.heads.HEADS``.
        train: what of it is trained, where there is a choice.
    """
    shallow = head == "linear" or (head == "upper" and train == "biases")  # most are the classifier's own
    return NOISE_OF_LINEAR if shallow else NOISE_OF_DEEP


def default_clipping_norm(features: int, task: str = "classification", head: str = "linear") -> float:
    """Clipping norm of one record's gradient, for features of unit variance.

    It is a tenth of the length of a feature vector, below the gradients of nearly all records at the start: every
    record then pulls with about the same force, and only clipping norm x learning rate matters. For tags it is less
    than a third of that: a record's gradient is a mean over its tokens, nearly all of them easy, and would stay below.

    Args:
        features: D, for a record or, where each token has its own logits, for a token.
        task: what is learnt, see ``common.tasks``.
        head: its kind; one that is solved has its features clipped, to the length that they have.
    """
    if head in SOLVED_HEADS:
        return math.sqrt(features)
    return CLIPPED_AT.get(task, 0.1) * math.sqrt(features)


def default_learning_rate(
    terms: PrivacyTerms,
    parameters: int,
    sizes: Sequence[int],
    weights: Sequence[float],
    cohort: int | None,
    head: str = "linear",
    train: str = "all",
) -> float:
    """Learning rate of the local steps.

    A step moves the head by at most k = learning rate x clipping norm, while the aggregated noise moves it by
    k x nu; nu = noise multiplier x sqrt(parameters) x the length of (weight / expected batch) over a round's nodes.
    Over T steps that noise adds up to k x nu x sqrt(T), which the rule keeps at ``noise_tolerated``.

    Args:
        terms: noise multiplier, clipping norm, sampling rate and number of steps.
        parameters: of the head, those that are trained.
        sizes: declared size of each node.
        weights: what each node's update counts, same order; any scale.
        cohort: nodes of a round; None is all.
        head: its kind, and
        train: what of it is trained, as ``noise_tolerated`` takes them.
    """
    nodes = len(sizes)
    share = 1.0 if cohort is None else min(1.0, cohort / nodes)
    total = sum(weights) * share
    squares = share * sum((w / total / (terms.sampling_rate * n)) ** 2 for w, n in zip(weights, sizes, strict=True))
    noise = terms.noise_multiplier * math.sqrt(parameters * squares)
    step = min(LARGEST_STEP, noise_tolerated(head, train) / (noise * math.sqrt(terms.steps)))
    return step / terms.clipping_norm

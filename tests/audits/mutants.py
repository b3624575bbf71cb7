"""Deliberately broken nodes: every one of them does something that an audit must notice. Never use them.

They live among the tests, which no wheel carries: code that trains without the protection that it claims must not be
importable where fedgraft is installed. Each takes the place of one part of ``simulations.audits.practice.SHIPPED``, so
that the very audit that looks at the shipped code looks at them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

from common.privacy.plan import PrivacyPlan
from simulations.audits.practice import SHIPPED, Practice, PrivateSteps
from tests.audits import broken_nodes as nodes
from tests.audits import broken_steps as steps
from tests.audits import broken_sums as sums
from tests.audits.broken_nodes import Train, whole_round
from tests.audits.broken_steps import private_steps


@dataclass(frozen=True)
class Mutant:
    """A broken node.

    Attributes:
        name: what it does wrong.
        pitfall: the beginning of its row in docs/privacy-pitfalls.md.
        practice: how it works.
    """

    name: str
    pitfall: str
    practice: Practice


def _steps(update: PrivateSteps) -> Practice:
    return replace(SHIPPED, update=update, train=whole_round(update))


def _node(train: Train) -> Practice:
    return replace(SHIPPED, train=train)


def _books(spent: Callable[[PrivacyPlan, int], float]) -> Practice:
    return replace(SHIPPED, spent=spent)


def mutants() -> Iterator[Mutant]:
    """All of them."""
    reset = "A new accountant each round"
    alike = "The same noise in two rounds"
    bound = "The bound does not hold"
    sizes = "q, T, N or the divisor"
    shuffled = "Shuffled or fixed-size batches"
    never = "Values returned that were never noised"
    centred = "Features centred"
    scale = "Noise of the wrong scale"
    private = {
        "noise at half scale": (scale, private_steps(release=steps.scaled(0.5))),
        "noise five percent too small": (scale, private_steps(release=steps.scaled(0.95))),
        "the bias without noise": (never, private_steps(release=steps.bias_without_noise)),
        "the same noise in every step of a round": (alike, steps.one_noise_a_round),
        "the bias is not clipped": (bound, private_steps(clip=steps.clip_weights_only)),
        "each layer clipped by itself": (bound, private_steps(clip=steps.clip_each_layer)),
        "clipped after averaging": (bound, private_steps(clip=steps.clip_the_mean, release=steps.mean_released)),
        "clipped to twice the norm that is noised": (
            "A sum clipped to one norm",
            private_steps(clip=steps.clip_to_twice),
        ),
        "a loss weighted by the classes of the batch": ("A mean-reduced", private_steps(clip=steps.weighted_loss)),
        "features normalised by the batch": ("BatchNorm or another layer", private_steps(clip=steps.batch_norm)),
        "statistics of BatchNorm leave with the head": ("Frozen BatchNorm", steps.with_statistics),
        "a gradient that is not finite stops the round": (
            "A stop, or an error",
            private_steps(clip=steps.stops_at_a_nan),
        ),
        "empty batches skipped": ("Empty batches", private_steps(release=steps.skips_empty_batches)),
        "shuffled batches accounted as Poisson": (shuffled, private_steps(sample=steps.shuffled)),
        "rare classes sampled more often": (shuffled, private_steps(sample=steps.weighted_sampler)),
        "the divisor is the batch that was drawn": (sizes, private_steps(release=steps.live_divisor)),
        "the sampling rate from the number of records": (sizes, private_steps(sample=steps.live_rate)),
        "the number of steps from the number of records": (sizes, steps.steps_of_an_epoch),
        "int(1/q) steps": ("`int(1/q)` steps", steps.one_over_rate_steps),
        "stops early when the head fits": ("Early stopping", steps.stops_early),
    }
    yield from (Mutant(name, pitfall, _steps(update)) for name, (pitfall, update) in private.items())
    rounds = {
        "noise seeded alike each round": (alike, whole_round(spy=nodes.alike)),
        "noise from a number that the server sent": ("A seed that the server knows", whole_round(spy=nodes.sent_seed)),
        "no noise after the first round": ("Training without DP", nodes.late_without_noise),
        "features centred on the node's records": (centred, whole_round(spy=nodes.centred)),
        "a repeated task is trained again": ("A retry that trains again", whole_round(repeats=False)),
        "a round beyond the budget is trained": ("The budget passed", nodes.unpaid),
        "the number of examples beside the head": ("Weights from a live", nodes.counts_examples),
    }
    yield from (Mutant(name, pitfall, _node(train)) for name, (pitfall, train) in rounds.items())
    books = {
        "an accountant of its own each round": (reset, nodes.books_of_one_round),
        "only the last entry is counted": ("An accountant that counts", nodes.books_of_the_last_entry),
        "the central limit shown as epsilon": ("A lower bound or an approximation", nodes.central_limit),
        "amplification by cohorts claimed": ("Amplification by client", nodes.cohort_amplified),
    }
    yield from (Mutant(name, pitfall, _books(spent)) for name, (pitfall, spent) in books.items())
    shares = "Shares of noise that do not add up"
    of_sums = {
        "one node adds no noise": (shares, sums.one_without_noise),
        "noise shares sized for all nodes": (shares, sums.sized_for_all),
        "a patient's records clipped one by one": ("A patient's records clipped", sums.records_clipped),
    }
    yield from (Mutant(name, pitfall, replace(SHIPPED, share=share)) for name, (pitfall, share) in of_sums.items())
    extracted = replace(SHIPPED, features=nodes.centred_features)
    yield Mutant("the cache centres on the records that it is given", centred, extracted)


MUTANTS = tuple(mutants())

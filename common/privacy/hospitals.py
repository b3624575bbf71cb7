"""What a patient known to several hospitals has spent across them, by a bound on how many: m, declared in the plan.

Ledgers, and the figure of each node, compare a run with one in which the patient's records are missing at that node.
Here they are missing at up to m nodes at once. Sampling is independent at each of them, with the plan's q.

*Local trust.* The nodes' noise is independent, so that the steps of all m nodes compose: m times the events of one
node, or those of the m nodes that were charged most.

*Sums over nodes.* A step reveals one sum, which the patient changes by sum_j b_j z_j, with b_1 … b_m independent and 1
with probability q, and |z_j| at most D: a mixture over several changes, up to m D in size. Noise of variance v is a sum
of m independent parts of variance v / m, be it Gaussian or Skellam. So the step is a function, the sum, of m releases
b_j z_j + (part j), and by post-processing and composition it costs at most m sampled events whose noise multiplier is
sigma / sqrt(m). What z_j is depends on the records of others at node j, not on b_j: a pair of
distributions for each, and hockey-stick divergences are jointly convex. With q = 1 nothing is lost: m parts of variance
v / m are worth one change of m D. With small q what is lost is a factor between (exp(m / sigma^2) - 1) m and
(exp(1 / sigma^2) - 1) m^2 in the chi-square divergence, some percent of epsilon where sigma is 2 or more.

Mixtures of Gaussians have a tighter bound, one scalar mixture over k C with k binomial (Choquette-Choo, Ganesh, Steinke
and Thakurta 2024, arXiv:2310.15526). It is not used, since the noise is Skellam: that Skellam noise of variance v
protects no worse than Gaussian noise of variance v - 1 (``common.privacy.skellam``) is proven for *pairs* of
distributions, by a random map of each coordinate that belongs to the change z. A mixture of several changes needs one
map for all of them, and there is none for all whole numbers: averaged over shifts it would be a convolution on the
integers, but at frequency pi Skellam noise has a component of exp(-2 v), more than the exp(-(v - 1) pi^2 / 2) that such
a map leaves of the Gaussian. The parts above need pairs only.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from common.privacy.accountant import Event, epsilon_pld, noise_multiplier_for
from common.privacy.plan import PrivacyTerms

_DOWN, _UP = 1 - 1e-12, 1 + 1e-11


@dataclass(frozen=True)
class Across:
    """Epsilons of a patient across hospitals, at the plan's delta.

    Attributes:
        hospitals: m, the most that a patient is taken to visit.
        epsilon: of the run; under trust ``"secagg"`` against the server with the colluders allowed for. What a patient
            told a colluding hospital, that hospital knows.
        against_model: against whoever knows no node's noise; the same under local trust.
    """

    hospitals: int
    epsilon: float
    against_model: float


def across(terms: PrivacyTerms, rounds: Iterable[int]) -> Across:
    """Bound what a run has cost a patient whose records are at up to m of its nodes.

    Args:
        terms: of the plan, with m.
        rounds: how many each node was charged for.
    """
    return Across(
        terms.hospitals_per_unit,
        epsilon_of(terms, terms.noise_multiplier, rounds),
        epsilon_of(terms, terms.model_noise_multiplier, rounds),
    )


def epsilon_of(terms: PrivacyTerms, noise_multiplier: float, rounds: Iterable[int]) -> float:
    """As ``across``, for noise of another size."""
    hospitals = terms.hospitals_per_unit
    steps = sum(sorted(rounds, reverse=True)[:hospitals]) * terms.steps_per_round
    part = part_of(noise_multiplier, terms.trust, hospitals)
    return epsilon_pld([Event(part, terms.sampling_rate, steps)], terms.delta)


def part_of(noise_multiplier: float, trust: str, hospitals: int) -> float:
    """Noise multiplier that each of m events has: all of it where nodes add their own, a part where it is in a sum."""
    return noise_multiplier if trust == "local" or hospitals == 1 else noise_multiplier / math.sqrt(hospitals) * _DOWN


def noise_multiplier_across(
    epsilon: float, delta: float, sampling_rate: float, steps: int, trust: str, hospitals: int
) -> float:
    """Find the noise that keeps a patient of m hospitals within ``epsilon``; as ``noise_multiplier_for`` for one.

    Raises:
        ConfigError: no noise multiplier in the accepted range does it.
    """
    each = noise_multiplier_for(epsilon, delta, sampling_rate, hospitals * steps)
    return each if trust == "local" or hospitals == 1 else each * math.sqrt(hospitals) * _UP


def worth_in_parts(variance: float, sensitivity: float, noise_multiplier: float, hospitals: int) -> bool:
    """Whether each of m parts of Skellam noise is worth its part of ``noise_multiplier``.

    Each part loses 1 of its variance to the Gaussian noise that it is compared with.
    """
    if hospitals == 1:
        return True  # that is what shares are made for
    part = (variance / hospitals - 1) * _DOWN
    return part >= (noise_multiplier / math.sqrt(hospitals) * sensitivity) ** 2


def in_words(terms: PrivacyTerms) -> str:
    """What a plan says of several hospitals; empty where it says nothing."""
    if terms.hospitals_per_unit == 1:
        return ""
    epsilon = across(terms, [terms.rounds] * terms.hospitals_per_unit).epsilon
    return f"; epsilon {epsilon:.4g} across hospitals for a {terms.unit} of up to {terms.hospitals_per_unit}"


def across_hospitals(terms: PrivacyTerms, rounds: Iterable[int]) -> dict[str, int | float]:
    """What a result says of a patient's hospitals, from the rounds that each node was charged for; nothing where m = 1.

    Under trust ``"local"`` the two figures are one, which is given once.
    """
    if terms.hospitals_per_unit == 1:
        return {}
    found = across(terms, rounds)
    figures: dict[str, int | float] = {
        "hospitals_per_patient": found.hospitals,
        "epsilon_across_hospitals": found.epsilon,
    }
    if terms.trust == "secagg":
        figures["epsilon_across_hospitals_against_model"] = found.against_model
    return figures


def card_sentence(privacy: Mapping[str, Any]) -> str:
    """What a model card says of them, as a paragraph; empty where m = 1."""
    if "epsilon_across_hospitals" not in privacy:
        return ""
    model = privacy.get("epsilon_across_hospitals_against_model")
    beside = "" if model is None else f" (against whoever sees this model and knows no node's noise {model:.3f})"
    return f"""The figures above are of one node's records of a patient. For a patient whose records are at up to
{privacy["hospitals_per_patient"]} of the nodes, as was declared, epsilon across them is
{privacy["epsilon_across_hospitals"]:.3f} at the same delta{beside}.

"""

"""Attacks on the mechanism by gradient canaries: the strongest scores that each attacker can have.

What an attacker sees of a canary is how often it was sampled, plus Gaussian noise; all else is at right angles to it.
The score is the logarithm of the likelihood ratio, exact for every sampling rate. Two ways give the same scores from
the same draws: ``client.training`` head by head, and arithmetic for thousands of heads at once, whose flags and
normals are those of ``common.privacy.noise``.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import partial
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from scipy.special import gammaln, logsumexp

from common.errors import ConfigError
from common.privacy.noise import Randomness, SeededRandomness, SystemRandomness
from simulations.audits.attack_by_training import released
from simulations.audits.findings import Claim, Threat, Vector

Way = Literal["at once", "head by head"]
AT_ONCE = 2**22  # normals in one chunk of heads


@dataclass(frozen=True)
class View:
    """What an attacker sees of a canary.

    Attributes:
        steps: noisy steps within each thing that it sees.
        deviation: of one step's noise in it, in clipping norms.
    """

    steps: int
    deviation: float


def view_of(claim: Claim, threat: Threat, nodes: int, steps_per_round: int = 1) -> View:
    """What an attacker sees where ``nodes`` nodes average, each with noise of its own, or sum with shares of it.

    A peer is one of the nodes and takes its own noise out again; whoever sees the average only does not. Of sums the
    server takes out its colluders' noise, and the most nodes that the plan allows for are lost.

    Raises:
        ConfigError: a peer without another node, or rounds that do not divide the steps.
    """
    if nodes < (2 if threat == "peer" else 1):
        raise ConfigError(f"the attacker {threat!r} needs more nodes, got {nodes}; a peer is a second node")
    if steps_per_round < 1 or claim.steps % steps_per_round:
        raise ConfigError(f"expected rounds that divide {claim.steps} steps, got {steps_per_round} steps a round")
    deviation = one_noise(claim) * noises_met(claim, threat, nodes) ** 0.5
    return View(claim.steps if threat == "model" else steps_per_round, deviation)


def noises_met(claim: Claim, threat: Threat, nodes: int) -> int:
    """Of how many nodes the noise lies on what an attacker sees."""
    if claim.survivors:
        return {"server": claim.honest, "peer": claim.survivors - 1, "model": claim.survivors}[threat]
    return {"server": 1, "peer": nodes - 1, "model": nodes}[threat]


def one_noise(claim: Claim) -> float:
    """Standard deviation of one node's noise, in clipping norms: all of it, or what its share is worth."""
    return claim.noise_multiplier / math.sqrt(max(1, claim.honest))


def attack_gradient(
    claim: Claim,
    threat: Threat,
    *,
    heads: int,
    nodes: int,
    parameters: int,
    seed: int | None,
    steps_per_round: int = 1,
    way: Way = "at once",
) -> tuple[Vector, Vector]:
    """Train heads, half of them on a gradient canary and half on nothing, and score what the attacker sees.

    Args:
        claim: steps, sampling rate, noise multiplier and clipping norm.
        threat: who attacks; its view is described in ``view_of``.
        heads: how many to train.
        nodes: of the federation.
        parameters: of the head, at least 4; they matter to "head by head" alone.
        seed: of sampling and noise; None takes the operating system's generator, as a deployed node does.
        steps_per_round: local steps between two heads that the server sees.
        way: "head by head" trains by ``client.training``, some hundred steps a second.

    Returns:
        Log-likelihood ratios of the heads with the canary, shape (heads // 2,), and of those without.

    Raises:
        ConfigError: as ``view_of``.
    """
    view = view_of(claim, threat, nodes, steps_per_round)
    half, rounds = heads // 2, claim.steps // steps_per_round
    included = np.arange(2 * half)[:, None] < half
    seen = (
        _released_head_by_head(claim, threat, included, max(1, parameters // 2 - 1), nodes, rounds, seed)
        if way == "head by head"
        else _released_at_once(claim, threat, included, nodes, rounds, seed, "one canary")
    )
    scores = log_likelihood_ratio(seen, claim.sampling_rate, view).sum(axis=1)[:, 0]
    return scores[:half], scores[half:]


def attack_in_one_run(
    claim: Claim,
    threat: Threat,
    *,
    canaries: int,
    nodes: int,
    seed: int | None,
    heads: int = 1,
    steps_per_round: int = 1,
    way: Way = "at once",
) -> tuple[Vector, NDArray[np.bool_]]:
    """Train one head on gradient canaries of which each takes part by the toss of a fair coin.

    Args:
        claim: of the mechanism.
        threat: who attacks.
        canaries: how many; a linear head holds as many as it has features.
        nodes: of the federation.
        seed: of coins, sampling and noise; None takes the operating system's generator.
        heads: several are one run with so many times the canaries: the mechanism that trains them all.
        steps_per_round: local steps between two heads that the server sees.
        way: "head by head" trains by ``client.training``.

    Returns:
        Log-likelihood ratios, shape (heads * canaries,), and which canaries took part.

    Raises:
        ConfigError: as ``view_of``.
    """
    view = view_of(claim, threat, nodes, steps_per_round)
    rounds = claim.steps // steps_per_round
    included = randomness(seed, f"coins {threat}").bernoulli(heads * canaries, 0.5).reshape(heads, canaries)
    seen = (
        _released_head_by_head(claim, threat, included, canaries, nodes, rounds, seed)
        if way == "head by head"
        else _released_at_once(claim, threat, included, nodes, rounds, seed, "many canaries")
    )
    return log_likelihood_ratio(seen, claim.sampling_rate, view).sum(axis=1).ravel(), included.ravel()


def log_likelihood_ratio(seen: Vector, sampling_rate: float, view: View) -> Vector:
    """Of each thing seen, had the canary been in the records or not; any shape.

    Within k steps the canary is sampled j times with binomial probability; given j, what is seen has mean j and
    variance k sigma^2.

    >>> float(log_likelihood_ratio(np.array(1.0), 1.0, View(1, 1.0)))
    0.5
    """
    variance = view.steps * view.deviation**2
    times = np.arange(view.steps + 1) if sampling_rate < 1 else np.array([view.steps])
    weights = _log_binomial(times, view.steps, sampling_rate)
    return np.asarray(logsumexp(weights + (2 * seen[..., None] * times - times**2) / (2 * variance), axis=-1))


def seen_from_draws(claim: Claim, included: NDArray[np.bool_], flags: NDArray[np.bool_], noise: Vector) -> Vector:
    """The sum that each step of the attacked node reveals of each canary, in clipping norms, plus others' noise.

    Args:
        claim: of the mechanism.
        included: whether each canary is among the records, shape (H, m).
        flags: whether it is sampled, if it is there, shape (H, T, m).
        noise: standard normals at the canary's weights in either class, of the nodes whose noise the attacker meets,
            shape (H, V, T, m, 2).

    Returns:
        Shape (H, T, m).
    """
    along = (noise[..., 1] - noise[..., 0]).sum(axis=1) / 2**0.5
    return np.asarray((flags & included[:, None, :]) + one_noise(claim) * along)


def randomness(seed: int | None, purpose: str, head: int = 0) -> Randomness:
    """The operating system's, or a stream of its own for each head and purpose."""
    return SystemRandomness() if seed is None else SeededRandomness(seed, "audit", head, purpose)


def _released_at_once(
    claim: Claim,
    threat: Threat,
    included: NDArray[np.bool_],
    nodes: int,
    rounds: int,
    seed: int | None,
    purpose: str,
) -> Vector:
    """What the attacker sees in each round, shape (H, R, m); for the final head R is 1."""
    heads, canaries = included.shape
    noises = noises_met(claim, threat, nodes)
    chunk = max(1, AT_ONCE // (noises * claim.steps * canaries * 2))
    parts = []
    for first in range(0, heads, chunk):
        own, source = included[first : first + chunk], randomness(seed, f"{purpose}, {threat}", first)
        flags = source.bernoulli(own.size * claim.steps, claim.sampling_rate).reshape(len(own), claim.steps, canaries)
        noise = source.normal((len(own), noises, claim.steps, canaries, 2))
        seen = seen_from_draws(claim, own, flags, noise)
        parts.append(seen.reshape(len(own), 1 if threat == "model" else rounds, -1, canaries).sum(axis=2))
    return np.concatenate(parts)


def _released_head_by_head(
    claim: Claim,
    threat: Threat,
    included: NDArray[np.bool_],
    features: int,
    nodes: int,
    rounds: int,
    seed: int | None,
) -> Vector:
    """The same by the code that trains."""

    def streams(head: int, node: int, turn: int) -> tuple[Randomness, Randomness]:
        own = f"{threat} {node} {turn}"
        return randomness(seed, f"sampling {own}", head), randomness(seed, f"noise {own}", head)

    return np.stack(
        [
            released(claim, threat, own, features, nodes, rounds, partial(streams, head))
            for head, own in enumerate(included)
        ]
    )


def _log_binomial(times: NDArray[np.int64], steps: int, rate: float) -> Vector:
    if rate >= 1:
        return np.zeros(1)
    choose = gammaln(steps + 1) - gammaln(times + 1) - gammaln(steps - times + 1)
    return np.asarray(choose + times * np.log(rate) + (steps - times) * np.log1p(-rate))

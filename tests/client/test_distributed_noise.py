"""A node's share: its own sum, rounded, with noise that adds up over nodes to just what is claimed."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from scipy.special import ive
from scipy.stats import chi2
from torch import nn

from client.clipping import ClippedSum
from client.distributed_noise import noised_share, rounded
from client.mechanism import clipped_sum
from common.errors import PrivacyError
from common.privacy.noise import SeededRandomness, SystemRandomness
from common.privacy.shares import Cohort, NoiseShares, share_out
from common.tasks import classification_loss

FALSE_ALARM = 1e-6  # of each statistical check; its noise is seeded, so that it passes always or never
NODES, NUMBERS, BINS = 10, 10_000, 50
ROUNDS = 4  # 40,000 numbers in all


def shares_for(cohort: Cohort, numbers: int = NUMBERS) -> NoiseShares:
    return share_out(cohort, 1.5, 0.5, numbers, 100, 30)


def sums_of(nodes: int, numbers: int = NUMBERS) -> list[ClippedSum]:
    """What each node might hold; not whole numbers of the scale."""
    rng = np.random.default_rng(nodes)
    return [ClippedSum({"w": torch.from_numpy(rng.normal(0, 1, numbers))}, 0.5, 0) for _ in range(nodes)]


def noise_of(shares: NoiseShares, sums: Sequence[ClippedSum], missing: int = 0) -> NDArray[np.int64]:
    """What the opened sums hold beside the plain sums, over ``ROUNDS`` rounds; ``missing`` nodes add no noise."""
    plain = sum(rounded(each.values["w"].numpy(), shares) for each in sums)
    found = []
    for number in range(ROUNDS):
        parts = []
        for node, each in enumerate(sums):
            if node < missing:
                parts.append(shares.residues(rounded(each.values["w"].numpy(), shares)))
            else:
                parts.append(noised_share(each, shares, SeededRandomness(7, f"node-{node}", number, "train")))
        found.append(np.rint(shares.opened(shares.add(parts)) * shares.scale).astype(np.int64) - plain)
    return np.concatenate(found)


def is_skellam(noise: NDArray[np.int64], variance: float) -> bool:
    """Chi-square against e^-v I_k(v) in bins of about equal probability.

    With 40,000 numbers in 50 bins a variance 10 % too small passes with probability below 1e-7.
    """
    reach = math.ceil(10 * math.sqrt(variance))
    k = np.arange(-reach, reach + 1)
    p = ive(np.abs(k), variance)
    edges = k[np.searchsorted(np.cumsum(p), np.arange(1, BINS) / BINS)]
    expected = np.bincount(np.searchsorted(edges, k, side="right"), weights=p, minlength=BINS) * noise.size
    seen = np.bincount(np.searchsorted(edges, noise, side="right"), minlength=BINS)
    return bool((np.square(seen - expected) / expected).sum() <= chi2.isf(FALSE_ALARM, BINS - 1))


@pytest.mark.parametrize(("dropouts", "colluders"), [(0, 0), (2, 1)])
def test_the_noise_in_the_opened_sum_has_the_claimed_distribution(dropouts: int, colluders: int) -> None:
    shares = shares_for(Cohort(NODES, dropouts, colluders))
    survivors = sums_of(NODES)[dropouts:]
    noise = noise_of(shares, survivors)
    assert is_skellam(noise, shares.share_variance * len(survivors))


def test_the_colluders_taken_off_what_is_left_is_worth_the_noise_multiplier() -> None:
    shares = shares_for(Cohort(NODES, 2, 1))
    honest = sums_of(NODES)[3:]
    noise = noise_of(shares, honest)
    assert is_skellam(noise, shares.share_variance * len(honest))
    assert shares.share_variance * len(honest) >= (shares.noise_multiplier * shares.sensitivity) ** 2


def test_one_share_missing_is_caught() -> None:
    shares = shares_for(Cohort(NODES, 0, 0))
    assert not is_skellam(noise_of(shares, sums_of(NODES), missing=1), shares.share_variance * NODES)


def test_rounded_normal_noise_of_a_tenth_less_variance_is_caught_and_of_the_same_is_not() -> None:
    """At this scale the two are alike, which is why one accountant serves both."""
    variance = 1e6
    normal = SeededRandomness(1, "a", 1, "train").normal((40_000,))
    assert is_skellam(np.rint(1e3 * normal).astype(np.int64), variance)
    assert not is_skellam(np.rint(math.sqrt(0.9) * 1e3 * normal).astype(np.int64), variance)


def test_the_opened_sum_is_the_clipped_sum_with_noise_of_the_claimed_size() -> None:
    """A real head: without noise the rest is rounding, half a unit of the scale a node."""
    torch.manual_seed(0)
    head = nn.Linear(64, 10)
    cohort, features = Cohort(5, 0, 1), torch.randn(5, 30, 64)
    labels = torch.randint(10, (5, 30))
    sums = [clipped_sum(head, classification_loss, features[i], labels[i], 0.8) for i in range(5)]
    shares = share_out(cohort, 3.0, 0.8, 650, 30, 30)
    parts = [noised_share(each, shares, SystemRandomness()) for each in sums]
    flat = [torch.cat([each.values["bias"], each.values["weight"].flatten()]).numpy() for each in sums]
    plain = np.sum(flat, axis=0)
    noise = shares.opened(shares.add(parts)) - plain
    deviation = 3.0 * 0.8 * math.sqrt(5 / 4)
    low, high = chi2.ppf([FALSE_ALARM / 2, 1 - FALSE_ALARM / 2], 650)
    assert low <= np.square(noise / (deviation * (1 + shares.extra_noise))).sum() <= high
    silent = sum(rounded(values, shares) for values in flat)
    assert np.abs(silent / shares.scale - plain).max() <= 5 * 0.5 / shares.scale + 1e-12


def test_an_empty_batch_is_noised_like_any_other() -> None:
    shares = shares_for(Cohort(NODES, 0, 0))
    empty = [ClippedSum({"w": torch.zeros(NUMBERS, dtype=torch.float64)}, 0.5, 0)] * NODES
    assert is_skellam(noise_of(shares, empty), shares.share_variance * NODES)


def test_parameters_lie_end_to_end_in_the_order_of_names() -> None:
    shares = shares_for(Cohort(2, 0, 0), numbers=6)
    first = {"weight": torch.ones(2, 2).double(), "bias": 1000 * torch.ones(2).double()}
    shares_wide = share_out(Cohort(2, 0, 0), 1.5, 0.5, 6, 4000, 30)
    one = shares_wide.opened(noised_share(ClippedSum(first, 0.5, 0), shares_wide, SystemRandomness()))
    assert (one[:2] > 900).all()
    assert (one[2:] < 100).all()
    assert shares.numbers == shares_wide.numbers


def test_two_rounds_and_two_nodes_do_not_share_noise() -> None:
    shares = shares_for(Cohort(NODES, 0, 0))
    one, other = (noised_share(sums_of(1)[0], shares, SystemRandomness()) for _ in range(2))
    assert np.mean(one == other) < 0.01
    seeded = [
        noised_share(sums_of(1)[0], shares, SeededRandomness(1, node, number, "train"))
        for node in "ab"
        for number in (1, 2)
    ]
    assert np.mean(seeded[0] == seeded[1]) < 0.01
    assert np.mean(seeded[0] == seeded[2]) < 0.01


def test_a_share_alone_looks_like_any_residue() -> None:
    shares = shares_for(Cohort(NODES, 0, 0))
    share = noised_share(sums_of(1)[0], shares, SystemRandomness())
    assert share.dtype == np.int64
    assert share.min() >= 0
    assert share.max() < 2**shares.modulus_bits


@pytest.mark.parametrize(
    ("values", "norm", "said"),
    [
        (torch.zeros(NUMBERS, dtype=torch.float64), 0.6, "clipped to the agreed norm"),
        (torch.zeros(NUMBERS, dtype=torch.float32), 0.5, "double precision"),
        (torch.zeros(NUMBERS - 1, dtype=torch.float64), 0.5, "finite numbers"),
        (torch.full((NUMBERS,), math.nan, dtype=torch.float64), 0.5, "finite numbers"),
        (torch.full((NUMBERS,), math.inf, dtype=torch.float64), 0.5, "finite numbers"),
    ],
)
def test_what_is_no_clipped_sum_of_the_agreed_head_is_refused(values: torch.Tensor, norm: float, said: str) -> None:
    with pytest.raises(PrivacyError, match=said):
        noised_share(ClippedSum({"w": values}, norm, 0), shares_for(Cohort(NODES, 0, 0)), SystemRandomness())

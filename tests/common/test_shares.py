"""Shares of noise: what one unit changes, what rounding costs, what overflows, and what the two figures say."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy.special import ive
from scipy.stats import binom

from client.distributed_noise import rounded
from common.errors import PrivacyError
from common.privacy.accountant import Event, epsilon_pld
from common.privacy.shares import (
    MOST_BITS,
    MOST_EXTRA,
    OVERFLOW,
    Cohort,
    NoiseShares,
    figures,
    largest_batch_of,
    server_event,
    share_out,
)

DELTA = 1e-5
ALL = Cohort(10, 0, 0)
Floats = NDArray[np.float64]


def shares_for(
    cohort: Cohort = ALL, sigma: float = 2.0, clip: float = 0.8, numbers: int = 650, batch: int = 150
) -> NoiseShares:
    return share_out(cohort, sigma, clip, numbers, batch, 30)


def moved_by(shares: NoiseShares, sum_without: Floats, unit: Floats) -> float:
    """How far one unit moves the integers, in L2."""
    return float(np.linalg.norm(rounded(sum_without + unit, shares) - rounded(sum_without, shares)))


def clipped(vector: Floats, norm: float) -> Floats:
    return vector * min(1.0, norm / max(float(np.linalg.norm(vector)), 1e-300))


def at_the_edges(shares: NoiseShares, unit: Floats, k: NDArray[np.int64]) -> Floats:
    """The worst that others can hold: every number just below where rounding turns, on the side where the unit goes."""
    return (k + np.where(unit >= 0, 0.5 - 1e-9, -0.5 + 1e-9)) / shares.scale


units = st.tuples(st.integers(0, 2**32 - 1), st.sampled_from(["dense", "sparse", "tiny", "one"]))


def unit_of(draw: tuple[int, str], shares: NoiseShares) -> tuple[Floats, np.random.Generator]:
    seed, kind = draw
    rng = np.random.default_rng(seed)
    vector = rng.standard_normal(shares.numbers)
    if kind == "sparse":
        vector *= rng.random(shares.numbers) < 0.1
    if kind == "one":
        vector *= np.arange(shares.numbers) == 0
    if kind == "tiny":
        return clipped(vector, 1e-6 * shares.clipping_norm), rng
    return clipped(vector, shares.clipping_norm), rng


@settings(max_examples=150, deadline=None)
@given(units, st.sampled_from([1, 3, 65, 650]), st.booleans())
def test_one_unit_never_moves_the_integers_further_than_the_sensitivity(
    draw: tuple[int, str], numbers: int, edges: bool
) -> None:
    shares = shares_for(numbers=numbers)
    unit, rng = unit_of(draw, shares)
    others = np.sum([clipped(rng.standard_normal(numbers), shares.clipping_norm) for _ in range(5)], axis=0)
    if edges:
        others = at_the_edges(shares, unit, rng.integers(-1000, 1000, numbers))
    assert moved_by(shares, others, unit) <= shares.sensitivity


@pytest.mark.parametrize("coarse", [0, 5, 8])
def test_control_without_the_root_of_d_the_bound_is_passed(coarse: int) -> None:
    """A unit that pushes every number over an edge; at a coarse scale it moves the sum by nearly all of the bound."""
    shares = shares_for(sigma=8.0)
    shares = replace(shares, scale_exponent=shares.scale_exponent - coarse)
    unit = clipped(np.ones(shares.numbers), shares.clipping_norm)
    others = at_the_edges(shares, unit, np.zeros(shares.numbers, dtype=np.int64))
    moved = moved_by(shares, others, unit)
    assert shares.scale * shares.clipping_norm < moved <= shares.sensitivity
    if coarse == 8:
        assert moved > 0.6 * shares.sensitivity


@given(st.lists(st.floats(-1e3, 1e3), min_size=4, max_size=4), st.lists(st.floats(-1e3, 1e3), min_size=4, max_size=4))
def test_the_range_is_cut_without_moving_two_sums_further_apart(one: list[float], other: list[float]) -> None:
    shares = share_out(ALL, 2.0, 1.0, 4, 50, 30, bound=7.0)
    a, b = np.array(one), np.array(other)
    assert np.abs(rounded(a, shares)).max() <= 7.0 * shares.scale
    moved = float(np.linalg.norm(rounded(a, shares) - rounded(b, shares)))
    assert moved <= shares.scale * float(np.linalg.norm(a - b)) + 2 + 1e-6


@pytest.mark.parametrize(
    ("sigma", "clip", "numbers", "batch", "nodes"),
    [(0.5, 0.3, 1, 1, 2), (7.6, 0.8, 650, 150, 10), (30.0, 3.2, 2050, 1000, 5), (1.0, 1.0, 100_000, 100_000, 100)],
)
def test_rounding_costs_under_one_percent_and_overflow_is_out_of_the_question(
    sigma: float, clip: float, numbers: int, batch: int, nodes: int
) -> None:
    shares = share_out(Cohort(nodes, 0, 1), sigma, clip, numbers, batch, 1000)
    assert 0 < shares.extra_noise <= MOST_EXTRA
    assert shares.overflow_probability(1000) <= OVERFLOW
    assert replace(shares, modulus_bits=shares.modulus_bits - 1).overflow_probability(1000) > OVERFLOW
    assert shares.modulus_bits <= 45


def test_the_overflow_bound_is_above_the_probability_itself_and_not_far() -> None:
    shares = share_out(Cohort(2, 0, 0), 2.0, 1.0, 1, 1, 1)
    for bits in range(8, shares.modulus_bits):
        fewer = replace(shares, modulus_bits=bits)
        room = 2 ** (bits - 1) - 1 - 2 * (math.floor(shares.scale) + 1)
        k = np.arange(max(room, 0) + 1, 20 * 2**shares.modulus_bits)
        exact = 2 * float(ive(k, 2 * shares.share_variance).sum())
        assert min(exact, 1.0) <= fewer.overflow_probability(1)
    assert exact > 0


def test_a_modulus_too_small_wraps_and_nothing_stops() -> None:
    """The sum comes out wrong by a multiple of the modulus; nobody aborts, as an abort would tell."""
    shares = shares_for()
    small = replace(shares, modulus_bits=12)
    assert small.overflow_probability(1) == 1.0
    rng = np.random.default_rng(0)
    parts = [rng.integers(-3000, 3000, shares.numbers) for _ in range(10)]
    plain = np.sum(parts, axis=0) / shares.scale
    wide = shares.opened(shares.add([shares.residues(part) for part in parts]))
    narrow = small.opened(small.add([small.residues(part) for part in parts]))
    assert np.array_equal(wide, plain)
    wraps = (narrow - plain) * shares.scale / 2**12
    assert np.array_equal(wraps, np.rint(wraps))
    assert (wraps != 0).any()
    assert np.abs(narrow).max() * shares.scale <= 2**11


@given(st.lists(st.integers(-(2**40), 2**40), min_size=1, max_size=20), st.integers(45, MOST_BITS))
def test_what_is_opened_is_the_sum_whatever_the_order_and_the_modulus(parts: list[int], bits: int) -> None:
    shares = replace(shares_for(numbers=1), modulus_bits=bits)
    residues = [shares.residues(np.array([part])) for part in parts]
    assert shares.opened(shares.add(residues)) * shares.scale == sum(parts)
    assert shares.opened(shares.add(residues[::-1])) * shares.scale == sum(parts)


def test_shares_are_sized_for_the_worst_that_is_allowed_for() -> None:
    shares = [shares_for(Cohort(10, lost, told)) for lost, told in [(0, 0), (2, 0), (0, 2), (2, 3)]]
    total = [s.share_variance * s.cohort.honest for s in shares]
    assert [s.cohort.honest for s in shares] == [10, 8, 8, 5]
    assert max(total) == pytest.approx(min(total), rel=1e-9)


@pytest.mark.parametrize(("nodes", "dropouts", "colluders"), [(0, 0, 0), (3, 2, 1), (5, 5, 0), (5, -1, 0), (5, 0, -1)])
def test_a_cohort_that_leaves_nobodys_noise_is_refused(nodes: int, dropouts: int, colluders: int) -> None:
    with pytest.raises(PrivacyError, match="neither lost nor colludes"):
        Cohort(nodes, dropouts, colluders)


def test_against_the_server_epsilon_is_the_plans_own() -> None:
    for cohort in (ALL, Cohort(10, 1, 1), Cohort(3, 0, 2)):
        both = figures(shares_for(cohort), 0.3, 30, DELTA)
        assert both.against_server == epsilon_pld([Event(2.0, 0.3, 30)], DELTA)


def test_against_the_model_colluders_noise_counts_and_that_of_the_lost_does_not() -> None:
    told, lost = (
        figures(shares_for(Cohort(10, 0, 2)), 1.0, 30, DELTA),
        figures(shares_for(Cohort(10, 2, 0)), 1, 30, DELTA),
    )
    assert told.against_model == pytest.approx(epsilon_pld([Event(2.0 * math.sqrt(10 / 8), 1.0, 30)], DELTA), rel=1e-6)
    assert told.against_model < told.against_server
    assert lost.against_model == pytest.approx(lost.against_server, rel=1e-6)


def test_a_nodes_own_noise_is_no_protection_from_itself() -> None:
    """Who knows one share faces the others' only: without a colluder allowed for, that costs more than is claimed."""
    naive = shares_for(Cohort(3, 0, 0))
    without_its_own = naive.share_variance * 2
    assert math.sqrt(without_its_own) / naive.sensitivity < naive.noise_multiplier * 0.82
    allowed = shares_for(Cohort(3, 0, 1))
    assert math.sqrt(allowed.share_variance * 2) / allowed.sensitivity >= allowed.noise_multiplier


def test_a_ledger_is_charged_what_the_noise_is_worth() -> None:
    shares = shares_for(Cohort(5, 1, 1))
    assert server_event(shares, 0.1, 7) == Event(2.0, 0.1, 7)
    object.__setattr__(shares, "share_variance", shares.share_variance * 0.99)
    with pytest.raises(PrivacyError, match="noise multiplier"):
        server_event(shares, 0.1, 7)


@pytest.mark.parametrize("rate", [0.01, 0.3, 1.0])
def test_a_batch_is_hardly_ever_larger_than_what_is_planned_for(rate: float) -> None:
    largest = largest_batch_of(500, rate, 100)
    assert 100 * binom.sf(largest, 500, rate) <= OVERFLOW
    assert largest <= min(500, 500 * rate + 10 * math.sqrt(500 * rate) + 10)


@pytest.mark.parametrize(
    "wrong",
    [
        {"noise_multiplier": 0.0},
        {"clipping_norm": math.nan},
        {"modulus_bits": 63},
        {"bound": -1.0},
        {"numbers": 0},
        {"scale_exponent": -40},
        {"scale_exponent": 60},
    ],
)
def test_constants_that_promise_nothing_are_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(PrivacyError, match="shares of noise need"):
        replace(shares_for(), **wrong)  # type: ignore[arg-type]  # one field at a time


def test_a_sum_that_fits_no_modulus_is_refused() -> None:
    with pytest.raises(PrivacyError, match="62 bits"):
        share_out(ALL, 2.0, 1.0, 10**6, 1000, 1, bound=2.0**45)

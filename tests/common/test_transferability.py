"""LogME against the likelihood it stands for, against the paper's own algorithm, and where it must not move."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy.optimize import minimize
from scipy.stats import kendalltau, multivariate_normal

from common.errors import ConfigError
from common.transferability import (
    log_evidence,
    moments,
    score_records,
    spectrum_of_moments,
    spectrum_of_records,
)

Values = NDArray[np.float64]


def made_up(seed: int, records: int, features: int, classes: int = 3) -> tuple[Values, Values]:
    """Features of which the first tells something about the class."""
    rng = np.random.default_rng(seed)
    labels = np.arange(records) % classes
    x = rng.normal(size=(records, features)) * rng.uniform(0.1, 3, features) + 5
    x[:, 0] += labels
    return x, np.eye(classes)[labels]


def beside_the_constant(*matrices: Values) -> list[Values]:
    """The records in the N - 1 dimensions that are orthogonal to the constant."""
    records = len(matrices[0])
    basis, _ = np.linalg.qr(np.column_stack([np.ones(records), np.eye(records)[:, 1:]]))
    return [basis[:, 1:].T @ matrix for matrix in matrices]


def by_likelihood(x: Values, y: Values) -> float:
    """The evidence from its definition: a Gaussian of N - 1 dimensions, maximised over two variances."""
    x, y = beside_the_constant(x, y)
    products, one = x @ x.T, np.eye(len(x))

    def negative(logs: Values, target: Values) -> float:
        covariance = np.exp(logs[0]) * one + np.exp(logs[1]) * products
        return -float(multivariate_normal(np.zeros(len(x)), covariance, allow_singular=True).logpdf(target))

    best = []
    for target in y.T:
        starts = [(noise, prior) for noise in (-3.0, -1.0) for prior in (-6.0, -2.0)]
        options = {"xatol": 1e-7, "fatol": 1e-9, "maxiter": 4000}
        best.append(
            min(minimize(negative, start, (target,), method="Nelder-Mead", options=options).fun for start in starts)
        )
    return float(-np.mean(best) / len(x))


def by_the_paper(x: Values, y: Values) -> float:
    """Algorithm 1 of You et al. 2021, with the whole matrices in every iteration."""
    records, features = x.shape
    found = []
    for target in y.T:
        alpha = beta = 1.0
        for _ in range(500):
            precision = alpha * np.eye(features) + beta * x.T @ x
            weights = beta * np.linalg.solve(precision, x.T @ target)
            used = beta * np.trace(np.linalg.solve(precision, x.T @ x))
            left = ((x @ weights - target) ** 2).sum()
            alpha, beta = used / (weights @ weights), (records - used) / left
        precision = alpha * np.eye(features) + beta * x.T @ x
        weights = beta * np.linalg.solve(precision, x.T @ target)
        left = ((x @ weights - target) ** 2).sum()
        total = features * np.log(alpha) + records * np.log(beta) - np.linalg.slogdet(precision)[1]
        total -= beta * left + alpha * weights @ weights + records * np.log(2 * np.pi)
        found.append(total / 2 / records)
    return float(np.mean(found))


@pytest.mark.parametrize("features", [1, 5, 39, 80])
def test_it_is_the_largest_likelihood(features):
    x, y = made_up(features, 40, features)
    assert score_records(x, y) == pytest.approx(by_likelihood(x, y), abs=1e-7)


def test_it_is_what_the_papers_algorithm_converges_to():
    x, y = made_up(0, 60, 8)
    assert score_records(x, y) == pytest.approx(by_the_paper(*beside_the_constant(x, y)), abs=1e-8)


@given(st.integers(0, 10_000), st.integers(4, 30), st.integers(1, 40))
def test_both_ways_to_add_records_up_agree(seed, records, features):
    x, y = made_up(seed, records, features)
    weights = np.random.default_rng(seed).uniform(0.5, 1, records)
    by_features = log_evidence(spectrum_of_moments(moments(x - x.mean(axis=0), y, weights)))
    assert by_features == pytest.approx(log_evidence(spectrum_of_records(x, y, weights)), abs=1e-6)


@given(st.integers(0, 10_000), st.floats(0.01, 100), st.floats(-50, 50))
def test_shift_rotation_scale_and_order_change_nothing(seed, scale, shift):
    x, y = made_up(seed, 25, 6)
    rng = np.random.default_rng(seed)
    turn, _ = np.linalg.qr(rng.normal(size=(6, 6)))
    order, names = rng.permutation(25), rng.permutation(3)
    moved = np.hstack([scale * (x @ turn) + shift, np.full((25, 2), 7.0)])
    assert score_records(moved[order], y[order][:, names]) == pytest.approx(score_records(x, y), abs=1e-6)


@given(st.integers(0, 10_000))
def test_sums_of_two_places_are_the_sums_of_all(seed):
    x, y = made_up(seed, 30, 5)
    here, there, all_ = moments(x[:11], y[:11]), moments(x[11:], y[11:]), moments(x, y)
    assert np.allclose(here.gram + there.gram, all_.gram)
    assert np.allclose(here.sums + there.sums, all_.sums)
    assert here.weight + there.weight == all_.weight


def test_each_record_twice_with_half_the_weight_is_each_record_once():
    x, y = made_up(3, 20, 4)
    twice = score_records(np.vstack([x, x]), np.vstack([y, y]), np.full(40, 0.5))
    assert twice == pytest.approx(score_records(x, y), abs=1e-9)


def test_features_that_say_more_score_higher():
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 3, 300)
    noises = [0.3, 0.6, 1.2, 2.4, 4.8]
    means = rng.normal(size=(3, 10))
    scores = [score_records(means[labels] + noise * rng.normal(size=(300, 10)), np.eye(3)[labels]) for noise in noises]
    assert kendalltau(noises, scores).statistic == pytest.approx(-1)


def test_constant_features_are_worth_what_a_constant_is():
    _, y = made_up(0, 30, 1)
    variance = y.var(axis=0, ddof=1)
    assert score_records(np.ones((30, 4)), y) == pytest.approx(np.mean(-0.5 * (1 + np.log(2 * np.pi * variance))))


def test_features_that_separate_exactly_stay_finite():
    y = np.eye(2)[np.arange(20) % 2]
    assert np.isfinite(score_records(y, y))
    assert np.isfinite(score_records(np.hstack([y] * 30), y))


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_a_feature_that_is_not_finite_is_refused(bad):
    x, y = made_up(0, 10, 2)
    x[3, 1] = bad
    with pytest.raises(ConfigError, match="finite"):
        score_records(x, y)


def test_one_class_is_refused():
    with pytest.raises(ConfigError, match="two classes"):
        score_records(np.random.default_rng(0).normal(size=(10, 2)), np.eye(2)[np.zeros(10, int)])

"""What a node releases of a candidate is bounded for any record, and scores what it should."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from common.data.records import TaskName
from common.errors import PrivacyError
from common.metrics import CUT_OFF, IGNORED
from common.noised_moments import (
    MOST_WIDTH,
    SENSITIVITY,
    WEIGHTS,
    Sketch,
    bounded,
    bounded_sums,
    noised_error,
    noised_score,
    pack,
    packed_size,
    projection,
    unpack,
)
from common.scored_rows import rows_of
from common.scored_targets import Rows, has_constant, scored_targets, target_bound

WILD = st.one_of(st.floats(-1e6, 1e6, width=32), st.sampled_from([np.inf, -np.inf, np.nan, 3e38, 0.0]))
SKETCH = Sketch(seed=3, width=4)


def one_record(task: TaskName, features: np.ndarray, seed: int) -> Rows:
    """A record of any task with these numbers somewhere in it."""
    rng = np.random.default_rng(seed)
    if task in ("classification", "multilabel"):
        labels = torch.tensor([seed % 3]) if task == "classification" else torch.from_numpy(rng.integers(0, 2, (1, 3)))
        return rows_of(features[:1, :6], labels, task, ((6,),), 3)
    flat = np.concatenate([features.ravel(), rng.permutation([1, 1, 0]).astype(np.float32)])[None]
    tags = torch.from_numpy(rng.choice([IGNORED, 0, 1, 2], (1, 3)))
    return rows_of(flat, tags if task == "tokens" else torch.tensor([[seed % 3, seed % 3]]), task, ((3, 6), (3,)), 3)


@given(
    st.sampled_from(["classification", "multilabel", "tokens", "spans"]),
    arrays(np.float32, (3, 6), elements=WILD),
    st.integers(0, 50),
)
def test_no_record_adds_more_than_the_sensitivity(task, features, seed):
    added = bounded_sums(one_record(task, features, seed), projection(6, SKETCH), target_bound(task, 3))
    assert np.isfinite(added).all()
    assert np.linalg.norm(added) <= SENSITIVITY + 1e-12
    assert len(added) == packed_size(4, task, 3)


def test_the_bound_is_met_by_an_ordinary_record():
    features = np.random.default_rng(0).normal(size=(3, 6)).astype(np.float32)
    added = bounded_sums(one_record("classification", features, 0), projection(6, SKETCH), 1.0)
    assert np.linalg.norm(added) == pytest.approx(SENSITIVITY)


def test_the_control_without_the_bound_is_seen_to_pass_it():
    x = np.full((1, 4), 3.0)
    assert np.linalg.norm(pack(x.T @ x, x, np.ones(1), 1.0)) > 2 * SENSITIVITY


def test_weights_spend_the_whole_norm():
    assert sum(weight**2 for weight in WEIGHTS) == pytest.approx(1)


@given(st.integers(0, 1000))
def test_packing_keeps_the_norm_of_a_symmetric_matrix_and_is_undone(seed):
    rng = np.random.default_rng(seed)
    products = rng.normal(size=(4, 4))
    products = products + products.T
    sums, counts = rng.normal(size=(3, 4)), rng.normal(size=3)
    values = pack(products, sums, counts, 2.0)
    assert np.linalg.norm(values[:10]) == pytest.approx(WEIGHTS[0] * np.linalg.norm(products))
    assert all(map(np.allclose, unpack(values, 4, 3, 2.0), (products, sums, counts)))


@pytest.mark.parametrize("features", [4, 9, 300])
def test_the_projection_is_orthonormal_and_the_same_for_everybody(features):
    matrix = projection(features, SKETCH)
    assert np.allclose(matrix.T @ matrix, np.eye(4))
    assert np.array_equal(matrix, projection(features, SKETCH))
    assert not np.allclose(matrix, projection(features, Sketch(4, 4)))


def test_too_few_features_and_too_wide_a_projection_are_refused():
    with pytest.raises(PrivacyError, match="at least 4 features"):
        projection(3, SKETCH)
    for width in (0, MOST_WIDTH + 1):
        with pytest.raises(PrivacyError, match="1 to 64"):
            Sketch(0, width)


def test_rows_have_norm_one_or_are_zero():
    rows = np.array([[3.0, 4.0], [0.0, 0.0], [np.nan, 1.0], [1e308, 1e308]])
    assert np.allclose(np.linalg.norm(bounded(rows, np.eye(2)), axis=1)[:3], [1, 0, 0])
    assert np.isfinite(bounded(rows, np.eye(2))).all()


def sums_of(distance: float, records: int = 4000, task: TaskName = "classification") -> np.ndarray:
    """Exact statistics of three classes whose means lie so far apart."""
    rng = np.random.default_rng(0)
    labels = np.arange(records) % 3
    features = (distance * np.eye(3, 8)[labels] + rng.normal(size=(records, 8))).astype(np.float32)
    targets = torch.from_numpy(labels if task == "classification" else np.eye(3, dtype=np.int64)[labels])
    return bounded_sums(
        rows_of(features, targets, task, ((8,),), 3), projection(8, Sketch(0, 8)), target_bound(task, 3)
    )


@pytest.mark.parametrize("task", ["classification", "multilabel"])
def test_classes_further_apart_score_higher(task):
    scores = [noised_score(sums_of(d, task=task), 0.0, 4000, Sketch(0, 8), task, 3) for d in (0, 1, 2, 4, 8)]
    assert all(before < after for before, after in itertools.pairwise(scores))
    assert scores[0] < 0.05
    assert scores[-1] > 0.7


def test_without_noise_it_is_the_share_that_a_linear_regression_explains():
    rng = np.random.default_rng(1)
    labels = np.arange(3000) % 3
    features = (np.eye(3, 8)[labels] + 0.5 * rng.normal(size=(3000, 8))).astype(np.float32)
    rows = rows_of(features, torch.from_numpy(labels), "classification", ((8,),), 3)
    x, y = bounded(features, projection(8, Sketch(0, 8))), np.eye(3)[labels]
    design = np.column_stack([x, np.ones(3000)])
    left = y - design @ np.linalg.lstsq(design, y, rcond=None)[0]
    explained = 1 - (left**2).sum() / ((y - y.mean(axis=0)) ** 2).sum()
    sums = bounded_sums(rows, projection(8, Sketch(0, 8)), 1.0)
    assert noised_score(sums, 0.0, 3000, Sketch(0, 8), "classification", 3) == pytest.approx(explained, abs=0.01)


def test_the_error_is_about_what_noise_does():
    rng, sums, deviation = np.random.default_rng(2), sums_of(2.0), 30.0
    facts = (deviation, 4000, Sketch(0, 8), "classification", 3)
    scores = [noised_score(sums + deviation * rng.standard_normal(len(sums)), *facts) for _ in range(200)]
    noisy = sums + deviation * rng.standard_normal(len(sums))
    assert 0.5 < noised_error(noisy, *facts) / np.std(scores) < 2
    assert noised_error(sums, 0.0, *facts[1:]) == 0


def test_a_records_tokens_share_its_weight():
    states = torch.arange(24, dtype=torch.float32).reshape(2, 3, 4)
    mask = torch.tensor([[1.0, 1, 1], [1, 1, 0]])
    flat = torch.cat([states.flatten(1), mask], dim=1).numpy()
    tags = torch.tensor([[0, IGNORED, 2], [1, IGNORED, IGNORED]])
    rows = rows_of(flat, tags, "tokens", ((3, 4), (3,)), 3)
    assert rows.weights.tolist() == [0.5, 0.5, 1.0]
    assert rows.targets.argmax(axis=1).tolist() == [0, 2, 1]
    assert np.array_equal(rows.features, states[[0, 0, 1], [0, 2, 0]])
    spans = rows_of(flat, torch.tensor([[1, 2], [0, 0]]), "spans", ((3, 4), (3,)), 2)
    assert spans.targets.tolist() == [[0, 0, 1], [1, 0, 1], [0, 1, 1], [1, 1, 1], [0, 0, 1]]
    seen = torch.cat([tags, torch.tensor([[1], [IGNORED]])], dim=1)  # one word was cut off
    assert rows_of(flat, seen, "tokens", ((3, 4), (3,)), 3).weights.tolist() == [0.5, 0.5, 1.0]
    lost = rows_of(flat, torch.tensor([[1, 2], [CUT_OFF, CUT_OFF]]), "spans", ((3, 4), (3,)), 2)
    assert np.array_equal(lost.targets, spans.targets)
    assert has_constant("spans")
    assert scored_targets("spans", 2) == 2

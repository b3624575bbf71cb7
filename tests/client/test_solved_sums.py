"""What units add to the statistics of heads that are solved: at most C, in any company, for records and patients."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from client.clipping import ClippedSum
from client.mechanism import clipped_sum
from client.node import Records
from client.patient_sums import patient_clipped_sum
from client.solved_sums import ROWS, solved_sum
from client.training import sampled_sum
from common.heads import build_head
from common.privacy.noise import SeededRandomness
from common.solved_heads import PARTS, SOLVED_HEADS, SolvedHead, triangle, unpacked
from common.tasks import classification_loss
from tests.federations import small_terms

CLASSES = 3
kinds, seeds = st.sampled_from(SOLVED_HEADS), st.integers(0, 2**32)
norms, scales = st.floats(1e-3, 1e3), st.sampled_from([0.0, 1e-6, 1.0, 1e8, 1e38])


def head(kind: str, width: int = 5) -> SolvedHead:
    found = build_head(kind, width, CLASSES)
    assert isinstance(found, SolvedHead)
    return found


def records(seed: int, count: int, scale: float, width: int = 5) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    features = (scale * torch.randn(count, width, generator=generator).clamp(-2, 2)).float()
    return features, torch.randint(0, CLASSES, (count,), generator=generator)


def distance(one: ClippedSum, other: ClippedSum) -> float:
    return math.sqrt(sum(float((one.values[name] - other.values[name]).square().sum()) for name in one.values))


@settings(max_examples=100, deadline=None)
@given(kinds, st.integers(1, 9), norms, scales, scales, seeds)
def test_one_record_more_moves_the_sum_by_at_most_the_norm(
    kind: str, count: int, norm: float, scale: float, strangers: float, seed: int
) -> None:
    features, targets = records(seed, count, scale)
    features[0] = records(seed + 1, 1, strangers)[0]
    more = clipped_sum(head(kind), classification_loss, features, targets, norm)
    less = clipped_sum(head(kind), classification_loss, features[1:], targets[1:], norm)
    assert distance(more, less) <= norm * (1 + 1e-12 * count)


@settings(max_examples=60, deadline=None)
@given(kinds, st.lists(st.integers(1, 12), min_size=1, max_size=6), norms, scales, seeds)
def test_one_patient_more_moves_the_sum_by_at_most_the_norm(
    kind: str, sizes: list[int], norm: float, scale: float, seed: int
) -> None:
    features, targets = records(seed, sum(sizes), scale)
    more = patient_clipped_sum(head(kind), classification_loss, features, targets, np.array(sizes), norm)
    rest, fewer = slice(sizes[0], None), np.array(sizes[1:], dtype=np.int64)
    less = patient_clipped_sum(head(kind), classification_loss, features[rest], targets[rest], fewer, norm)
    assert distance(more, less) <= norm * (1 + 1e-12 * sum(sizes))


@pytest.mark.parametrize("kind", SOLVED_HEADS)
def test_the_bound_is_reached_and_counting_records_for_a_patient_would_break_it(kind: str) -> None:
    features, targets = records(1, 1, 1e3)
    features, targets = features.repeat(4, 1), targets.repeat(4)
    nobody = solved_sum(head(kind), features[:0], targets[:0], 2.0)
    patient = solved_sum(head(kind), features, targets, 2.0, np.array([4]))
    four = solved_sum(head(kind), features, targets, 2.0)
    assert distance(patient, nobody) == pytest.approx(2.0)
    assert distance(four, nobody) == pytest.approx(8.0)


@pytest.mark.parametrize("kind", SOLVED_HEADS)
def test_a_patients_records_come_and_go_together(kind: str) -> None:
    features, targets = records(3, 30, 1.0)
    patients = np.arange(30) % 6
    terms = small_terms(unit="patient", records_per_unit=5, sampling_rate=1.0)

    def drawn(keep: np.ndarray) -> ClippedSum:
        rows = np.flatnonzero(keep)
        names = np.unique(patients[rows], return_inverse=True)[1].astype(np.int64)
        here = Records(features.numpy(), rows, targets[torch.from_numpy(rows)], names)
        return sampled_sum(head(kind), classification_loss, here, terms, SeededRandomness(0, "a", 1, "sampling"))

    assert 0.1 < distance(drawn(patients >= 0), drawn(patients != 2)) <= 1.0 + 1e-12


@pytest.mark.parametrize("kind", SOLVED_HEADS)
def test_records_that_are_not_finite_add_nothing_and_are_counted(kind: str) -> None:
    features, targets = records(5, 6, 1.0)
    expected = solved_sum(head(kind), features[2:], targets[2:], 1.0)
    features[0, 1], features[1] = math.nan, math.inf
    found = solved_sum(head(kind), features, targets, 1.0)
    assert found.non_finite == 2
    assert distance(found, expected) == 0


@settings(max_examples=30, deadline=None)
@given(kinds, st.integers(0, 9), norms, seeds)
def test_the_sum_is_what_the_page_says(kind: str, count: int, norm: float, seed: int) -> None:
    features, targets = records(seed, count, 1.0)
    first, second = PARTS[kind]
    found = solved_sum(head(kind), features, targets, norm)
    for name in found.values:
        total = torch.zeros(found.values[name].shape, dtype=torch.float64)
        for row, target in zip(features.double(), targets, strict=True):
            x = torch.cat([row, torch.ones(1)]) if kind == "ridge" else row
            u = x / max(norm, float(x.norm()))
            y = torch.eye(CLASSES, dtype=torch.float64)[target]
            if name == "products":
                total += first * (torch.outer(u, u)[tuple(triangle(len(u))[0])] * triangle(len(u))[1])
            elif name == "sums":
                total += (first if kind == "prototype" else second) * torch.outer(y, u)
            else:
                total += second * y
        torch.testing.assert_close(found.values[name], -norm * total, rtol=1e-9, atol=1e-9 * norm)


@pytest.mark.parametrize("kind", SOLVED_HEADS)
def test_many_records_are_added_part_by_part(kind: str) -> None:
    features, targets = records(8, 2 * ROWS + 3, 1.0)
    whole = solved_sum(head(kind), features, targets, 1.0)
    ones = solved_sum(head(kind), features, targets, 1.0, np.ones(len(targets), dtype=np.int64))
    assert distance(whole, ones) < 1e-9


def test_a_packed_matrix_keeps_its_norm_and_comes_back() -> None:
    matrix = torch.randn(6, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    matrix = matrix + matrix.T
    places, weights = triangle(6)
    packed = matrix[places[0], places[1]] * weights
    assert float(packed.norm()) == pytest.approx(float(matrix.norm()), rel=1e-14)
    torch.testing.assert_close(unpacked(packed), matrix)

"""The plan: what is refused, and that its digest stands for its content."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from common.errors import PrivacyError, ProtocolError
from common.privacy.plan import PrivacyPlan, PrivacyTerms

TERMS = PrivacyTerms("record", "local", 0.2, 30, 1, 1.0, 2.0, 1e-5)

terms = st.builds(
    PrivacyTerms,
    unit=st.just("record"),
    trust=st.just("local"),
    sampling_rate=st.floats(1e-6, 1.0),
    rounds=st.integers(1, 1000),
    steps_per_round=st.integers(1, 1000),
    clipping_norm=st.floats(1e-6, 1e6),
    noise_multiplier=st.floats(0.01, 1e4),
    delta=st.floats(1e-12, 1e-2),
)


@given(terms, st.integers(1, 100))
def test_a_plan_survives_json(offered: PrivacyTerms, size: int) -> None:
    plan = offered.for_node(size)
    again = PrivacyPlan.from_dict(json.loads(json.dumps(plan.to_dict())))
    assert again == plan
    assert again.digest == plan.digest


@given(terms, terms)
def test_two_terms_share_a_digest_only_if_equal(one: PrivacyTerms, other: PrivacyTerms) -> None:
    assert (one.digest == other.digest) == (one == other)


def test_the_digest_does_not_depend_on_how_a_number_is_written() -> None:
    assert PrivacyTerms.from_dict({**TERMS.to_dict(), "clipping_norm": 1, "rounds": 30.0}).digest == TERMS.digest


def test_patients_have_a_number_of_records_and_records_have_none() -> None:
    patients = replace(TERMS, unit="patient", records_per_unit=5)
    assert PrivacyTerms.from_dict(patients.to_dict()) == patients
    assert patients.to_dict()["records_per_unit"] == 5
    assert "records_per_unit" not in TERMS.to_dict()  # ledgers of records stay readable
    with pytest.raises(ProtocolError, match="records_per_unit"):
        PrivacyTerms.from_dict({**TERMS.to_dict(), "unit": "patient"})
    with pytest.raises(ProtocolError, match="records_per_unit"):
        PrivacyTerms.from_dict({**TERMS.to_dict(), "records_per_unit": 5})


def test_the_declared_size_is_part_of_the_plans_digest() -> None:
    assert TERMS.for_node(100).digest != TERMS.for_node(101).digest


def test_the_divisor_is_a_public_constant() -> None:
    assert TERMS.for_node(140).expected_batch == pytest.approx(28.0)
    assert TERMS.steps == 30


@pytest.mark.parametrize(
    "change",
    [
        {"unit": "person"},
        {"records_per_unit": 2},
        {"unit": "patient", "records_per_unit": 0},
        {"trust": "secagg"},
        {"relation": "replace-one"},
        {"sampling_rate": 0.0},
        {"sampling_rate": 1.01},
        {"sampling_rate": float("nan")},
        {"noise_multiplier": 0.0},
        {"noise_multiplier": -1.0},
        {"noise_multiplier": float("inf")},
        {"clipping_norm": 0.0},
        {"delta": 0.0},
        {"delta": 1.0},
        {"rounds": 0},
        {"steps_per_round": 0},
        {"rounds": 10**9},
    ],
)
def test_terms_that_promise_nothing_are_refused(change: dict[str, Any]) -> None:
    with pytest.raises(PrivacyError, match=next(iter(change))):
        replace(TERMS, **change)


@pytest.mark.parametrize(
    "change",
    [{"surprise": 1}, {"rounds": "30"}, {"rounds": 1.5}, {"rounds": True}, {"delta": None}, {"rounds": float("nan")}],
)
def test_terms_of_the_wrong_shape_are_a_protocol_error(change: dict[str, Any]) -> None:
    with pytest.raises(ProtocolError):
        PrivacyTerms.from_dict({**TERMS.to_dict(), **change})


def test_a_missing_key_is_a_protocol_error() -> None:
    values = TERMS.to_dict()
    del values["delta"]
    with pytest.raises(ProtocolError, match="delta"):
        PrivacyTerms.from_dict(values)
    with pytest.raises(ProtocolError):
        PrivacyPlan.from_dict({"terms": 3, "declared_size": 1})


def test_delta_may_be_one_over_the_declared_size_and_no_more() -> None:
    assert replace(TERMS, delta=1 / 300).for_node(300).declared_size == 300
    with pytest.raises(PrivacyError, match="1/301"):
        replace(TERMS, delta=1 / 300).for_node(301)
    with pytest.raises(PrivacyError, match="declared size"):
        TERMS.for_node(0)

"""What the benchmark of a round's cost times is there, by the names that it knows."""

from __future__ import annotations

import pytest

from simulations.benchmarks.round_costs import STAGES


@pytest.mark.parametrize(("stage", "owner", "names"), STAGES)
def test_every_stage_is_found_by_its_name(stage: str, owner: object, names: tuple[str, ...]) -> None:
    assert [name for name in names if not callable(getattr(owner, name, None))] == [], stage

"""What a run began with, and goes on with."""

from __future__ import annotations

from pathlib import Path

import pytest

from common.errors import ConfigError
from server.run_folder import check_inputs, run_identity

BEGAN = {"the records": "a", "the backbone": "b", "the precision": "float32"}


def test_what_a_run_began_with_is_kept_beside_its_identity(tmp_path: Path) -> None:
    check_inputs(tmp_path, BEGAN)
    name = run_identity(tmp_path)
    check_inputs(tmp_path, BEGAN)
    assert run_identity(tmp_path) == name


@pytest.mark.parametrize("changed", BEGAN)
def test_what_has_changed_is_named(tmp_path: Path, changed: str) -> None:
    check_inputs(tmp_path, BEGAN)
    with pytest.raises(ConfigError, match=f"expected {changed} to be what the run in"):
        check_inputs(tmp_path, {**BEGAN, changed: "other"})
    check_inputs(tmp_path, BEGAN)

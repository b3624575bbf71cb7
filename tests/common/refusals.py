"""The one sentence with which a data source is refused."""

from __future__ import annotations

from pathlib import Path

import pytest

from common.data import load_source
from common.errors import ConfigError


def refusal(source: Path, **keys: str) -> str:
    with pytest.raises(ConfigError) as caught:
        load_source(str(source), keys)
    assert "\n" not in str(caught.value)
    return str(caught.value)

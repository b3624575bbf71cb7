"""Real medical images, where they are at hand."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from common.data import hold_out, load_source


@pytest.fixture
def real_data(pytestconfig: pytest.Config) -> Path:
    folder = pytestconfig.rootpath / "../shared/data"
    if not folder.is_dir():
        pytest.skip("the real data sets in ../shared/data are not on this machine")
    return folder


def test_pneumoniamnist_is_read_as_it_is(real_data: Path) -> None:
    data = load_source("image-pneumoniamnist/pneumoniamnist.npz", root=real_data)
    train, test = hold_out(data, 0.2, seed=0)
    assert data.classes == ("0", "1")
    assert np.asarray(data.inputs).shape == (5856, 28, 28)
    assert np.bincount(data.labels[train]).tolist() == [1214 + 135, 3494 + 389]
    assert np.bincount(data.labels[test]).tolist() == [234, 390]


def test_mednist_is_read_as_it_is(real_data: Path) -> None:
    data = load_source("image-mednist-subset/mednist_subset.npz", root=real_data)
    train, test = hold_out(data, 0.2, seed=0)
    assert data.classes == ("AbdomenCT", "BreastMRI", "CXR", "ChestCT", "Hand", "HeadCT")
    assert np.bincount(data.labels[train]).tolist() == [600] * 6
    assert np.bincount(data.labels[test]).tolist() == [200] * 6


@pytest.mark.parametrize("site", ["mnist", "usps", "optdigits"])
def test_one_site_of_many_is_read_by_a_table(real_data: Path, site: str) -> None:
    keys = {"images": f"{site}_x", "labels": f"{site}_y"}
    assert load_source("image-digits-multisite/digits.npz", keys, real_data).classes == tuple("0123456789")

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


def test_three_sites_of_digits_in_three_sizes(real_data: Path) -> None:
    data = load_source("image-digits-multisite/digits.npz", {"images": "*_x", "labels": "*_y"}, real_data)
    assert data.site is not None
    assert dict(zip(*np.unique(data.site, return_counts=True), strict=True)) == {
        "mnist": 10_000,
        "optdigits": 1797,
        "usps": 9298,
    }
    assert {image.shape for image in data.inputs} == {(28, 28), (16, 16), (8, 8)}


def test_spoken_digits_by_speaker(real_data: Path) -> None:
    data = load_source("audio-fsdd/fsdd.npz", {"label": "label", "site": "speaker"}, real_data)
    assert (data.modality, data.task, len(data)) == ("audio", "classification", 3000)
    assert data.site is not None
    assert np.unique(data.site, return_counts=True)[1].tolist() == [500] * 6
    assert np.bincount(data.labels).tolist() == [300] * 10
    assert {clip.rate for clip in data.inputs} == {8000}


def test_four_hospitals_heart_disease(real_data: Path) -> None:
    data = load_source("tabular-heart-disease", {"label": "target", "threshold": "0"}, real_data)
    assert data.site is not None
    shares = {str(site): data.labels[data.site == site].mean() for site in np.unique(data.site)}
    assert {site: round(100 * share) for site, share in shares.items()} == {
        "cleveland": 46,
        "hungarian": 36,
        "switzerland": 93,
        "va": 74,
    }
    assert data.inputs.shape == (920, 13)
    assert np.isnan(data.inputs[:, data.columns.index("ca")]).sum() > 600


@pytest.mark.parametrize(("name", "sizes"), [("ner-ncbi-disease", (6347, 940)), ("ner-wnut17", (4403, 1287))])
def test_tagged_words(real_data: Path, name: str, sizes: tuple[int, int]) -> None:
    data = load_source(name, root=real_data)
    train, test = hold_out(data, 0.2, seed=0)
    assert (data.modality, data.task, (len(train), len(test))) == ("words", "tokens", sizes)


def test_abstracts_messages_and_questions(real_data: Path) -> None:
    abstracts = load_source("text-medical-abstracts", root=real_data)
    messages = load_source("text-sms-spam", root=real_data)
    questions = load_source("qa-pubmedqa", root=real_data)
    assert [len(part) for part in hold_out(abstracts, 0.2, seed=0)] == [2021, 867]
    assert (len(messages), messages.classes, messages.split) == (5574, ("ham", "spam"), None)
    assert (questions.modality, np.bincount(questions.labels).tolist()) == ("pair", [110, 338, 552])


def test_an_article_is_never_in_both_train_and_test(real_data: Path) -> None:
    data = load_source("qa-xquad-en", root=real_data)
    train, test = hold_out(data, 0.2, seed=0)
    assert data.group is not None
    assert len(np.unique(data.group)) == 48
    assert not set(data.group[train]) & set(data.group[test])
    assert abs(len(test) - 238) < 10
    starts, ends = data.labels.T
    assert all(pair.context[start:end].strip() for pair, start, end in zip(data.inputs, starts, ends, strict=True))

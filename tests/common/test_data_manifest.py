from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from common.data import LocalData, hold_out, load_source
from common.data.decoding import Unreadable
from tests.common.refusals import refusal

GREY = np.arange(48, dtype=np.uint8).reshape(6, 8)


def manifest(folder: Path, text: str, images: str = "abcd") -> Path:
    """Write images/a.png and so on, and a list of them."""
    (folder / "images").mkdir(exist_ok=True)
    for index, name in enumerate(images):
        Image.fromarray(GREY + index).save(folder / "images" / f"{name}.png")
    (folder / "list.csv").write_text(text)
    return folder / "list.csv"


def load(path: Path, **keys: str) -> LocalData:
    return load_source(str(path), keys)


def test_files_are_found_from_the_manifest(tmp_path: Path) -> None:
    text = "path,label,patient,site,split\nimages/b.png,sick,p,x,train\nimages/a.png,well,q,y,test\n"
    data = load(manifest(tmp_path, text))
    assert (data.modality, data.classes, data.labels.tolist()) == ("image", ("sick", "well"), [0, 1])
    assert np.array_equal(np.asarray(data.inputs), [GREY + 1, GREY])
    assert data.patient is not None
    assert data.site is not None
    assert data.split is not None
    assert (data.patient.tolist(), data.site.tolist(), data.split.tolist()) == (
        ["p", "q"],
        ["x", "y"],
        ["train", "test"],
    )


def test_several_labels_with_bars(tmp_path: Path) -> None:
    text = "path,labels\nimages/a.png,edema|mass\nimages/b.png,\nimages/c.png,mass\n"
    data = load(manifest(tmp_path, text))
    assert (data.task, data.classes) == ("multilabel", ("edema", "mass"))
    assert data.labels.tolist() == [[1, 1], [0, 0], [0, 1]]


def test_several_labels_in_columns(tmp_path: Path) -> None:
    text = "path,mass,edema\nimages/a.png,0,1\nimages/b.png,1,1\n"
    data = load(manifest(tmp_path, text), labels="edema,mass")
    assert (data.task, data.classes, data.labels.tolist()) == ("multilabel", ("edema", "mass"), [[1, 0], [1, 1]])


def test_a_parquet_manifest(tmp_path: Path) -> None:
    pyarrow = pytest.importorskip("pyarrow", reason="the optional package pyarrow is not installed")
    from pyarrow import parquet

    manifest(tmp_path, "")
    rows = [{"path": f"images/{name}.png", "label": index % 2} for index, name in enumerate("abcd")]
    parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "list.parquet")
    assert load(tmp_path / "list.parquet").labels.tolist() == [0, 1, 0, 1]


def test_a_patient_is_never_in_both_parts(tmp_path: Path) -> None:
    names = "abcdefghijklmnopqrst"
    rows = "".join(f"images/{name}.png,{index % 2},{index // 2}\n" for index, name in enumerate(names))
    data = load(manifest(tmp_path, "path,label,patient\n" + rows, names))
    train, test = hold_out(data, 0.2, seed=0)
    assert data.patient is not None
    assert not set(data.patient[train]) & set(data.patient[test])


def test_unreadable_files_can_be_left_out_and_listed(tmp_path: Path) -> None:
    text = "path,label,patient\nimages/a.png,0,p\nimages/b.png,0,q\nimages/c.png,1,r\nimages/none.png,1,s\n"
    path = manifest(tmp_path, text)
    (tmp_path / "images" / "b.png").write_text("no image")
    found: list[Unreadable] = []
    data = load_source(str(path), unreadable=found)
    assert [item.path.name for item in found] == ["b.png", "none.png"]
    assert data.patient is not None
    assert (data.labels.tolist(), data.patient.tolist()) == ([0, 1], ["p", "r"])


@pytest.mark.parametrize(
    ("text", "keys", "why"),
    [
        ("path\nimages/a.png\n", {}, "expected a column 'label'"),
        ("path,label\n,0\nimages/b.png,1\n", {}, "path must be text that is not empty"),
        ("path,label\nimages/a.png,0\nimages/../images/a.png,1\n", {}, "list each file once, got 1 files several"),
        ("path,label\nimages/a.png,0\nimages/x.png,1\n", {}, "1 of 2 images cannot be read"),
        ("path,label\nlist.csv,0\nimages/a.png,1\n", {}, "PNG, JPEG, BMP, TIFF or DICOM images or WAV sounds"),
        ("path,label,PatientID\nimages/a.png,0,1\nimages/b.png,1,2\n", {}, 'patient = "PatientID"'),
        ("path,label\nimages/a.png,0\nimages/b.png,1\n", {"patient": "who"}, "expected a column 'who' as patient"),
        ("path,mass,edema\nimages/a.png,0,2\n", {"labels": "mass,edema"}, "edema must be 0 or 1"),
        ("path,mass,edema\nimages/a.png,0,1\n", {"labels": "mass,oedema"}, "expected a column 'oedema'"),
        ("path,mass,edema\nimages/a.png,0,1\n", {"labels": "mass,edema"}, "class with no example"),
    ],
)
def test_refused(tmp_path: Path, text: str, keys: dict[str, str], why: str) -> None:
    assert why in refusal(manifest(tmp_path, text), **keys)

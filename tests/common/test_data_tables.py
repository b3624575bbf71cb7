from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from common.data import LocalData, load_source
from tests.common.refusals import refusal

CSV = "age,chol,sex,target\n63,233,male,0\n41,,female,2\n55,NA,male,1\n"
CODES = {"label": "target", "codes": "sex=female,male"}


def written(path: Path, text: str = CSV) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


def load(path: Path, **keys: str) -> LocalData:
    return load_source(str(path), keys)


def test_columns_are_numbers_and_empty_ones_are_missing(tmp_path: Path) -> None:
    data = load(written(tmp_path / "a.csv"), **CODES)
    assert (data.modality, data.task, data.columns) == ("table", "classification", ("age", "chol", "sex"))
    assert np.array_equal(data.inputs, np.array([[63, 233, 1], [41, np.nan, 0], [55, np.nan, 1]]), equal_nan=True)
    assert (data.classes, data.labels.tolist()) == (("0", "1", "2"), [0, 2, 1])


def test_a_threshold_makes_two_classes(tmp_path: Path) -> None:
    data = load(written(tmp_path / "a.csv"), **CODES, threshold="0")
    assert (data.classes, data.labels.tolist()) == (("target <= 0", "target > 0"), [0, 1, 1])


def test_columns_may_be_chosen(tmp_path: Path) -> None:
    data = load(written(tmp_path / "a.csv"), label="target", columns="chol, age")
    assert data.columns == ("chol", "age")
    assert np.array_equal(data.inputs[0], [233, 63])


def test_a_file_is_a_hospital_and_the_order_of_its_columns_does_not_matter(tmp_path: Path) -> None:
    written(tmp_path / "north.csv", "age,chol,target\n63,233,0\n41,200,1\n")
    written(tmp_path / "south.csv", "target,chol,age\n1.0,100,20\n")
    data = load(tmp_path, label="target")
    assert data.site is not None
    assert data.site.tolist() == ["north", "north", "south"]
    assert data.columns == ("age", "chol")
    assert data.inputs.tolist() == [[63, 233], [41, 200], [20, 100]]
    assert data.labels.tolist() == [0, 1, 1]


def test_origins_are_not_features(tmp_path: Path) -> None:
    text = "age,who,ward,label\n63,7,x,0\n41,8,y,1\n"
    data = load(written(tmp_path / "a.csv", text), patient="who", site="ward")
    assert data.columns == ("age",)
    assert data.patient is not None
    assert data.patient.tolist() == ["7", "8"]


@pytest.mark.parametrize(
    ("text", "keys", "why"),
    [
        (CSV, {}, "expected a column 'label' as label, but there are age, chol, sex, target"),
        (CSV, {"label": "target"}, 'codes = "sex=first,second"'),
        (CSV, {**CODES, "codes": "sex=f,m"}, "sex must be one of f, m, got something else or nothing in 3 of 3"),
        (CSV, {**CODES, "codes": "gender=f,m"}, "codes must name columns in use (age, chol, sex), got 'gender'"),
        (CSV, {**CODES, "codes": "sex"}, "codes must be like"),
        (CSV, {**CODES, "columns": "age,weight"}, "got weight; the table has age, chol, sex, target"),
        (CSV, {**CODES, "columns": "age,age"}, "each once"),
        (CSV, {**CODES, "threshold": "high"}, "threshold must be a number"),
        (CSV, {**CODES, "label": "sex", "threshold": "1"}, "to compare with threshold"),
        ("age,label\n63,0\n41,\n", {}, "nothing in 1 of 2 records"),
        ("age,label\n1_0,0\n41,1\n", {}, "age must be numbers"),
        ("age,label\ninf,0\n41,1\n", {}, "age must be numbers"),
        ('age;label\n"6,3";0\n4;1\n', {}, "with a point"),
        ("age,label\n63,0\n41,0\n", {}, "at least two classes"),
        ("label\n0\n1\n", {}, "columns beside the label"),
        ("subject_id,age,label\n1,2,0\n2,2,1\n", {}, 'patient = "subject_id"'),
        ("age,label\n" + "".join(f"1,{number}.5\n" for number in range(101)), {}, "at most 100 classes"),
    ],
)
def test_refused(tmp_path: Path, text: str, keys: dict[str, str], why: str) -> None:
    assert why in refusal(written(tmp_path / "a.csv", text), **keys)


def test_hospitals_with_other_columns_are_refused(tmp_path: Path) -> None:
    written(tmp_path / "north.csv", "age,chol,target\n63,233,0\n41,200,1\n")
    written(tmp_path / "south.csv", "age,target\n20,1\n")
    message = refusal(tmp_path, label="target")
    assert "chol" in message
    assert "add it there, empty" in message

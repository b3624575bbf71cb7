"""Tables become numbers by public constants alone."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from sklearn.linear_model import LogisticRegression
from torch import Tensor

from common.backbones import tabular
from common.backbones.backbone import Backbone
from common.data.local import LocalData
from common.errors import ConfigError
from common.grafting import Trunk, layout

NAN = float("nan")
TOML = """
[columns.age]
low = 20
high = 90

[columns.cp]
values = [1, 2, 3, 4]
"""
numbers = st.floats(allow_infinity=False, width=64)
tables = arrays.arrays(np.float64, st.tuples(st.integers(1, 5), st.just(3)), elements=numbers)


@pytest.fixture
def declared(tmp_path: Path) -> Backbone:
    (tmp_path / "columns.toml").write_text(TOML)
    return tabular.load(f"tabular/{tmp_path / 'columns.toml'}")


def rows(*values: tuple[float, ...]) -> np.ndarray:
    return np.array(values, np.float64)


def through(backbone: Backbone, table: np.ndarray, cut: str | None = None) -> Tensor:
    found: Tensor = Trunk(backbone, cut)(backbone.preprocessing(table))
    return found


def test_declared_columns_are_scaled_clipped_and_one_hot(declared: Backbone) -> None:
    found = through(declared, rows((20, 1), (90, 4), (55, 9), (500, NAN), (NAN, 2)), "columns")
    assert found.tolist() == [
        [-1, 0, 1, 0, 0, 0, 0],
        [1, 0, 0, 0, 0, 1, 0],
        [0, 0, 0, 0, 0, 0, 0],
        [1, 0, 0, 0, 0, 0, 1],
        [0, 1, 0, 1, 0, 0, 0],
    ]


def test_crosses_are_the_products_of_every_two(declared: Backbone) -> None:
    table = rows((37, 3), (NAN, 2))
    columns, crosses = through(declared, table, "columns"), through(declared, table)
    products = [columns[:, i] * columns[:, j] for i in range(7) for j in range(i + 1, 7)]
    assert torch.equal(crosses, torch.cat([columns, torch.stack(products, dim=1)], dim=1))
    assert layout(Trunk(declared), declared.preprocessing) == ((28,),)


def test_many_columns_have_no_crosses(tmp_path: Path) -> None:
    path = tmp_path / "wide.toml"
    path.write_text("".join(f"[columns.c{number}]\nlow = 0\nhigh = 1\n" for number in range(33)))
    assert list(tabular.load(f"tabular/{path}").stages) == ["columns"]


@given(table=tables)
@settings(max_examples=100, deadline=None)
def test_identity_is_finite_and_bounded_whatever_comes(table: np.ndarray) -> None:
    backbone = tabular.load("tabular/identity:3")
    columns, waves = through(backbone, table, "columns"), through(backbone, table)
    assert columns.shape == (len(table), 6)
    assert waves.shape == (len(table), 15)
    assert bool(torch.isfinite(columns).all())
    assert float(waves.abs().max()) <= 1
    missing = torch.from_numpy(np.isnan(table)).float()
    assert torch.equal(columns[:, 3:], missing)
    assert torch.equal(waves[:, :3], missing)
    np.testing.assert_allclose(columns[:, :3].numpy(), np.arcsinh(np.nan_to_num(table)), rtol=1e-6, atol=1e-30)


@given(table=tables)
@settings(max_examples=50, deadline=None)
def test_rows_depend_on_their_record_alone(table: np.ndarray) -> None:
    backbone = tabular.load("tabular/identity:3")
    together = backbone.preprocessing(table)
    assert isinstance(together, Tensor)
    alone = [backbone.preprocessing(table[row : row + 1]) for row in range(len(table))]
    assert torch.equal(together, torch.cat([part for part in alone if isinstance(part, Tensor)]))


def test_identity_learns_its_width_from_the_data() -> None:
    backbone = tabular.load("tabular/identity")
    with pytest.raises(ConfigError, match="tabular/identity:13"):
        layout(Trunk(backbone), backbone.preprocessing)
    fitted = tabular.for_columns(backbone, ("age", "cp"))
    assert fitted.name == "tabular/identity:2"
    assert fitted.digest == tabular.load("tabular/identity:2").digest != backbone.digest
    assert layout(Trunk(fitted), fitted.preprocessing) == ((10,),)
    with pytest.raises(ConfigError, match="takes 2 columns, the table has 3"):
        fitted.preprocessing(np.zeros((1, 3)))
    with pytest.raises(ConfigError, match="takes 2 columns, the table has 3"):
        tabular.for_columns(fitted, ("a", "b", "c"))


@pytest.mark.parametrize(
    ("columns", "expected"),
    [
        (("age", "chest"), "expects a column 'cp' that the data lack; add it"),
        (("ages", "cp"), "expects a column 'age' that the data lack; is it 'ages'"),
        (("age", "cp", "sex"), "a column 'sex' that the backbone's file does not declare"),
        (("cp", "age"), "in the order age, cp"),
    ],
)
def test_other_columns_are_refused(declared: Backbone, columns: tuple[str, ...], expected: str) -> None:
    with pytest.raises(ConfigError, match=expected):
        tabular.for_columns(declared, columns)


def test_the_same_columns_change_nothing(declared: Backbone) -> None:
    assert tabular.for_columns(declared, ["age", "cp"]) is declared


def test_a_table_of_another_width_is_refused(declared: Backbone) -> None:
    with pytest.raises(ConfigError, match="takes 2 columns, the table has 1"):
        declared.preprocessing(np.zeros((1, 1)))


BROKEN = {
    "no TOML": "[columns",
    "no columns": "[column.age]\nlow = 1\nhigh = 2",
    "more than columns": "x = 1\n[columns.age]\nlow = 1\nhigh = 2",
    "no table": "[columns]\nage = 3",
    "empty table": "[columns.age]",
    "half a range": "[columns.age]\nlow = 1",
    "range and values": "[columns.age]\nlow = 1\nhigh = 2\nvalues = [1]",
    "range upside down": "[columns.age]\nlow = 2\nhigh = 2",
    "text": "[columns.age]\nlow = '1'\nhigh = 2",
    "truth": "[columns.age]\nvalues = [true]",
    "not finite": "[columns.age]\nlow = nan\nhigh = 2",
    "no values": "[columns.age]\nvalues = []",
    "a value twice": "[columns.age]\nvalues = [1, 1.0]",
}


@pytest.mark.parametrize("broken", BROKEN)
def test_a_malformed_file_is_one_sentence(broken: str, tmp_path: Path) -> None:
    path = tmp_path / "columns.toml"
    path.write_text(BROKEN[broken])
    with pytest.raises(ConfigError, match=r"columns\.toml") as caught:
        tabular.load(f"tabular/{path}")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("content", [None, b"\xff\xfe"])
def test_a_file_that_cannot_be_read_is_one_sentence(content: bytes | None, tmp_path: Path) -> None:
    path = tmp_path / "columns.toml"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ConfigError, match=r"cannot be read|is not TOML"):
        tabular.load(f"tabular/{path}")


def test_the_digest_covers_the_constants(declared: Backbone, tmp_path: Path) -> None:
    (tmp_path / "columns.toml").write_text(TOML.replace("90", "91"))
    assert tabular.load(f"tabular/{tmp_path / 'columns.toml'}").digest != declared.digest
    assert tabular.load("tabular/identity:2@random-3").digest == tabular.load("tabular/identity:2").digest


HEART = {
    "age": (20, 90),
    "sex": [0, 1],
    "cp": [1, 2, 3, 4],
    "trestbps": (80, 200),
    "chol": (100, 400),
    "fbs": [0, 1],
    "restecg": [0, 1, 2],
    "thalach": (60, 210),
    "exang": [0, 1],
    "oldpeak": (-2, 6),
    "slope": [1, 2, 3],
    "ca": [0, 1, 2, 3],
    "thal": [3, 6, 7],
}


def heart_disease(folder: Path) -> LocalData:
    if not folder.is_dir():
        pytest.skip("the real data sets in ../shared/data are not on this machine")
    tables = [path.read_text(encoding="utf-8").splitlines() for path in sorted(folder.glob("*.csv"))]
    records = [row for table in tables for row in csv.DictReader(table)]
    return LocalData(
        inputs=np.array([[float(row[name] or "nan") for name in HEART] for row in records]),
        labels=np.array([int(float(row["target"]) > 0) for row in records]),
        classes=("none", "disease"),
        modality="table",
        columns=tuple(HEART),
    )


def test_heart_disease_is_told_from_tables(tmp_path: Path, pytestconfig: pytest.Config) -> None:
    data = heart_disease(pytestconfig.rootpath / "../shared/data/tabular-heart-disease")
    lines = []
    for name, known in HEART.items():
        low_high = f"low = {known[0]}\nhigh = {known[1]}" if isinstance(known, tuple) else f"values = {known}"
        lines.append(f"[columns.{name}]\n{low_high}\n")
    (tmp_path / "heart.toml").write_text("".join(lines))
    train = np.random.default_rng(0).random(len(data)) < 0.8
    for reference in (f"tabular/{tmp_path / 'heart.toml'}", "tabular/identity"):
        backbone = tabular.for_columns(tabular.load(reference), data.columns)
        features = through(backbone, data.inputs).numpy()
        probe = LogisticRegression(C=0.1, max_iter=5000).fit(features[train], data.labels[train])
        assert probe.score(features[~train], data.labels[~train]) > 0.78

"""What ``fedgraft data check`` finds, and says."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import fedgraft
from common.data.inspection import Inspection, inspect_source
from common.errors import ConfigError

RNG = np.random.default_rng(0)


def csv(path: Path, header: str, rows: list[str]) -> Path:
    path.write_text("\n".join([header, *rows]) + "\n")
    return path


def texts(path: Path, count: int = 40, extra: str = "", more: list[str] | None = None) -> Path:
    """A table of texts, half of each class, with further columns the same for all."""
    header = "text,label" + "".join(f",{part.split('=')[0]}" for part in extra.split() if part)
    tail = "".join(f",{part.split('=')[1]}" for part in extra.split() if part)
    return csv(path, header, [f"text {index},{'ab'[index % 2]}{tail}" for index in range(count)] + (more or []))


def said(found: Inspection, level: str) -> list[str]:
    return [finding.text for finding in found.findings if finding.level == level]


def test_a_clean_data_set(tmp_path: Path) -> None:
    found = inspect_source(str(texts(tmp_path / "a.csv")))
    assert (found.modality, found.task, found.records) == ("text", "classification", 40)
    assert found.classes == {"a": 20, "b": 20}
    assert found.measures == {"text length": "2 words"}
    assert said(found, "error") == said(found, "warning") == []
    assert found.fit
    assert "2.5e-02 with all of them at one node (40)" in said(found, "note")[0]
    assert "no patient column" in said(found, "note")[1]


def test_every_unreadable_file_is_listed_and_the_rest_is_counted(tmp_path: Path) -> None:
    for index in range(30):
        path = tmp_path / "ab"[index % 2] / f"{index}.png"
        path.parent.mkdir(exist_ok=True)
        Image.fromarray(RNG.integers(0, 255, (4, 4), dtype=np.uint8)).save(path)
    (tmp_path / "a" / "0.png").write_text("no image")
    (tmp_path / "b" / "1.png").write_bytes(b"")
    found = inspect_source(str(tmp_path))
    assert [item.path.name for item in found.unreadable] == ["0.png", "1.png"]
    assert (found.records, found.classes, found.fit) == (28, {"a": 14, "b": 14}, False)
    assert said(found, "error") == ["2 files cannot be read (listed above); repair or remove them"]
    assert (found.measures["height"], found.measures["colours"]) == ("4 px", "28 grey")


def test_where_the_unreadable_files_are_all_of_a_class(tmp_path: Path) -> None:
    for name in "ab":
        (tmp_path / name).mkdir()
        Image.fromarray(RNG.integers(0, 255, (4, 4), dtype=np.uint8)).save(tmp_path / name / "1.png")
    (tmp_path / "a" / "1.png").write_text("no image")
    found = inspect_source(str(tmp_path))
    assert len(found.unreadable) == 1
    assert "class with no example" in said(found, "error")[1]
    (tmp_path / "b" / "1.png").write_text("no image")
    assert len(inspect_source(str(tmp_path)).unreadable) == 2


def test_repetitions_across_the_split_and_with_other_labels(tmp_path: Path) -> None:
    rows = ["text 0,a,test", "text 1,a,test", "text 2,a,train", "new,a,test", "newer,b,test"]
    found = inspect_source(str(texts(tmp_path / "a.csv", extra="split=train", more=rows)))
    assert (found.doubles.records, found.doubles.across_splits, found.doubles.other_labels) == (3, 2, 1)
    assert found.splits == {"test": 4, "train": 41}
    assert said(found, "warning")[0].startswith("2 test records also in train")
    assert said(found, "warning")[1].startswith("1 record there before with another label")
    assert said(found, "warning")[2].startswith("3 repetitions of a record")
    assert found.fit


def test_a_patient_in_both_parts_would_be_refused(tmp_path: Path) -> None:
    rows = [f"t{index},{'ab'[index % 2]},p{index // 2},{'train' if index else 'test'}" for index in range(40)]
    found = inspect_source(str(csv(tmp_path / "a.csv", "text,label,patient,split", rows)))
    assert found.patients == {"count": 20, "most_records": 2}
    assert "a patient must be either in train or in test, but 1 are in both" in said(found, "error")[0]


def test_classes_too_small_and_missing_at_a_site(tmp_path: Path) -> None:
    rows = [f"n{index},{'ab'[index % 2]},north" for index in range(30)] + [f"s{index},a,south" for index in range(30)]
    rows += [f"r{index},rare,north" for index in range(3)]
    found = inspect_source(str(csv(tmp_path / "a.csv", "text,label,site", rows)))
    assert found.sites == {"north": {"a": 15, "b": 15, "rare": 3}, "south": {"a": 30, "b": 0, "rare": 0}}
    warnings = " ".join(said(found, "warning"))
    assert "fewer than 10 examples of rare (3)" in warnings
    assert "site south has no example of b, rare" in warnings
    assert "for the largest site (33)" in said(found, "note")[0]


def test_a_test_without_some_class(tmp_path: Path) -> None:
    found = inspect_source(str(texts(tmp_path / "a.csv", extra="split=train", more=["new,a,test"])))
    assert said(found, "warning") == ["no test record of b: how well it is told cannot be measured"]


def test_a_patient_at_two_sites(tmp_path: Path) -> None:
    rows = [f"t{index},{'ab'[index % 2]},{index % 20},{'north' if index < 20 else 'south'}" for index in range(40)]
    found = inspect_source(str(csv(tmp_path / "a.csv", "text,label,patient,site", rows)))
    assert any(
        '20 patients at several sites: data.partition = "site" would be refused' in text
        for text in said(found, "warning")
    )


def test_a_table_says_what_is_missing(tmp_path: Path) -> None:
    for site in ("north", "south"):
        rows = [f"{index},{'' if site == 'south' else index},,3,{index % 2}" for index in range(20)]
        csv(tmp_path / f"{site}.csv", "age,chol,thal,unit,label", rows)
    found = inspect_source(str(tmp_path))
    assert found.measures["missing in chol"] == "20 of 40 (all of south)"
    warnings = " ".join(said(found, "warning"))
    assert "no value at all in thal" in warnings
    assert "the same value throughout in unit" in warnings


def test_tags_that_begin_in_the_middle(tmp_path: Path) -> None:
    lines = "a\tI-X\nb\tI-X\n\nc\tB-X\nd\tI-X\n\ne\tB-Y\nf\tI-X\n\ng\tO\nh\tI-Y\n\n"
    (tmp_path / "a.conll").write_text(lines * 10)
    found = inspect_source(str(tmp_path / "a.conll"))
    assert found.classes == {"B-X": 10, "B-Y": 10, "I-X": 40, "I-Y": 10, "O": 10}
    assert any(text.startswith("30 tags I-…") for text in said(found, "warning"))


@pytest.mark.parametrize("name", ["nowhere", "nowhere.csv"])
def test_nothing_there(name: str) -> None:
    with pytest.raises(ConfigError, match="nothing at"):
        inspect_source(name)


class TestCommand:
    def run(self, capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str]:
        status = fedgraft.main(["data", "check", *arguments])
        return status, capsys.readouterr().out

    def test_tables_for_people(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        status, out = self.run(capsys, str(texts(tmp_path / "a.csv", extra="site=north")))
        assert status == 0
        assert "records      40 (text, classification)" in out
        assert "north" in out
        assert out.rstrip().endswith("a run would start")

    def test_a_run_that_would_be_refused_ends_with_status_2(
        self, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        path = texts(tmp_path / "a.csv", extra="patient=p split=train", more=["new,a,p,test"])
        status, out = self.run(capsys, str(path))
        assert status == 2
        assert "error: a patient must be either in train or in test" in out
        assert out.rstrip().endswith("a run would be refused")

    def test_json_for_scripts(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        (tmp_path / "list.csv").write_text("file,label\na.png,0\nb.png,1\n")
        Image.fromarray(np.zeros((4, 4), np.uint8)).save(tmp_path / "a.png")
        status, out = self.run(capsys, str(tmp_path / "list.csv"), "--key", "path=file", "--json")
        found: dict[str, Any] = json.loads(out)
        assert (status, found["fit"]) == (2, False)
        assert found["unreadable"][0]["file"].endswith("b.png")
        assert {finding["level"] for finding in found["findings"]} == {"error"}

    def test_a_source_that_cannot_be_read_at_all(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        (tmp_path / "a.csv").write_text("text\nx\n")
        status, out = self.run(capsys, str(tmp_path / "a.csv"), "--json")
        assert (status, json.loads(out)["error"]["kind"]) == (2, "ConfigError")

    def test_brackets_in_names_are_not_markup(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        rows = [f"text {index},[{'ab'[index % 2]}/]" for index in range(20)]
        status, out = self.run(capsys, str(csv(tmp_path / "a.csv", "text,label", rows)))
        assert status == 0
        assert "[a/]" in out

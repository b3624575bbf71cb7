from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from common.data.inputs import read_inputs
from common.data.records import Modality, Pair
from common.errors import ConfigError
from tests.common.record_files import TONE, dicom, wav

GREY = np.arange(48, dtype=np.uint8).reshape(6, 8)


def written(path: Path, text: str) -> Path:
    path.write_text(text, encoding="utf-8")
    return path


def test_images_and_dicom(tmp_path: Path) -> None:
    Image.fromarray(GREY).save(tmp_path / "a.png")
    inputs, names = read_inputs([tmp_path / "a.png", dicom(tmp_path / "b.dcm")], "image")
    assert np.array_equal(inputs[0], GREY)
    assert inputs[1].shape == (2, 2)
    assert names == (str(tmp_path / "a.png"), str(tmp_path / "b.dcm"))


def test_sounds(tmp_path: Path) -> None:
    (clip,), _ = read_inputs([wav(tmp_path / "a.wav")], "audio")
    assert clip.samples.tolist() == TONE.tolist()


def test_one_text_a_line(tmp_path: Path) -> None:
    path = written(tmp_path / "a.txt", "a cough\n\n  no pulse\r\n")
    inputs, names = read_inputs([path], "text")
    assert inputs == ("a cough", "no pulse")
    assert names == (f"{path}, line 1", f"{path}, line 3")
    assert read_inputs([path], "words")[0] == (("a", "cough"), ("no", "pulse"))


def test_rows_of_several_files(tmp_path: Path) -> None:
    lines = written(tmp_path / "a.jsonl", json.dumps({"note": "one"}) + "\n")
    table = written(tmp_path / "b.csv", "note,more\ntwo,x\n")
    assert read_inputs([lines, table], "text", keys={"text": "note", "label": "grade"})[0] == ("one", "two")


def test_pairs_and_words(tmp_path: Path) -> None:
    pairs = written(tmp_path / "a.csv", "question,context\nIs it?,It is.\n")
    assert read_inputs([pairs], "pair")[0] == (Pair("Is it?", "It is."),)
    words = written(tmp_path / "a.conll", "breast\tO\ncancer\tO\n\nnone\tO\n")
    assert read_inputs([words], "words")[0] == (("breast", "cancer"), ("none",))


def test_tables_in_the_models_order(tmp_path: Path) -> None:
    path = written(tmp_path / "a.csv", "name,sex,age\nAnn,female,63\nBob,male,\n")
    rows, _ = read_inputs([path], "table", ("age", "sex"), {"label": "target", "codes": "sex=female,male"})
    assert np.array_equal(rows, np.array([[63, 0], [np.nan, 1]]), equal_nan=True)


@pytest.mark.parametrize(
    ("name", "text", "modality", "why"),
    [
        ("a.png", "no image", "image", r"1 of 1 images cannot be read: .*a\.png \(not a PNG"),
        ("a.wav", "no sound", "audio", "not a WAV file"),
        ("a.txt", "", "text", "one text a line"),
        ("a.pdf", "", "text", "expected a file of .txt, CSV or JSON"),
        ("a.txt", "x", "pair", "question and context"),
        ("a.txt", "x", "table", "expected a file of CSV"),
        ("a.csv", "note\nx\n", "text", "expected a column 'text'"),
        ("a.jsonl", '{"tokens": "x"}\n', "words", "list of words"),
        ("a.csv", "age\n63\n", "table", "there is no sex; add them"),
        ("a.csv", "age,sex\n63,male\n", "table", "sex must be numbers"),
    ],
)
def test_refused(tmp_path: Path, name: str, text: str, modality: Modality, why: str) -> None:
    with pytest.raises(ConfigError, match=why):
        read_inputs([written(tmp_path / name, text)], modality, ("age", "sex"))


def test_every_unreadable_file_is_named(tmp_path: Path) -> None:
    files = [written(tmp_path / f"{name}.png", "no image") for name in "abc"]
    with pytest.raises(ConfigError, match=r"a\.png .*b\.png .*c\.png"):
        read_inputs(files, "image")


def test_nothing_to_look_at() -> None:
    with pytest.raises(ConfigError, match="at least one file"):
        read_inputs([], "image")

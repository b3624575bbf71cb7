from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from common.data import LocalData, hold_out, load_source
from common.data.records import Pair
from common.errors import ConfigError
from tests.common.refusals import refusal

TEXTS: list[dict[str, Any]] = [{"text": "a cough", "label": "mild"}, {"text": "no pulse", "label": "grave"}]
WORDS: list[dict[str, Any]] = [
    {"tokens": ["breast", "cancer", "."], "tags": ["B-D", "I-D", "O"]},
    {"tokens": ["none"], "tags": ["O"]},
]
CONTEXT = "Aspirin was found in 1897 by Hoffmann."
SPANS: list[dict[str, Any]] = [
    {"title": "A", "question": "When?", "context": CONTEXT, "answers": [{"text": "1897", "answer_start": 21}]},
    {"title": "B", "question": "Why?", "context": CONTEXT, "answers": []},
]
SQUAD = {
    "data": [
        {
            "title": "A",
            "paragraphs": [
                {
                    "context": CONTEXT,
                    "qas": [
                        {"question": "When?", "answers": [{"text": "1897", "answer_start": 21}]},
                        {"question": "Why?", "is_impossible": True, "answers": [], "plausible_answers": []},
                    ],
                }
            ],
        }
    ]
}


def jsonl(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def written(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    return path


def load(path: Path, **keys: str) -> LocalData:
    return load_source(str(path), keys)


def column(values: Any) -> list[str]:
    assert values is not None
    listed: list[str] = values.tolist()
    return listed


class TestTexts:
    def test_lines_of_json(self, tmp_path: Path) -> None:
        data = load(jsonl(tmp_path / "notes.jsonl", TEXTS))
        assert (data.modality, data.task, data.inputs) == ("text", "classification", ("a cough", "no pulse"))
        assert (data.classes, data.labels.tolist()) == (("grave", "mild"), [1, 0])

    def test_csv_with_its_own_names_and_origins(self, tmp_path: Path) -> None:
        path = written(
            tmp_path / "notes.csv",
            'note,grade,who,where,part\n"a cough, dry",1,p,x,train\n"two\nlines",2,q,y,test\nfever,1,r,x,dev\n',
        )
        data = load(path, text="note", label="grade", patient="who", site="where", split="part")
        assert data.inputs == ("a cough, dry", "two\nlines", "fever")
        assert column(data.patient) == ["p", "q", "r"]
        assert column(data.site) == ["x", "y", "x"]
        assert column(data.split) == ["train", "test", "train"]

    def test_semicolons_tabs_and_a_byte_order_mark(self, tmp_path: Path) -> None:
        semicolons = written(tmp_path / "a.csv", "\ufefftext;label\nh, i;1\nho;2\n")
        tabs = written(tmp_path / "b.tsv", "text\tlabel\nh, i\t1\nho\t2\n")
        assert load(semicolons).inputs == load(tabs).inputs == ("h, i", "ho")

    def test_a_list_of_objects_in_a_json_file(self, tmp_path: Path) -> None:
        assert load(written(tmp_path / "a.json", json.dumps(TEXTS))).inputs == ("a cough", "no pulse")

    def test_parquet(self, tmp_path: Path) -> None:
        pyarrow = pytest.importorskip("pyarrow", reason="the optional package pyarrow is not installed")
        import pyarrow.parquet as parquet

        parquet.write_table(pyarrow.Table.from_pylist(TEXTS), tmp_path / "a.parquet")
        assert load(tmp_path / "a.parquet").labels.tolist() == [1, 0]
        (tmp_path / "b.parquet").write_bytes(b"PAR1 damaged")
        assert "must be a Parquet file" in refusal(tmp_path / "b.parquet")

    def test_several_labels_a_record(self, tmp_path: Path) -> None:
        rows: list[dict[str, Any]] = [
            {"text": "x", "labels": ["b", "a"]},
            {"text": "y", "labels": []},
            {"text": "z", "labels": "b"},
        ]
        data = load(jsonl(tmp_path / "a.jsonl", rows))
        assert (data.task, data.classes) == ("multilabel", ("a", "b"))
        assert data.labels.tolist() == [[1, 1], [0, 0], [0, 1]]

    def test_declared_classes_keep_their_order(self, tmp_path: Path) -> None:
        path = jsonl(tmp_path / "a.jsonl", TEXTS)
        assert load(path, classes="mild|grave").labels.tolist() == [0, 1]
        assert "declared classes" in refusal(path, classes="mild|dire")
        assert "each class once" in refusal(path, classes="mild|mild")

    def test_a_folder_of_parts_of_a_split(self, tmp_path: Path) -> None:
        for name in ("train", "devel", "test"):
            jsonl(tmp_path / f"{name}.jsonl", TEXTS)
        written(tmp_path / "labels.csv", "number,name\n1,mild\n")
        written(tmp_path / "README.md", "notes")
        assert column(load(tmp_path).split) == ["train"] * 2 + ["test"] * 2 + ["train"] * 2

    def test_a_folder_of_sites(self, tmp_path: Path) -> None:
        for name in ("north", "south"):
            jsonl(tmp_path / f"{name}.jsonl", TEXTS)
        assert column(load(tmp_path).site) == ["north", "north", "south", "south"]


class TestPairs:
    ROWS = ({"question": "Is it?", "context": "It is.", "label": "yes", "pmid": "1"},)

    def test_a_question_on_a_text_with_a_label(self, tmp_path: Path) -> None:
        rows = [*self.ROWS, {"question": "Was it?", "context": "No.", "label": "no", "pmid": "2"}]
        data = load(jsonl(tmp_path / "a.jsonl", rows))
        assert (data.modality, data.task, data.classes) == ("pair", "classification", ("no", "yes"))
        assert data.inputs[0] == Pair("Is it?", "It is.")

    def test_keys_say_which_column_is_meant_where_several_kinds_fit(self, tmp_path: Path) -> None:
        rows = [*self.ROWS, {"question": "Was it?", "context": "No.", "label": "no"}]
        path = jsonl(tmp_path / "a.jsonl", [{**row, "text": "t"} for row in rows])
        assert "fit pairs of texts and texts" in refusal(path)
        assert load(path, text="question").modality == "text"
        assert load(path, question="question").modality == "pair"


class TestWords:
    def test_lines_of_json(self, tmp_path: Path) -> None:
        data = load(jsonl(tmp_path / "a.jsonl", WORDS))
        assert (data.modality, data.task, data.classes) == ("words", "tokens", ("B-D", "I-D", "O"))
        assert data.inputs == (("breast", "cancer", "."), ("none",))
        assert data.labels.tolist() == [[0, 1, 2], [2, -1, -1]]

    def test_numbered_tags_with_their_names(self, tmp_path: Path) -> None:
        rows = [{"tokens": ["a", "b"], "ner_tags": [1, 0]}]
        data = load(jsonl(tmp_path / "a.jsonl", rows), tags="ner_tags", classes="O|B-D")
        assert (data.classes, data.labels.tolist()) == (("O", "B-D"), [[1, 0]])

    @pytest.mark.parametrize("name", ["a.conll", "a.tsv", "a.txt", "a.bio"])
    def test_conll(self, tmp_path: Path, name: str) -> None:
        text = "# a comment\nbreast\tB-D\ncancer\tI-D\n\r\n\nnone\tO\r\n"
        data = load(written(tmp_path / name, text))
        assert data.inputs == (("breast", "cancer"), ("none",))
        assert data.labels.tolist() == [[0, 1], [2, -1]]
        assert data.group is None

    def test_conll_2003_keeps_documents_together(self, tmp_path: Path) -> None:
        document = "-DOCSTART- -X- O O\n\nEU NNP B-NP B-ORG\nrejects VBZ B-VP O\n\nok UH O O\n\n"
        data = load(written(tmp_path / "a.conll", document * 2))
        assert data.inputs == (("EU", "rejects"), ("ok",)) * 2
        groups = column(data.group)
        assert groups[0] == groups[1] != groups[2] == groups[3]

    @pytest.mark.parametrize("suffix", ["tsv", "txt", "conll"])
    def test_a_folder_of_conll_files(self, tmp_path: Path, suffix: str) -> None:
        written(tmp_path / "notes.txt", "a note")
        for name in ("train", "test"):
            written(tmp_path / f"{name}.{suffix}", "breast\tB-D\n\nnone\tO\n")
        assert column(load(tmp_path).split) == ["test", "test", "train", "train"]


class TestSpans:
    def test_flat_lines(self, tmp_path: Path) -> None:
        data = load(jsonl(tmp_path / "a.jsonl", SPANS))
        assert (data.modality, data.task) == ("pair", "spans")
        assert data.labels.tolist() == [[21, 25], [-1, -1]]
        assert column(data.group) == ["A", "B"]

    def test_answers_as_lists_of_texts_and_starts(self, tmp_path: Path) -> None:
        rows = [{**SPANS[0], "answers": {"text": ["1897"], "answer_start": [21]}}]
        rows += [{**SPANS[0], "answers": {"text": [], "answer_start": []}}]
        assert load(jsonl(tmp_path / "a.jsonl", rows)).labels.tolist() == [[21, 25], [-1, -1]]

    def test_squads_nested_json(self, tmp_path: Path) -> None:
        data = load(written(tmp_path / "train-v2.0.json", json.dumps(SQUAD)))
        assert data.labels.tolist() == [[21, 25], [-1, -1]]
        assert data.inputs[1] == Pair("Why?", CONTEXT)
        assert column(data.group) == ["A", "A"]

    def test_a_title_is_never_in_both_train_and_test(self, tmp_path: Path) -> None:
        rows = [{**SPANS[0], "title": f"{number % 10}", "question": f"{number}?"} for number in range(60)]
        data = load(jsonl(tmp_path / "a.jsonl", rows))
        titles = column(data.group)
        train, test = hold_out(data, 0.2, seed=0)
        assert len(test) == 12
        assert not {titles[index] for index in train} & {titles[index] for index in test}

    def test_a_declared_split_through_a_title_is_refused(self, tmp_path: Path) -> None:
        for name in ("train", "test"):
            jsonl(tmp_path / f"{name}.jsonl", SPANS)
        with pytest.raises(ConfigError, match="a group must be either in train or in test, but 2 are in both"):
            hold_out(load(tmp_path), 0.2, seed=0)


class TestRefused:
    @pytest.mark.parametrize(
        ("rows", "why"),
        [
            ([{"text": "x"}], "expected a column 'label' as label, but there are text"),
            ([{"text": "x", "label": "a"}, {"text": "", "label": "b"}], "nothing in 1 of 2 records.* line 2"),
            ([{"text": "x", "label": "a"}, {"text": 3, "label": "b"}], "text must be text"),
            ([{"text": "\ud800", "label": "a"}], "text must be text"),
            ([{"text": "x", "label": None}, {"text": "y", "label": "b"}], "label must be a class name"),
            ([{"text": "x", "label": [1]}], "label must be a class name"),
            ([{"text": "x", "label": 0.5}], "label must be a class name"),
            ([{"text": "x", "label": "a"}] * 2, "at least two classes"),
            ([{"text": "x", "label": "a", "labels": "b"}], "got both"),
            ([{"text": "x", "labels": 3}], "labels must be a|b|c"),
            ([{"text": "x", "labels": [["a"]]}], "labels must be a|b|c"),
            ([{"text": "x", "labels": []}], "at least one record"),
            ([{**TEXTS[0], "split": "holdout"}, TEXTS[1]], "split must be a name"),
            ([{**row, "split": "holdout"} for row in TEXTS], "split must be train, val or test"),
            ([{**TEXTS[0], "patient": "p"}, TEXTS[1]], "patient must be a name"),
            ([{**row, "patient_id": "p"} for row in TEXTS], 'patient = "patient_id"'),
            ([{"tokens": [], "tags": []}], "tokens must be a list of words"),
            ([{"tokens": "a b", "tags": ["O"]}], "tokens must be a list of words"),
            ([{"tokens": ["a", " "], "tags": ["O", "O"]}], "tokens must be a list of words"),
            ([{"tokens": ["a", "b"], "tags": ["O"]}], "one tag for each word"),
            ([{"tokens": ["a"], "tags": [None]}], "one tag for each word"),
            ([{"tokens": ["a"], "tags": ["O"]}], "at least two classes"),
            ([{"question": "q", "context": "c"}], "expected a column 'label'"),
            ([{"question": None, "context": "c", "label": "a"}], "question must be text"),
            ([{**SPANS[0], "answers": [{"text": "1897", "answer_start": 20}]}], "place of each in the context"),
            ([{**SPANS[0], "answers": [{"text": "1897"}]}], "place of each in the context"),
            ([{**SPANS[0], "answers": None}], "place of each in the context"),
            ([{**SPANS[0], "answers": "1897"}], "place of each in the context"),
            ([{"note": "x", "grade": "a"}], "expected a column 'label' as label, but there are note, grade"),
        ],
    )
    def test_rows(self, tmp_path: Path, rows: list[dict[str, Any]], why: str) -> None:
        with pytest.raises(ConfigError, match=why.replace("|", r"\|")) as caught:
            load(jsonl(tmp_path / "a.jsonl", rows))
        assert "\n" not in str(caught.value)

    @pytest.mark.parametrize(
        ("name", "text", "why"),
        [
            ("a.jsonl", "", "at least one row"),
            ("a.jsonl", '{"text": "x"}\n[1]\nnot json\n', "got 2 other lines, the first is line 2"),
            ("a.jsonl", "[" * 100_000, "1 other lines"),
            ("a.json", '{"text": "x"}', "SQuAD's JSON"),
            ("a.json", '{"data": [{"paragraphs": [{"qas": [{}]}]}]}', "SQuAD's JSON"),
            ("a.json", '{"data": []}', "at least one question"),
            ("a.json", "3", "list of JSON objects"),
            ("a.csv", "", "got an empty file"),
            ("a.csv", "text,label\n", "at least one row"),
            ("a.csv", "text,text\na,b\n", "each once"),
            ("a.csv", "1,2\n3,4\n", "column names"),
            ("a.csv", "text,label\na,b,c\nd,e\nf\n", "got 2 lines with other numbers, the first is line 2"),
            ("a.csv", 'text,label\n"a"b,c\n', "line 2: not CSV"),
            ("a.csv", 'text,label\n"a,c\n', "not CSV"),
            ("a.conll", "", "at least one sentence"),
            ("a.conll", "word\n", "line 1 must hold a word and its tag"),
            ("a.conll", "a\tO\nb\tX\tO\n", "line 2 must hold"),
            ("a.conll", "a\tO\n\tO\n", "line 2 must hold"),
            ("a.txt", "just a note\n", "by its suffix"),
            ("a.png", "", "got a single record"),
        ],
    )
    def test_files(self, tmp_path: Path, name: str, text: str, why: str) -> None:
        assert why in refusal(written(tmp_path / name, text))

    def test_another_encoding(self, tmp_path: Path) -> None:
        (tmp_path / "a.csv").write_bytes("text,label\nfi\xe8vre,a\n".encode("latin-1"))
        assert "iconv -f WINDOWS-1252" in refusal(tmp_path / "a.csv")
        (tmp_path / "a.csv").write_bytes("text,label\nfever,a\n".encode("utf-16"))
        assert "must be text in UTF-8, got other bytes at position 0; convert it, for example with iconv -f UTF-16" in (
            refusal(tmp_path / "a.csv")
        )

    def test_a_report_may_be_long(self, tmp_path: Path) -> None:
        data = load_source(str(written(tmp_path / "a.csv", f"text,label\n{'x' * 200_000},a\nhi,b\n")))
        assert [len(text) for text in data.inputs] == [200_000, 2]

    def test_keys_of_another_kind(self, tmp_path: Path) -> None:
        path = jsonl(tmp_path / "a.jsonl", TEXTS)
        assert "got 'images'" in refusal(path, images="text")
        assert "expected a column 'words' as text" in refusal(path, text="words")

    def test_folders_that_could_mean_several_things(self, tmp_path: Path) -> None:
        jsonl(tmp_path / "north.jsonl", TEXTS)
        written(tmp_path / "south.csv", "text,label\nx,a\n")
        assert "data files of one kind, got CSV, JSON" in refusal(tmp_path)
        (tmp_path / "south.csv").unlink()
        jsonl(tmp_path / "train.jsonl", TEXTS)
        assert "got north.jsonl beside train.jsonl" in refusal(tmp_path)
        (tmp_path / "train.jsonl").unlink()
        (tmp_path / "south.jsonl").symlink_to(tmp_path / "north.jsonl")
        assert "must not hold links" in refusal(tmp_path)
        (tmp_path / "south.jsonl").unlink()
        (tmp_path / "images" / "a").mkdir(parents=True)
        (tmp_path / "images" / "a" / "1.png").write_bytes(b"")
        assert "data files beside them" in refusal(tmp_path)

    @given(data=st.data())
    @settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
    def test_whatever_is_damaged_is_refused_in_a_sentence(self, tmp_path: Path, data: st.DataObject) -> None:
        forms = {
            "a.jsonl": "\n".join(map(json.dumps, data.draw(st.sampled_from([TEXTS, WORDS, SPANS])))),
            "a.json": json.dumps(SQUAD),
            "a.csv": "text,label\nx,a\ny,b\n",
            "a.conll": "a\tB-X\nb\tO\n\nc\tO\n",
        }
        name = data.draw(st.sampled_from(sorted(forms)))
        content = bytearray(forms[name].encode())
        for at in data.draw(st.lists(st.integers(0, len(content) - 1), max_size=4)):
            content[at] = data.draw(st.integers(0, 255))
        (tmp_path / name).write_bytes(content)
        try:
            message = f"{len(load(tmp_path / name))} records"  # some damage is harmless
        except ConfigError as error:
            message = str(error)
        assert "\n" not in message

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from common.config_schema import KEY_ROLES
from common.data import ROLES, LocalData, load_source
from common.data.kinds import TABLE, TEXT_KINDS
from common.errors import ConfigError

IMAGES = np.arange(6 * 4 * 4, dtype=np.uint8).reshape(6, 4, 4)
LABELS = np.array([0, 1, 2, 0, 1, 2])


def saved(folder: Path, **arrays: Any) -> str:
    path = folder / "data.npz"
    np.savez(path, **arrays)
    return str(path)


def load(folder: Path, keys: dict[str, str] | None = None, **arrays: Any) -> LocalData:
    return load_source(saved(folder, **arrays), keys or {})


def refusal(folder: Path, keys: dict[str, str] | None = None, **arrays: Any) -> str:
    """The one sentence with which a file is refused."""
    with pytest.raises(ConfigError) as caught:
        load(folder, keys, **arrays)
    message = str(caught.value)
    assert message.startswith(str(folder))
    assert "\n" not in message
    return message


def test_one_table_is_read_as_it_is(tmp_path: Path) -> None:
    data = load(
        tmp_path,
        images=IMAGES,
        labels=LABELS,
        site=np.array(["x", "y"] * 3),
        patient=np.arange(6),
        split=np.array(["train"] * 4 + ["test"] * 2),
    )
    assert np.array_equal(np.asarray(data.inputs), IMAGES)
    assert data.labels.tolist() == LABELS.tolist()
    assert data.classes == ("0", "1", "2")
    assert data.site is not None
    assert data.patient is not None
    assert data.split is not None
    assert data.patient.tolist() == ["0", "1", "2", "3", "4", "5"]
    assert data.split.tolist() == ["train"] * 4 + ["test"] * 2


def test_a_relative_path_starts_at_the_root(tmp_path: Path) -> None:
    saved(tmp_path, images=IMAGES, labels=LABELS)
    assert len(load_source("data.npz", root=tmp_path)) == 6


def test_colour_images_are_read_and_a_unit_channel_is_dropped(tmp_path: Path) -> None:
    colour = load(tmp_path, images=np.stack([IMAGES] * 3, axis=-1), labels=LABELS)
    grey = load(tmp_path, images=IMAGES[..., None], labels=LABELS)
    assert np.asarray(colour.inputs).shape == (6, 4, 4, 3)
    assert np.asarray(grey.inputs).shape == (6, 4, 4)


def test_other_names_are_read_by_a_table(tmp_path: Path) -> None:
    data = load(tmp_path, {"images": "x", "labels": "y", "patient": "who"}, x=IMAGES, y=LABELS, who=LABELS)
    assert data.patient is not None
    assert len(data) == 6


def test_medmnist_files_are_read_as_they_are(tmp_path: Path) -> None:
    data = load(
        tmp_path,
        train_images=IMAGES[:3],
        train_labels=LABELS[:3, None].astype(np.uint8),
        val_images=IMAGES[3:4],
        val_labels=LABELS[3:4, None].astype(np.uint8),
        test_images=IMAGES[4:],
        test_labels=LABELS[4:, None].astype(np.uint8),
    )
    assert np.array_equal(np.asarray(data.inputs), IMAGES)
    assert data.labels.tolist() == LABELS.tolist()
    assert data.split is not None
    assert data.split.tolist() == ["train"] * 4 + ["test"] * 2


def test_keras_files_are_read_as_they_are(tmp_path: Path) -> None:
    data = load(tmp_path, x_train=IMAGES[:4], y_train=LABELS[:4], x_test=IMAGES[4:], y_test=LABELS[4:])
    assert np.array_equal(np.asarray(data.inputs), IMAGES)
    assert data.labels.tolist() == LABELS.tolist()
    assert data.split is not None
    assert data.split.tolist() == ["train"] * 4 + ["test"] * 2


def test_training_records_alone_are_not_divided_yet(tmp_path: Path) -> None:
    assert load(tmp_path, train_images=IMAGES, train_labels=LABELS).split is None


def test_divided_files_may_name_patients(tmp_path: Path) -> None:
    parts: dict[str, Any] = {"train_patient": np.array(["p", "q", "r"]), "test_patient": np.array(["s", "t", "u"])}
    images: dict[str, Any] = {"train_images": IMAGES[:3], "test_images": IMAGES[3:]}
    data = load(tmp_path, **images, train_labels=LABELS[:3], test_labels=LABELS[3:], **parts)
    assert data.patient is not None
    assert data.patient.tolist() == ["p", "q", "r", "s", "t", "u"]


def test_a_patient_column_is_never_overlooked(tmp_path: Path) -> None:
    divided: dict[str, Any] = {"train_images": IMAGES, "train_labels": LABELS, "patient": LABELS}
    assert "got patient" in refusal(tmp_path, **divided)
    who = {"images": "images", "train_patient": "who"}
    assert "got train_patient" in refusal(tmp_path, who, images=IMAGES, labels=LABELS, who=LABELS)
    assert 'patient = "patient_id"' in refusal(tmp_path, images=IMAGES, labels=LABELS, patient_id=LABELS)
    halves: dict[str, Any] = {"train_images": IMAGES[:3], "test_images": IMAGES[3:], "train_labels": LABELS[:3]}
    halves |= {"test_labels": LABELS[3:], "train_patient": LABELS[:3]}
    assert "'test_patient'" in refusal(tmp_path, **halves)
    halves["test_patient"] = halves.pop("train_patient")
    assert "'train_patient'" in refusal(tmp_path, **halves)


def test_declared_classes_name_integer_labels(tmp_path: Path) -> None:
    data = load(tmp_path, images=IMAGES, labels=LABELS, classes=np.array(["hand", "chest", "head"]))
    assert data.classes == ("hand", "chest", "head")
    assert data.labels.tolist() == LABELS.tolist()


def test_declared_classes_order_named_labels(tmp_path: Path) -> None:
    names = np.array(["hand", "chest"] * 3)
    assert load(tmp_path, images=IMAGES, labels=names).classes == ("chest", "hand")
    declared = load(tmp_path, images=IMAGES, labels=names, classes=np.array(["hand", "chest"]))
    assert declared.labels.tolist() == [0, 1] * 3


def test_numbers_sort_as_numbers_even_as_text(tmp_path: Path) -> None:
    labels = np.array([10, 9, 10, 9, 1, 1])
    assert load(tmp_path, images=IMAGES, labels=labels).classes == ("1", "9", "10")
    assert load(tmp_path, images=IMAGES, labels=labels.astype(str)).classes == ("1", "9", "10")
    assert load(tmp_path, images=IMAGES, labels=labels.astype(np.bytes_)).classes == ("1", "9", "10")


class TestSeveralLabels:
    MANY = np.array([[1, 0, 1], [0, 0, 0], [0, 1, 0], [1, 1, 0], [0, 0, 1], [1, 0, 0]])

    def test_zeros_and_ones_for_each_class(self, tmp_path: Path) -> None:
        data = load(tmp_path, images=IMAGES, labels=self.MANY)
        assert (data.task, data.classes) == ("multilabel", ("0", "1", "2"))
        assert np.array_equal(data.labels, self.MANY)

    def test_chestmnists_form_with_declared_classes(self, tmp_path: Path) -> None:
        parts: dict[str, Any] = {"train_images": IMAGES[:4], "train_labels": self.MANY[:4].astype(np.uint8)}
        parts |= {"test_images": IMAGES[4:], "test_labels": self.MANY[4:].astype(np.uint8)}
        data = load(tmp_path, **parts, classes=np.array(["mass", "edema", "hernia"]))
        assert (data.task, data.classes) == ("multilabel", ("mass", "edema", "hernia"))
        assert np.array_equal(data.labels, self.MANY)

    def test_refused(self, tmp_path: Path) -> None:
        assert "(N, K) of 0 and 1" in refusal(tmp_path, images=IMAGES, labels=self.MANY * 2)
        assert "name the 3 columns of labels, got 2" in refusal(
            tmp_path, images=IMAGES, labels=self.MANY, classes=np.array(["a", "b"])
        )


class TestSitesOfTheirOwn:
    KEYS: Mapping[str, str] = MappingProxyType({"images": "*_x", "labels": "*_y"})

    def load(self, folder: Path, keys: Mapping[str, str] = KEYS, **arrays: Any) -> LocalData:
        sites = {"north_x": IMAGES, "north_y": LABELS, "south_x": IMAGES[:2, :3, :2, None], "south_y": LABELS[:2, None]}
        return load(folder, dict(keys), **(sites | arrays))

    def test_a_star_stands_for_the_site(self, tmp_path: Path) -> None:
        data = self.load(tmp_path)
        assert data.site is not None
        assert data.site.tolist() == ["north"] * 6 + ["south"] * 2
        assert {image.shape for image in data.inputs} == {(4, 4), (3, 2)}
        assert data.labels.tolist() == [*LABELS, 0, 1]

    def test_patients_have_a_star_too(self, tmp_path: Path) -> None:
        who: dict[str, Any] = {"north_who": np.arange(6), "south_who": np.arange(6, 8)}
        data = self.load(tmp_path, {**self.KEYS, "patient": "*_who"}, **who)
        assert data.patient is not None
        assert data.patient.tolist() == [str(number) for number in range(8)]
        with pytest.raises(ConfigError, match=r'patient = "\*_patient"'):
            self.load(tmp_path, north_patient=np.arange(6), south_patient=np.arange(2))
        with pytest.raises(ConfigError, match="got patient without"):
            self.load(tmp_path, patient=np.arange(8))

    def test_refused(self, tmp_path: Path) -> None:
        with pytest.raises(ConfigError, match="got labels without"):
            self.load(tmp_path, {"images": "*_x", "labels": "north_y"})
        with pytest.raises(ConfigError, match=r"expected an array '\*_pixels' as images"):
            self.load(tmp_path, {"images": "*_pixels", "labels": "*_y"})
        with pytest.raises(ConfigError, match="expected an array 'west_y' as labels"):
            self.load(tmp_path, west_x=IMAGES)


class TestRefused:
    def test_missing_file(self, tmp_path: Path) -> None:
        with pytest.raises(ConfigError, match=r"nothing at .*nowhere\.npz"):
            load_source("nowhere.npz", root=tmp_path)

    def test_something_else_than_npz(self, tmp_path: Path) -> None:
        path = tmp_path / "data.npz"
        for content in (b"", b"not a zip", b"PK\x03\x04 cut off"):
            path.write_bytes(content)
            with pytest.raises(ConfigError, match=r"expected an \.npz file"):
                load_source(str(path))

    def test_a_single_array(self, tmp_path: Path) -> None:
        np.save(tmp_path / "data.npy", IMAGES)
        with pytest.raises(ConfigError, match="got a single array"):
            load_source("data.npy", root=tmp_path)

    def test_a_damaged_array(self, tmp_path: Path) -> None:
        path = Path(saved(tmp_path, images=IMAGES, labels=LABELS))
        content = bytearray(path.read_bytes())
        at = content.index(IMAGES.tobytes())
        content[at] ^= 255
        path.write_bytes(content)
        with pytest.raises(ConfigError, match="'images' is damaged"):
            load_source(str(path))

    @given(data=st.data())
    @settings(
        deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
    )  # each example overwrites the file
    def test_whatever_is_damaged_is_refused_in_a_sentence(self, tmp_path: Path, data: st.DataObject) -> None:
        path = Path(saved(tmp_path, images=IMAGES, labels=LABELS))
        content = bytearray(path.read_bytes())
        for at in data.draw(st.lists(st.integers(0, len(content) - 1), max_size=5)):
            content[at] = data.draw(st.integers(0, 255))
        path.write_bytes(content[: data.draw(st.integers(0, len(content)))])
        try:
            message = f"{len(load_source(str(path)))} records"  # some damage is harmless
        except ConfigError as error:
            message = str(error)
        assert "\n" not in message

    def test_python_objects_are_never_unpickled(self, tmp_path: Path) -> None:
        objects = np.array([{"a": 1}] * 6, dtype=object)
        assert "never unpickled" in refusal(tmp_path, images=IMAGES, labels=objects)

    def test_a_missing_key_tells_how_to_map(self, tmp_path: Path) -> None:
        message = refusal(tmp_path, pictures=IMAGES, diagnoses=LABELS)
        assert "the file holds diagnoses, pictures" in message
        assert "[data.keys]" in message
        assert 'labels = "label"' in refusal(tmp_path, images=IMAGES, label=LABELS)

    def test_a_table_that_names_a_missing_key(self, tmp_path: Path) -> None:
        assert "expected an array 'who' as patient" in refusal(
            tmp_path, {"patient": "who"}, images=IMAGES, labels=LABELS
        )

    def test_an_unknown_role_names_the_nearest(self, tmp_path: Path) -> None:
        path = saved(tmp_path, images=IMAGES, labels=LABELS)
        with pytest.raises(ConfigError, match=r"got 'lables'; did you mean 'labels'\?"):
            load_source(path, {"lables": "y"})

    def test_keys_for_another_source(self) -> None:
        with pytest.raises(ConfigError, match=r"remove data\.keys"):
            load_source("digits", {"images": "x"})

    def test_both_layouts_at_once(self, tmp_path: Path) -> None:
        both: dict[str, Any] = {"images": IMAGES, "labels": LABELS, "train_images": IMAGES, "train_labels": LABELS}
        assert "either images or train_images" in refusal(tmp_path, **both)
        assert len(load(tmp_path, {"images": "images"}, **both)) == 6

    def test_parts_that_disagree(self, tmp_path: Path) -> None:
        parts: dict[str, Any] = {"train_images": IMAGES, "train_labels": LABELS, "test_labels": LABELS}
        assert "must agree in type and shape" in refusal(tmp_path, **parts, test_images=IMAGES[:, :3])

    def test_lengths_that_differ(self, tmp_path: Path) -> None:
        assert "each of the 6 images" in refusal(tmp_path, images=IMAGES, labels=LABELS[:5])

    def test_images_that_are_not_uint8(self, tmp_path: Path) -> None:
        assert "got float64" in refusal(tmp_path, images=IMAGES / 255, labels=LABELS)

    def test_one_hot_labels(self, tmp_path: Path) -> None:
        assert "argmax" in refusal(tmp_path, images=IMAGES, labels=np.eye(3, dtype=np.int64)[LABELS])

    def test_labels_that_are_missing(self, tmp_path: Path) -> None:
        assert "NaN" in refusal(tmp_path, images=IMAGES, labels=np.array([0, 1, np.nan, 0, 1, 1]))
        assert "got -1" in refusal(tmp_path, images=IMAGES, labels=LABELS - 1)
        assert "1 empty" in refusal(tmp_path, images=IMAGES, labels=np.array(["a", "b", "", "a", "b", "b"]))
        assert "got float64" in refusal(tmp_path, images=IMAGES, labels=LABELS.astype(float))

    def test_labels_that_are_not_declared(self, tmp_path: Path) -> None:
        classes = np.array(["a", "b"])
        assert "from 0, got 2" in refusal(tmp_path, images=IMAGES, labels=LABELS, classes=classes)
        assert "got c" in refusal(tmp_path, images=IMAGES, labels=np.array(list("abcabc")), classes=classes)

    def test_classes_declared_twice(self, tmp_path: Path) -> None:
        assert "each class once" in refusal(tmp_path, images=IMAGES, labels=LABELS, classes=np.array(list("aba")))

    @pytest.mark.parametrize(
        ("arrays", "why"),
        [
            ({"images": IMAGES, "labels": LABELS, "classes": np.array(list("abcd"))}, "class with no example.*: d;"),
            ({"images": IMAGES, "labels": LABELS * 0}, "only '0'"),
            ({"images": IMAGES[:0], "labels": LABELS[:0]}, "got none"),
        ],
    )
    def test_nothing_to_learn(self, tmp_path: Path, arrays: dict[str, Any], why: str) -> None:
        with pytest.raises(ConfigError, match=why):
            load(tmp_path, **arrays)

    def test_an_unknown_built_in_names_the_nearest(self) -> None:
        with pytest.raises(ConfigError, match="did you mean 'digits'"):
            load_source("digit")


def test_digits_span_the_whole_range() -> None:
    digits = load_source("digits")
    pixels = np.asarray(digits.inputs)
    assert pixels.shape == (1797, 8, 8)
    assert np.unique(pixels).tolist() == [round(level * 255 / 16) for level in range(17)]
    assert digits.classes == tuple("0123456789")
    assert digits.labels[:10].tolist() == list(range(10))


def test_all_roles_of_a_configuration_are_known_to_some_loader() -> None:
    assert set(KEY_ROLES) == {"path", *ROLES, *(role for kind in (*TEXT_KINDS, TABLE) for role in kind.roles)}

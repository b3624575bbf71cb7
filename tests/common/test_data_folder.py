from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from common.data import LocalData, load_source, read_images
from common.errors import ConfigError

GREY = np.arange(48, dtype=np.uint8).reshape(6, 8)
COLOUR = np.stack([GREY, GREY + 50, GREY + 100], axis=-1)


def put(path: Path, pixels: np.ndarray = GREY) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)
    return path


def folder(root: Path, *names: str) -> LocalData:
    for index, name in enumerate(names):
        put(root / name, GREY + index)
    return load_source(str(root))


def refusal(root: Path) -> str:
    with pytest.raises(ConfigError) as caught:
        load_source(str(root))
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_folders_name_classes_in_sorted_order(tmp_path: Path) -> None:
    data = folder(tmp_path, "b/1.png", "a/2.png", "a/10.bmp")
    assert data.classes == ("a", "b")
    assert data.labels.tolist() == [0, 0, 1]
    assert np.asarray(data.inputs)[:, 0, 0].tolist() == [2, 1, 0]  # a/10.bmp, a/2.png, b/1.png
    assert (data.site, data.patient, data.split) == (None, None, None)


def test_numbered_classes_sort_as_numbers(tmp_path: Path) -> None:
    assert folder(tmp_path, "10/x.png", "9/x.png").classes == ("9", "10")


def test_a_level_more_names_sites(tmp_path: Path) -> None:
    data = folder(tmp_path, "north/a/1.png", "north/b/1.png", "south/a/1.png")
    assert data.site is not None
    assert data.site.tolist() == ["north", "north", "south"]
    assert data.labels.tolist() == [0, 1, 0]


@pytest.mark.parametrize("site", ["", "north/"])
def test_train_and_test_folders_are_a_split(tmp_path: Path, site: str) -> None:
    data = folder(tmp_path, *(f"{split}/{site}{name}/1.png" for split in ("test", "train", "val") for name in "ab"))
    assert data.split is not None
    assert data.split.tolist() == ["test", "test", "train", "train", "train", "train"]
    assert (data.site is None) == (site == "")
    assert data.classes == ("a", "b")


@pytest.mark.parametrize(
    ("train", "validation", "test"),
    [("Training", "Validation", "Testing"), ("TRAIN", "valid", "TEST"), ("training", "dev", "Test")],
)
def test_splits_are_known_by_all_names_that_tables_know(tmp_path: Path, train: str, validation: str, test: str) -> None:
    data = folder(tmp_path, *(f"{split}/{name}/1.png" for split in (train, validation, test) for name in "ab"))
    assert data.site is None
    assert data.split is not None
    assert data.file is not None
    tops = [name.partition("/")[0] for name in data.file.tolist()]
    assert [{train: "train", validation: "train", test: "test"}[top] for top in tops] == data.split.tolist()


def test_a_training_folder_alone_is_not_divided_yet(tmp_path: Path) -> None:
    assert folder(tmp_path, "train/a/1.png", "train/b/1.png").split is None


def test_classes_may_be_called_train_and_test(tmp_path: Path) -> None:
    assert folder(tmp_path, "train/1.png", "test/1.png").classes == ("test", "train")


@pytest.mark.parametrize("names", [("\udce9/x.png", "b/x.png"), ("\x1b[31mred/a/x.png", "blue/b/x.png")])
def test_names_that_nothing_can_show_are_refused(tmp_path: Path, names: tuple[str, str]) -> None:
    with pytest.raises(
        ConfigError, match=r"must be text in UTF-8 without control characters, got '\\(udce9|x1b\[31mred)'"
    ):
        folder(tmp_path, *names)


def test_hidden_files_and_notes_are_left_out(tmp_path: Path) -> None:
    for note in (".DS_Store", "README.txt", "a/.hidden.png", ".git/a/b/c/d.png", "a/Thumbs.db"):
        path = tmp_path / note
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("not an image")
    assert len(folder(tmp_path, "a/1.png", "b/1.png")) == 2


def test_images_of_several_sizes_stay_apart(tmp_path: Path) -> None:
    put(tmp_path / "a" / "1.png", GREY)
    put(tmp_path / "b" / "1.png", GREY[:3])
    put(tmp_path / "b" / "2.png", COLOUR)
    images = load_source(str(tmp_path)).inputs
    assert isinstance(images, tuple)
    assert [image.shape for image in images] == [(6, 8), (3, 8), (6, 8, 3)]


class TestRefused:
    def test_an_empty_folder(self, tmp_path: Path) -> None:
        assert "got none" in refusal(tmp_path)

    def test_several_depths(self, tmp_path: Path) -> None:
        put(tmp_path / "a" / "1.png")
        put(tmp_path / "north" / "a" / "1.png")
        assert "got images at depth 2, 3" in refusal(tmp_path)

    def test_images_without_a_class(self, tmp_path: Path) -> None:
        put(tmp_path / "1.png")
        assert "class/name.png" in refusal(tmp_path)

    def test_images_too_deep(self, tmp_path: Path) -> None:
        put(tmp_path / "a" / "b" / "c" / "1.png")
        assert "below train/, val/ or test/" in refusal(tmp_path)

    def test_a_split_beside_others(self, tmp_path: Path) -> None:
        put(tmp_path / "train" / "a" / "1.png")
        put(tmp_path / "spare" / "a" / "1.png")
        assert "no other folder is expected, got spare" in refusal(tmp_path)

    @pytest.mark.parametrize("inside", [True, False])
    def test_links(self, tmp_path: Path, inside: bool) -> None:
        real = put(tmp_path / ("data/a/1.png" if inside else "elsewhere/1.png"))
        put(tmp_path / "data" / "b" / "2.png")
        (tmp_path / "data" / "b" / "1.png").symlink_to(real)
        assert "must not hold links" in refusal(tmp_path / "data")

    def test_links_to_folders(self, tmp_path: Path) -> None:
        put(tmp_path / "data" / "b" / "2.png")
        put(tmp_path / "elsewhere" / "1.png")
        (tmp_path / "data" / "a").symlink_to(tmp_path / "elsewhere")
        assert "must not hold links" in refusal(tmp_path / "data")

    def test_an_empty_class(self, tmp_path: Path) -> None:
        (tmp_path / "c").mkdir()
        put(tmp_path / "a" / "1.png")
        put(tmp_path / "b" / "1.png")
        assert "class with no example in the whole federation: c" in refusal(tmp_path)

    def test_a_single_class(self, tmp_path: Path) -> None:
        put(tmp_path / "a" / "1.png")
        assert "at least two classes" in refusal(tmp_path)

    def test_other_image_formats(self, tmp_path: Path) -> None:
        put(tmp_path / "a" / "1.png")
        (tmp_path / "a" / "2.webp").write_bytes(b"")
        assert "convert them" in refusal(tmp_path)

    def test_unreadable_images_are_counted_and_the_first_is_named(self, tmp_path: Path) -> None:
        put(tmp_path / "a" / "1.png")
        cut = put(tmp_path / "b" / "1.png")
        cut.write_bytes(cut.read_bytes()[:50])
        (tmp_path / "b" / "2.png").write_text("no image")
        message = refusal(tmp_path)
        assert "2 of 3 images cannot be read" in message
        assert str(cut) in message


def test_a_class_may_be_empty_at_one_site(tmp_path: Path) -> None:
    (tmp_path / "south" / "b").mkdir(parents=True)
    assert len(folder(tmp_path, "north/a/1.png", "north/b/1.png", "south/a/1.png")) == 3


class TestDecoding:
    @pytest.mark.parametrize("suffix", ["png", "bmp", "tif", "tiff"])
    @pytest.mark.parametrize("pixels", [GREY, COLOUR])
    def test_lossless_formats_give_the_same_pixels(self, tmp_path: Path, suffix: str, pixels: np.ndarray) -> None:
        (image,) = read_images([put(tmp_path / f"x.{suffix}", pixels)])
        assert np.array_equal(image, pixels)

    def test_jpeg_is_near(self, tmp_path: Path) -> None:
        (image,) = read_images([put(tmp_path / "x.JPG", GREY)])
        assert np.abs(image.astype(int) - GREY).max() < 10

    @pytest.mark.parametrize("suffix", ["png", "tif"])
    def test_sixteen_bits_are_scaled_by_their_full_range(self, tmp_path: Path, suffix: str) -> None:
        deep = np.array([[0, 128, 129, 257, 32768, 65535]], dtype=np.uint16)
        (image,) = read_images([put(tmp_path / f"x.{suffix}", deep)])
        assert image.tolist() == [[0, 0, 1, 1, 128, 255]]

    def test_one_bit_is_black_and_white(self, tmp_path: Path) -> None:
        (image,) = read_images([put(tmp_path / "x.png", GREY > 20)])
        assert np.array_equal(image, np.where(GREY > 20, 255, 0))

    def test_palettes_are_resolved(self, tmp_path: Path) -> None:
        path = tmp_path / "x.png"
        indexed = Image.fromarray(np.array([[0, 1]], dtype=np.uint8), mode="P")
        indexed.putpalette([10, 20, 30, 40, 50, 60])
        indexed.save(path)
        (image,) = read_images([path])
        assert image.tolist() == [[[10, 20, 30], [40, 50, 60]]]

    def test_what_is_transparent_is_white(self, tmp_path: Path) -> None:
        seen = np.dstack([COLOUR, np.full_like(GREY, 255)])
        seen[0, 0, 3] = 0
        (image,) = read_images([put(tmp_path / "x.png", seen)])
        assert image[0, 0].tolist() == [255, 255, 255]
        assert np.array_equal(image[1:], COLOUR[1:])
        (grey,) = read_images([put(tmp_path / "y.png", np.dstack([GREY, np.zeros_like(GREY)]))])
        assert grey.shape == GREY.shape
        assert (grey == 255).all()

    def test_a_camera_held_sideways_is_set_upright(self, tmp_path: Path) -> None:
        path, exif = tmp_path / "x.png", Image.Exif()
        exif[0x0112] = 6  # turn a quarter clockwise
        Image.fromarray(GREY).save(path, exif=exif)
        (image,) = read_images([path])
        assert np.array_equal(image, np.rot90(GREY, -1))

    def test_a_decompression_bomb_is_not_unpacked(self, tmp_path: Path) -> None:
        path = tmp_path / "x.png"
        Image.new("1", (10_000, 10_000)).save(path)
        with pytest.raises(ConfigError, match="more pixels than an image may have"):
            read_images([path])

    def test_what_has_no_known_range_is_refused(self, tmp_path: Path) -> None:
        with pytest.raises(ConfigError, match="more than 16 bits"):
            read_images([put(tmp_path / "x.tif", GREY.astype(np.float32))])

    def test_several_pages_are_refused(self, tmp_path: Path) -> None:
        page = Image.fromarray(GREY)
        page.save(tmp_path / "x.tif", save_all=True, append_images=[page])
        with pytest.raises(ConfigError, match="several pages"):
            read_images([tmp_path / "x.tif"])

    def test_another_format_under_a_known_name_is_refused(self, tmp_path: Path) -> None:
        Image.fromarray(GREY).save(tmp_path / "x.png", format="GIF")
        with pytest.raises(ConfigError, match="not a PNG, JPEG, BMP or TIFF"):
            read_images([tmp_path / "x.png"])

    def test_a_file_that_is_not_there_is_named(self, tmp_path: Path) -> None:
        with pytest.raises(ConfigError, match=r"nothing\.png \(no such file or directory\)"):
            read_images([tmp_path / "nothing.png"])

    def test_a_record_is_read_the_same_whatever_lies_beside_it(self, tmp_path: Path) -> None:
        grey, colour = put(tmp_path / "grey.png", GREY), put(tmp_path / "colour.png", COLOUR)
        assert np.array_equal(read_images([grey])[0], read_images([grey, colour])[0])

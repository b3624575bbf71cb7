"""Files are written by pydicom; expected pixels are computed by hand from the standard's formulas."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydicom.sequence import Sequence
from pydicom.uid import JPEGLSLossless

from common.data import load_source, read_images
from common.errors import ConfigError
from tests.common.record_files import STORED, dicom


def read(path: Path) -> np.ndarray:
    (image,) = read_images([path])
    assert image.dtype == np.uint8
    return np.asarray(image)


def reason(path: Path) -> str:
    with pytest.raises(ConfigError) as caught:
        read_images([path])
    assert "Jane" not in str(caught.value)
    assert "4711" not in str(caught.value)
    return str(caught.value)


class TestRange:
    def test_without_a_window_the_stored_bits_are_the_range(self, tmp_path: Path) -> None:
        assert read(dicom(tmp_path / "a.dcm")).tolist() == [[0, 62], [125, 255]]  # 255 * stored / 4095
        assert read(dicom(tmp_path / "b.dcm", bits=16)).tolist() == [[0, 4], [8, 16]]  # 255 * stored / 65535

    def test_a_dark_image_stays_dark(self, tmp_path: Path) -> None:
        assert read(dicom(tmp_path / "a.dcm", STORED // 100)).max() == 2

    def test_signed_values(self, tmp_path: Path) -> None:
        pixels = np.array([[-2048, 0], [1000, 2047]], dtype=np.int16)
        assert read(dicom(tmp_path / "a.dcm", pixels)).tolist() == [[0, 128], [190, 255]]

    def test_rescaling_alone_changes_nothing_but_a_negative_slope_inverts(self, tmp_path: Path) -> None:
        plain = read(dicom(tmp_path / "a.dcm"))
        shifted = dicom(tmp_path / "b.dcm", RescaleSlope="2", RescaleIntercept="-1024")
        assert np.array_equal(read(shifted), plain)
        inverted = dicom(tmp_path / "c.dcm", RescaleSlope="-1", RescaleIntercept="4095")
        assert np.array_equal(read(inverted), 255 - plain)

    def test_eight_bits_stay_as_they_are(self, tmp_path: Path) -> None:
        pixels = np.array([[0, 7], [200, 255]], dtype=np.uint8)
        assert np.array_equal(read(dicom(tmp_path / "a.dcm", pixels, bits=8)), pixels)


class TestWindow:
    def test_a_window_is_applied_to_rescaled_values(self, tmp_path: Path) -> None:
        window: dict[str, Any] = {
            "WindowCenter": "40",
            "WindowWidth": "400",
            "RescaleSlope": "1",
            "RescaleIntercept": "-1024",
        }
        pixels = np.array([[0, 864, 1024, 1064, 1263, 4095]], dtype=np.uint16)
        hounsfield = pixels.astype(float) - 1024
        expected = np.clip((hounsfield - 39.5) / 399 + 0.5, 0, 1) * 255  # PS3.3, C.11.2.1.2.1
        assert np.abs(read(dicom(tmp_path / "a.dcm", pixels, **window)) - expected).max() <= 0.5 + 1e-9

    def test_the_first_of_several_windows_counts(self, tmp_path: Path) -> None:
        several = dicom(tmp_path / "a.dcm", WindowCenter=["1000", "3000"], WindowWidth=["100", "500"])
        first = dicom(tmp_path / "b.dcm", WindowCenter="1000", WindowWidth="100")
        assert np.array_equal(read(several), read(first))

    def test_a_window_with_a_negative_slope(self, tmp_path: Path) -> None:
        tags: dict[str, Any] = {
            "RescaleSlope": "-1",
            "RescaleIntercept": "4095",
            "WindowCenter": "2047.5",
            "WindowWidth": "4096",
        }
        assert np.abs(read(dicom(tmp_path / "a.dcm", **tags)).astype(int) - [[255, 193], [130, 0]]).max() <= 1

    def test_a_table_of_values_of_interest(self, tmp_path: Path) -> None:
        from pydicom.dataset import Dataset

        table = Dataset()
        table.LUTDescriptor, table.LUTData = [4, 0, 8], np.array([255, 100, 50, 0], dtype=np.uint16).tobytes()
        table["LUTData"].VR = "OW"
        pixels = np.array([[0, 1], [2, 3]], dtype=np.uint16)
        path = dicom(tmp_path / "a.dcm", pixels, VOILUTSequence=Sequence([table]))
        assert read(path).tolist() == [[255, 100], [50, 0]]


class TestPhotometric:
    def test_monochrome1_is_inverted(self, tmp_path: Path) -> None:
        inverted = dicom(tmp_path / "a.dcm", PhotometricInterpretation="MONOCHROME1")
        assert np.array_equal(read(inverted), 255 - read(dicom(tmp_path / "b.dcm")))
        window: dict[str, Any] = {"WindowCenter": "1000", "WindowWidth": "3000"}
        both = dicom(tmp_path / "c.dcm", PhotometricInterpretation="MONOCHROME1", **window)
        assert np.array_equal(read(both), 255 - read(dicom(tmp_path / "d.dcm", **window)))

    def test_colour(self, tmp_path: Path) -> None:
        pixels = np.arange(12, dtype=np.uint8).reshape(2, 2, 3)
        assert np.array_equal(read(dicom(tmp_path / "a.dcm", pixels, bits=8)), pixels)

    def test_a_palette(self, tmp_path: Path) -> None:
        tags: dict[str, Any] = {"PhotometricInterpretation": "PALETTE COLOR"}
        for colour, values in (("Red", [0, 255]), ("Green", [0, 100]), ("Blue", [0, 50])):
            tags[f"{colour}PaletteColorLookupTableDescriptor"] = [2, 0, 8]
            tags[f"{colour}PaletteColorLookupTableData"] = np.array(values, dtype=np.uint8).tobytes()
        path = dicom(tmp_path / "a.dcm", np.array([[0, 1]], dtype=np.uint8), bits=8, **tags)
        assert read(path).tolist() == [[[0, 0, 0], [255, 100, 50]]]


def test_a_folder_of_classes_gives_pixels_and_nothing_else(tmp_path: Path) -> None:
    for name in ("a/1.dcm", "a/2.DCM", "b/1.dcm"):
        dicom(tmp_path / name)
    data = load_source(str(tmp_path))
    assert (data.classes, data.labels.tolist()) == (("a", "b"), [0, 0, 1])
    assert (data.patient, data.site) == (None, None)
    assert np.array_equal(np.asarray(data.inputs)[0], read(tmp_path / "a/1.dcm"))


def test_files_without_a_suffix_are_known_by_their_first_bytes(tmp_path: Path) -> None:
    for name in ("a/IM0001", "b/1.2.840.17"):
        dicom(tmp_path / name)
    (tmp_path / "a" / "DICOMDIR").write_text("a note")
    assert len(load_source(str(tmp_path))) == 2


class TestRefused:
    def test_something_else(self, tmp_path: Path) -> None:
        (tmp_path / "a.dcm").write_bytes(b"not an image" * 50)
        assert "not a DICOM file" in reason(tmp_path / "a.dcm")

    def test_nothing_there(self, tmp_path: Path) -> None:
        assert "no such file" in reason(tmp_path / "a.dcm")

    def test_a_report_without_an_image(self, tmp_path: Path) -> None:
        import pydicom

        dataset = pydicom.dcmread(dicom(tmp_path / "a.dcm"))
        del dataset.PixelData
        dataset.save_as(tmp_path / "a.dcm")
        assert "no image in it" in reason(tmp_path / "a.dcm")

    def test_several_frames(self, tmp_path: Path) -> None:
        path = dicom(tmp_path / "a.dcm", NumberOfFrames="2", PixelData=STORED.tobytes() * 2)
        assert "several frames" in reason(path)

    @pytest.mark.parametrize(
        ("tags", "why"),
        [
            ({"WindowCenter": "40", "WindowWidth": "0"}, "WindowWidth is 0 in its header"),
            ({"WindowCenter": ["40", "2"], "WindowWidth": ["-5", "9"]}, "WindowWidth is -5 in its header"),
            ({"RescaleSlope": "0", "RescaleIntercept": "0"}, "RescaleSlope is 0 in its header"),
            ({"PhotometricInterpretation": "FOO"}, "PhotometricInterpretation is FOO"),
        ],
    )
    def test_a_header_that_shows_nothing_is_named(self, tmp_path: Path, tags: dict[str, Any], why: str) -> None:
        assert why in reason(dicom(tmp_path / "a.dcm", **tags))

    def test_pixels_cut_off(self, tmp_path: Path) -> None:
        path = dicom(tmp_path / "a.dcm", PixelData=STORED.tobytes()[:4])
        assert "truncated or damaged" in reason(path)

    def test_a_file_cut_off_anywhere(self, tmp_path: Path) -> None:
        content = dicom(tmp_path / "a.dcm").read_bytes()
        for length in range(0, len(content) - 1, 20):
            (tmp_path / "a.dcm").write_bytes(content[:length])
            assert "1 of 1 images cannot be read" in reason(tmp_path / "a.dcm")

    def test_missing_rows(self, tmp_path: Path) -> None:
        import pydicom

        dataset = pydicom.dcmread(dicom(tmp_path / "a.dcm"))
        del dataset.Rows
        dataset.save_as(tmp_path / "a.dcm")
        assert "truncated or damaged" in reason(tmp_path / "a.dcm")

    def test_a_compression_that_needs_more(self, tmp_path: Path) -> None:
        from pydicom.encaps import encapsulate

        path = dicom(tmp_path / "a.dcm", TransferSyntaxUID=JPEGLSLossless, PixelData=encapsulate([b"\0" * 20]))
        assert "decompress it" in reason(path)

    def test_more_pixels_than_an_image_may_have(self, tmp_path: Path) -> None:
        assert "more pixels" in reason(dicom(tmp_path / "a.dcm", Rows=60_000, Columns=60_000))

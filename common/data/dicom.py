"""DICOM files decoded to uint8 pixels; nothing but the pixels is read out of them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
import numpy.typing as npt

from common.data.local import Pixels
from common.printable import printable

if TYPE_CHECKING:
    from pydicom import Dataset

MOST_PIXELS = 89_478_485  # Pillow's limit, for what it does not decode
_GREY = ("MONOCHROME1", "MONOCHROME2")
_KNOWN = (*_GREY, "PALETTE COLOR", "RGB")

Values: TypeAlias = npt.NDArray[np.float64]


def decode(path: Path) -> Pixels | str:
    """The pixels of a file as a viewer shows them at first, or why there are none.

    Grey: stored values through the modality's rescaling (or its table), then through the first window (or table of
    values of interest) to 0..255; without a window the full range that the stored bits allow, never the range that the
    image happens to hold. MONOCHROME1, whose low values are white, is inverted. Colour becomes RGB.

    Args:
        path: a DICOM file with one frame.

    Returns:
        Shape (H, W) or (H, W, 3), uint8, or a text.

    Source: DICOM PS3.3, C.7.6.3, C.11.1 and C.11.2.
    """
    import pydicom
    from pydicom.errors import InvalidDicomError

    try:
        dataset = pydicom.dcmread(path)
        return _why_not(dataset) or _to_pixels(dataset)
    except (FileNotFoundError, IsADirectoryError, PermissionError) as error:
        return str(error.strerror).lower()
    except InvalidDicomError:
        return "not a DICOM file"
    except RuntimeError:
        return "compressed in a way that cannot be read here; decompress it, for example with gdcmconv --raw"
    except Exception:  # decoders raise nearly anything on damaged input
        return "truncated or damaged"


def _why_not(dataset: Dataset) -> str | None:
    if "PixelData" not in dataset:
        return "no image in it"
    if int(dataset.get("NumberOfFrames") or 1) > 1:
        return "several frames in one file; save the ones meant as files of their own"
    if dataset.Rows * dataset.Columns > MOST_PIXELS:
        return "more pixels than an image may have"
    photometric = str(dataset.PhotometricInterpretation)
    if photometric not in _KNOWN and not photometric.startswith("YBR_"):
        return f"neither grey nor colour: PhotometricInterpretation is {printable(photometric[:16])}"
    return _why_not_grey(dataset) if photometric in _GREY else None


def _why_not_grey(dataset: Dataset) -> str | None:
    """What in the header would show every grey value alike."""
    if "ModalityLUTSequence" not in dataset and dataset.get("RescaleSlope") == 0:
        return "RescaleSlope is 0 in its header, so that every pixel is the same; correct the header"
    if "WindowCenter" in dataset and "WindowWidth" in dataset:
        widths = dataset.WindowWidth
        width = float(widths[0] if isinstance(widths, Sequence) else widths)
        linear = str(dataset.get("VOILUTFunction", "LINEAR")) == "LINEAR"
        if width < 1 if linear else width <= 0:
            return f"WindowWidth is {width:g} in its header, too narrow for a window; correct the header"
    return None


def _to_pixels(dataset: Dataset) -> Pixels | str:
    from pydicom.pixels.processing import apply_color_lut

    photometric = str(dataset.PhotometricInterpretation)
    stored = dataset.pixel_array
    if photometric == "PALETTE COLOR":
        coloured = apply_color_lut(stored, dataset)
        return _scaled(coloured.astype(np.float64), 0.0, float(np.iinfo(coloured.dtype).max))
    if stored.ndim == 3:
        return _scaled(stored.astype(np.float64), 0.0, 2.0**dataset.BitsStored - 1)
    if photometric not in _GREY:
        return f"one value a pixel, but PhotometricInterpretation is {photometric}"
    shown = _grey(dataset, stored)
    return np.asarray(255 - shown if photometric == "MONOCHROME1" else shown, dtype=np.uint8)


def _grey(dataset: Dataset, stored: npt.NDArray[Any]) -> Pixels:
    from pydicom.pixels.processing import apply_modality_lut, apply_voi, apply_windowing

    values = apply_modality_lut(stored, dataset)
    if "WindowCenter" in dataset and "WindowWidth" in dataset:
        start, end = _range(dataset)
        fraction = (apply_windowing(values, dataset, index=0) - start) / (end - start)
        return _scaled(fraction, 0.0, 1.0)
    if dataset.get("VOILUTSequence"):
        bits = int(dataset.VOILUTSequence[0].LUTDescriptor[2])
        return _scaled(apply_voi(values, dataset, index=0).astype(np.float64), 0.0, 2.0**bits - 1)
    start, end = _range(dataset)
    return _scaled(np.asarray(values, dtype=np.float64), min(start, end), max(start, end))


def _range(dataset: Dataset) -> tuple[float, float]:
    """What the lowest and the highest stored value become by the modality's rescaling, in this order."""
    if dataset.get("ModalityLUTSequence"):
        return 0.0, 2.0 ** int(dataset.ModalityLUTSequence[0].LUTDescriptor[2]) - 1
    bits, signed = int(dataset.BitsStored), int(dataset.PixelRepresentation) == 1
    low, high = (-(2.0 ** (bits - 1)), 2.0 ** (bits - 1) - 1) if signed else (0.0, 2.0**bits - 1)
    slope, intercept = float(dataset.get("RescaleSlope", 1)), float(dataset.get("RescaleIntercept", 0))
    return low * slope + intercept, high * slope + intercept


def _scaled(values: Values, low: float, high: float) -> Pixels:
    return np.clip(np.rint((values - low) * (255 / (high - low))), 0, 255).astype(np.uint8)

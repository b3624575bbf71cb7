"""Image files decoded to uint8 arrays."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from common.data.decoding import decode_files
from common.data.local import Images, Pixels

FORMATS = ("PNG", "JPEG", "BMP", "TIFF")
DICOM_SUFFIXES = (".dcm", ".dicom")
PLAIN_SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff")
SUFFIXES = (*PLAIN_SUFFIXES, *DICOM_SUFFIXES)

_SIXTEEN_BIT = ("I;16", "I;16L", "I;16B", "I;16N")
_DEEPER = ("I", "F")


def read_images(paths: Sequence[Path]) -> Images:
    """Decode image files, each on its own: how one record is read never depends on the others.

    16-bit grey is scaled by its full range (65535 becomes 255), never by what the image happens to hold; palettes are
    resolved; transparent pixels are laid on white, as by the preprocessing; a camera's orientation mark is applied.
    DICOM files: see ``dicom.decode``.

    Args:
        paths: PNG, JPEG, BMP, TIFF or DICOM files.

    Returns:
        In the order of ``paths``: (H, W) for grey and (H, W, 3) for colour files; one array where all have the same
        shape, else a tuple.

    Raises:
        ConfigError: some file cannot be read; the message names the first and counts them. Images that would unpack
            to more than Pillow's limit of 89 million pixels count as unreadable.
    """
    return stack_images(decode_files(paths, decode_image, "images")[0])


def is_dicom(path: Path) -> bool:
    """Whether a file is meant as DICOM: by its suffix, or its first bytes where it has none, as archives write them."""
    if path.suffix.lower() in DICOM_SUFFIXES:
        return True
    if path.suffix and not path.suffix[1:].isdigit():
        return False
    try:
        with path.open("rb") as stream:
            return stream.read(132)[128:] == b"DICM"
    except OSError:
        return False


def stack_images(images: Sequence[Pixels]) -> Images:
    """One array where all images have the same shape, else a tuple of them."""
    return np.stack(images) if len({image.shape for image in images}) == 1 else tuple(images)


def decode_image(path: Path) -> Pixels | str:
    """The pixels of a file, or why there are none."""
    if is_dicom(path):
        from common.data.dicom import decode

        return decode(path)
    try:
        with Image.open(path, formats=FORMATS) as image:
            return _to_pixels(image)
    except (FileNotFoundError, IsADirectoryError, PermissionError) as error:
        return str(error.strerror).lower()
    except UnidentifiedImageError:
        return "not a PNG, JPEG, BMP or TIFF image"
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        return "more pixels than an image may have"
    except Exception:  # decoders raise nearly anything on damaged input
        return "truncated or damaged"


def _to_pixels(image: Image.Image) -> Pixels | str:
    if image.format == "TIFF" and getattr(image, "n_frames", 1) > 1:
        return "several pages in one file"
    if image.mode in _DEEPER:
        return "more than 16 bits a pixel, whose range is not known"
    upright = ImageOps.exif_transpose(image)
    if upright.mode in _SIXTEEN_BIT:
        return np.rint(np.asarray(upright).astype(np.float64) * (255 / 65535)).astype(np.uint8)
    return np.asarray(_eight_bit(upright)).copy()


def _eight_bit(image: Image.Image) -> Image.Image:
    """Grey or RGB, with transparent parts on white."""
    grey = image.mode in ("1", "L", "LA", "La")
    if image.has_transparency_data:
        opaque = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", opaque.size, "white"), opaque)
    return image.convert("L" if grey else "RGB")

"""WAV files decoded to int16 mono."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from common.data.records import Clip

SUFFIXES = (".wav", ".wave")


def decode_sound(path: Path) -> Clip | str:
    """The sound of a file, or why there is none.

    PCM of 8, 16, 24 or 32 bits and floating point are scaled by their full range, never by what the file happens to
    hold; channels are averaged. (scipy rather than the standard library's ``wave``: that one refuses, before Python
    3.12, the extensible header which 24-bit files usually have.)
    """
    from scipy.io import wavfile

    try:
        content = path.read_bytes()
    except OSError as error:
        return str(error.strerror).lower()
    if content[:4] not in (b"RIFF", b"RIFX", b"RF64") or content[8:12] != b"WAVE":
        return "not a WAV file"
    try:
        rate, samples = wavfile.read(io.BytesIO(content))
    except Exception as error:  # the decoder raises nearly anything on damaged input
        return "compressed, rather than PCM" if "Unknown wave file format" in str(error) else "truncated or damaged"
    if samples.size == 0 or rate <= 0:
        return "no sound in it"
    return Clip(_to_sixteen_bits(samples), int(rate))


def _to_sixteen_bits(samples: npt.NDArray[Any]) -> npt.NDArray[np.int16]:
    """int16, shape (S,), from (S,) or (S, channels) of any type that a WAV file holds."""
    scale, centre = {"u1": (256.0, 128.0), "i2": (1.0, 0.0), "i4": (2.0**-16, 0.0)}.get(
        samples.dtype.str[1:], (2.0**15, 0.0)
    )
    values = np.nan_to_num((samples.astype(np.float64) - centre) * scale)
    mono = values.mean(axis=1) if values.ndim == 2 else values
    return np.clip(np.rint(mono), -32768, 32767).astype(np.int16)

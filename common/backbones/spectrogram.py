"""Spectrograms by public constants, and with them sounds for backbones that see images."""

from __future__ import annotations

import functools
import hashlib
import json
import math
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from common.backbones.backbone import Activations, Backbone, Preprocessing
from common.data.records import Clip, Inputs
from common.errors import ConfigError

Samples = npt.NDArray[np.float32]
MelScale = Literal["htk", "slaney"]


@functools.lru_cache(maxsize=16)
def mel_filters(rate: int, window: int, bins: int, scale: MelScale) -> npt.NDArray[np.float64]:
    """Triangles that are equally wide in mel, each of the same area ("slaney") or the same height ("htk").

    Args:
        rate: samples a second; the filters reach from 0 to half of it.
        window: samples of one Fourier transform.
        bins: B, number of filters.
        scale: O'Shaughnessy's formula as in HTK, or Slaney's, which is linear up to 1000 Hz.

    Returns:
        Shape (B, window // 2 + 1).

    Source: Young et al., The HTK Book, section 5.4; Slaney, Auditory Toolbox, 1998.
    """
    edges = _to_hertz(np.linspace(0, _to_mel(rate / 2, scale), bins + 2), scale)
    heard = np.linspace(0, rate / 2, window // 2 + 1)
    widths = np.diff(edges)
    slopes = edges[:, None] - heard  # (B + 2, window // 2 + 1)
    triangles = np.maximum(0, np.minimum(-slopes[:-2] / widths[:-1, None], slopes[2:] / widths[1:, None]))
    if scale == "slaney":
        triangles *= 2 / (edges[2:] - edges[:-2])[:, None]
    return np.asarray(triangles)


def mel_power(samples: Samples, rate: int, *, window: int, hop: int, bins: int, scale: MelScale) -> Samples:
    """Power of a sound in mel bands, frame by frame.

    Args:
        samples: shape (S,), in [-1, 1].
        rate: samples a second.
        window: samples of one frame, weighted by a Hann window.
        hop: samples from one frame to the next.
        bins: B.
        scale: as for ``mel_filters``.

    Returns:
        Shape (B, 1 + S // hop), float32; frame k is centred on sample k x hop, the ends are mirrored.
    """
    wave = samples if len(samples) > window // 2 else np.pad(samples, (0, window // 2 + 1 - len(samples)))
    padded = np.pad(wave.astype(np.float64), window // 2, mode="reflect")
    frames = np.lib.stride_tricks.sliding_window_view(padded, window)[::hop]
    hann = 0.5 - 0.5 * np.cos(2 * math.pi * np.arange(window) / window)
    power = np.abs(np.fft.rfft(frames * hann)) ** 2
    bands: Samples = (mel_filters(rate, window, bins, scale) @ power.T).astype(np.float32)
    return bands


def resample(clip: Clip, rate: int) -> Samples:
    """A clip's samples in [-1, 1] at another rate, by a fixed polyphase filter."""
    from scipy.signal import resample_poly

    samples = clip.samples.astype(np.float32) / np.float32(32768)
    if clip.rate == rate or len(samples) == 0:
        return samples
    divisor = math.gcd(clip.rate, rate)
    return np.asarray(resample_poly(samples, rate // divisor, clip.rate // divisor), dtype=np.float32)


@dataclass(frozen=True)
class LogMel:
    """A clip as a grey image: time to the right, frequency upwards, loudness as brightness.

    Attributes:
        rate: samples a second that every clip is brought to.
        seconds: the longest clip; what comes after is cut off. A shorter one is not filled up: its image is narrower.
        window: samples of one frame.
        hop: samples between frames.
        bins: height of the image.
        decibels: below the clip's own loudest point, what is black.
    """

    rate: int = 8_000
    seconds: int = 10
    window: int = 256
    hop: int = 80
    bins: int = 64
    decibels: float = 60.0

    def __call__(self, clip: Clip) -> npt.NDArray[np.uint8]:
        """A clip to an image, uint8, shape (bins, frames); silence is black."""
        samples = resample(clip, self.rate)[: self.rate * self.seconds]
        power = mel_power(samples, self.rate, window=self.window, hop=self.hop, bins=self.bins, scale="htk")
        loudest = float(power.max())
        if loudest <= 0:
            return np.zeros(power.shape, np.uint8)
        relative = 10 * np.log10(np.maximum(power / loudest, 1e-20)) / self.decibels + 1
        image: npt.NDArray[np.uint8] = np.rint(255 * np.clip(relative[::-1], 0, 1)).astype(np.uint8)
        return image


@dataclass(frozen=True)
class SpectrogramPreprocessing:
    """Sounds to spectrograms, and these to whatever an image backbone makes of images.

    Attributes:
        inner: the image backbone's own preprocessing.
        spectrogram: from a clip to an image.
    """

    inner: Preprocessing
    spectrogram: LogMel = LogMel()

    @property
    def accepts(self) -> frozenset[str]:
        """Sounds."""
        return frozenset({"audio"})

    def __call__(self, inputs: Inputs) -> Activations:
        """Prepare N clips as ``inner`` prepares N images."""
        return self.inner(tuple(self.spectrogram(clip) for clip in inputs))

    def blank(self) -> Inputs:
        """A second of silence."""
        return (Clip(np.zeros(self.spectrogram.rate, np.int16), self.spectrogram.rate),)

    def describe(self) -> dict[str, Any]:
        """The spectrogram's constants and what comes after it."""
        return {"kind": "spectrogram-v1", "spectrogram": asdict(self.spectrogram), "inner": self.inner.describe()}

    def truncated(self, inputs: Inputs) -> int:
        """How many clips lost their end."""
        return sum(len(clip.samples) > self.spectrogram.seconds * clip.rate for clip in inputs)


def for_audio(backbone: Backbone) -> Backbone:
    """Let an image backbone take sounds, as spectrograms; ``spectrogram/<name>``, with another digest.

    Raises:
        ConfigError: the backbone takes no images.
    """
    if "audio" in backbone.preprocessing.accepts:
        return backbone
    if "image" not in backbone.preprocessing.accepts:
        accepted = ", ".join(sorted(backbone.preprocessing.accepts))
        raise ConfigError(
            f"sounds need a backbone for audio or images, got {backbone.name}, which takes {accepted}; choose another"
        )
    preprocessing = SpectrogramPreprocessing(backbone.preprocessing)
    described = json.dumps({"inner": backbone.digest, "preprocessing": preprocessing.describe()}, sort_keys=True)
    digest = hashlib.sha256(described.encode()).hexdigest()
    return replace(backbone, name=f"spectrogram/{backbone.name}", preprocessing=preprocessing, digest=digest)


def _to_mel(hertz: float, scale: MelScale) -> float:
    if scale == "htk":
        return 2595 * math.log10(1 + hertz / 700)
    return 3 * hertz / 200 if hertz < 1000 else 15 + 27 * math.log(hertz / 1000) / math.log(6.4)


def _to_hertz(mel: npt.NDArray[np.float64], scale: MelScale) -> npt.NDArray[np.float64]:
    if scale == "htk":
        return np.asarray(700 * (10 ** (mel / 2595) - 1))
    return np.where(mel < 15, 200 * mel / 3, 1000 * np.exp(math.log(6.4) / 27 * (mel - 15)))

"""From clips to what wav2vec2 and Whisper take; every rule is a public constant or looks at one record only."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from common.backbones.spectrogram import Samples, mel_power, resample
from common.data.records import Clip, Inputs
from common.errors import ConfigError

MAX_SECONDS = 60

_WINDOW, _HOP = 400, 160  # Whisper's, in samples at 16 kHz; its encoder halves the frames
_FRAME = 2 * _HOP


@dataclass(frozen=True)
class AudioPreprocessing:
    """Bring clips to one rate and one length.

    Attributes:
        rate: samples a second.
        seconds: what clips are cut off at or filled up to with silence.
        normalise: give each clip a mean of 0 and a deviation of 1, as wav2vec2 wants it.
        mel_bins: B, for Whisper's log-mel spectrogram; 0 for the waveform itself.

    Raises:
        ConfigError: the number of seconds is not within 1 to 60.
    """

    rate: int
    seconds: int
    normalise: bool
    mel_bins: int = 0

    def __post_init__(self) -> None:
        if not 1 <= self.seconds <= MAX_SECONDS:
            raise ConfigError(
                f"expected 1 to {MAX_SECONDS} seconds of sound, got {self.seconds}; write another number after the "
                "colon in model.backbone"
            )

    @property
    def accepts(self) -> frozenset[str]:
        """Sounds."""
        return frozenset({"audio"})

    @property
    def length(self) -> int:
        """S, samples of every clip."""
        return self.rate * self.seconds

    def __call__(self, inputs: Inputs) -> tuple[Tensor, Tensor]:
        """Prepare N clips.

        Returns:
            Waveforms (N, S) with a mask (N, S), or spectrograms (N, B, F) with a mask (N, F / 2) over what the encoder
            makes of them; float32. The mask is 1 where a clip has sound of its own.
        """
        waves = np.zeros((len(inputs), self.length), np.float32)
        mask = np.zeros((len(inputs), self.length), np.float32)
        for row, clip in enumerate(inputs):
            samples = self._samples(clip)
            waves[row, : len(samples)], mask[row, : len(samples)] = samples, 1
        if not self.mel_bins:
            return torch.from_numpy(waves), torch.from_numpy(mask)
        spectrograms = np.zeros((len(inputs), self.mel_bins, self.length // _HOP), np.float32)
        for row, wave in enumerate(waves):
            spectrograms[row] = self._log_mel(wave)
        return torch.from_numpy(spectrograms), torch.from_numpy(mask[:, ::_FRAME].copy())

    def blank(self) -> Inputs:
        """A second of silence."""
        return (Clip(np.zeros(self.rate, np.int16), self.rate),)

    def describe(self) -> dict[str, Any]:
        """Name everything that decides the result."""
        return {"kind": "audio-v1", "resampling": "scipy.signal.resample_poly", **asdict(self)}

    def truncated(self, inputs: Inputs) -> int:
        """How many clips lost their end."""
        return sum(len(clip.samples) > self.seconds * clip.rate for clip in inputs)

    def _samples(self, clip: Clip) -> Samples:
        samples = resample(clip, self.rate)[: self.length]
        if self.normalise and len(samples):
            samples = (samples - samples.mean()) / np.sqrt(samples.var() + 1e-7)
        return samples

    def _log_mel(self, wave: Samples) -> Samples:
        """Source: Radford et al. 2022, arXiv:2212.04356, and its code: the last frame is left out."""
        power = mel_power(wave, self.rate, window=_WINDOW, hop=_HOP, bins=self.mel_bins, scale="slaney")[:, :-1]
        logarithm = np.log10(np.maximum(power, 1e-10))
        loud = np.maximum(logarithm, logarithm.max() - 8)
        return np.asarray((loud + 4) / 4, dtype=np.float32)

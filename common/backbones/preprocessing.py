"""From images of any size to a backbone's input; every rule is a public constant or looks at one record only."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from common.errors import ConfigError

LUMA = (0.299, 0.587, 0.114)
"""Weights of red, green and blue in grey (ITU-R BT.601)."""

_CHUNK = 1024


@dataclass(frozen=True)
class ImagePreprocessing:
    """Resize to a square, then centre and scale by constants that travel with the backbone.

    Nothing is measured over records, so that a record's features say nothing of its neighbours. Brightness is kept: how
    dark a scan's background is tells much about its kind.

    Attributes:
        size: side of the square, pixels; the aspect ratio is not kept.
        channels: 1 (grey) or 3.
        mean: subtracted from pixels in [0, 1].
        std: what they are divided by then.
    """

    size: int
    channels: int
    mean: float = 0.5
    std: float = 0.25

    @property
    def accepts(self) -> frozenset[str]:
        """Images only."""
        return frozenset({"image"})

    def blank(self) -> np.ndarray:
        """A black image of the input's size."""
        return np.zeros((1, self.size, self.size), np.uint8)

    def __call__(self, images: np.ndarray | Sequence[np.ndarray]) -> Tensor:
        """Prepare images.

        Args:
            images: uint8; an array (N, H, W) or (N, H, W, C) with C = 1, 3 or 4, or a tuple of N arrays (H, W) or
                (H, W, C) of sizes of their own. A fourth channel is opacity, over white.

        Returns:
            Shape (N, channels, size, size), float32; row n depends on image n alone.

        Raises:
            ConfigError: an image has another type or shape, or no pixel.
        """
        if len(images) == 0:
            return torch.empty(0, self.channels, self.size, self.size)
        if isinstance(images, np.ndarray):
            parts = [self._prepare(images[start : start + _CHUNK]) for start in range(0, len(images), _CHUNK)]
        else:
            parts = [self._prepare(np.asarray(image)[None]) for image in images]
        return torch.cat(parts)

    def describe(self) -> dict[str, Any]:
        """Name everything that decides the result; part of a backbone's digest."""
        return {
            **asdict(self),
            "resize": "bilinear-antialias",
            "luma": list(LUMA),
            "opacity": "white",
        }

    def _prepare(self, images: np.ndarray) -> Tensor:
        pixels = _as_channels(images, self.channels)  # (N, C, H, W) in [0, 1]
        resized = functional.interpolate(
            pixels, size=(self.size, self.size), mode="bilinear", antialias=True, align_corners=False
        )
        return self.scale(resized)

    def scale(self, pixels: Tensor) -> Tensor:
        """Centre and scale pixels in [0, 1] by the constants."""
        return (pixels - self.mean) / self.std


def _as_channels(images: np.ndarray, channels: int) -> Tensor:
    """From (N, H, W[, C]) uint8 to (N, channels, H, W) float32 in [0, 1]."""
    if images.ndim == 3:
        images = images[..., None]
    if images.dtype != np.uint8 or images.ndim != 4 or images.shape[3] not in (1, 3, 4) or 0 in images.shape[1:]:
        shape = " x ".join(map(str, images.shape[1:]))
        raise ConfigError(
            f"expected uint8 images of height x width, or height x width x 1, 3 or 4 channels, "
            f"got {images.dtype} of {shape}; convert them to 8-bit grey or RGB"
        )
    pixels = torch.from_numpy(np.ascontiguousarray(images.transpose(0, 3, 1, 2))).float() / 255
    if pixels.shape[1] == 4:
        opacity = pixels[:, 3:]
        pixels = pixels[:, :3] * opacity + (1 - opacity)
    if channels == 1 and pixels.shape[1] == 3:
        red, green, blue = pixels.unbind(1)
        pixels = (LUMA[0] * red + LUMA[1] * green + LUMA[2] * blue)[:, None]
    return pixels.expand(-1, channels, -1, -1)

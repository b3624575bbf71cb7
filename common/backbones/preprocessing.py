"""From images of any size to a backbone's input; every rule is a public constant or looks at one record only."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias, get_args

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from common.errors import ConfigError

LUMA = (0.299, 0.587, 0.114)
"""Weights of red, green and blue in grey (ITU-R BT.601)."""

_VALUES_AT_A_TIME = 2**21  # 8 MiB of float32; fresh memory for more costs more than the arithmetic

Constants: TypeAlias = float | tuple[float, ...]
Interpolation = Literal["bilinear", "bicubic"]


@dataclass(frozen=True)
class ImagePreprocessing:
    """Resize to a square, then centre and scale by constants that travel with the backbone.

    Nothing is measured over records, so that a record's features say nothing of its neighbours. Brightness is kept: how
    dark a scan's background is tells much about its kind.

    Attributes:
        size: side of the square, pixels.
        channels: 1 (grey) or 3.
        mean: subtracted from pixels in [0, 1]; one number, or one for each channel.
        std: what they are divided by then; alike.
        shorter_side: where given, the image is resized so that its shorter side has this many pixels, and the square is
            cut out of its middle; otherwise the whole image becomes the square and its aspect ratio is not kept.
        interpolation: ``"bilinear"`` or ``"bicubic"``, always with antialiasing.

    Raises:
        ConfigError: a setting that cannot be met.
    """

    size: int
    channels: int
    mean: Constants = 0.5
    std: Constants = 0.25
    shorter_side: int | None = None
    interpolation: Interpolation = "bilinear"

    def __post_init__(self) -> None:
        if self.interpolation not in get_args(Interpolation) or (self.shorter_side or self.size) < self.size:
            raise ConfigError(
                f"expected bilinear or bicubic interpolation and a shorter side of at least the size, got "
                f"{self.interpolation!r} and {self.shorter_side} for {self.size} pixels; correct the preprocessing"
            )
        _ = self._mean, self._std

    @classmethod
    def from_description(cls, described: Mapping[str, Any]) -> ImagePreprocessing:
        """Undo ``describe``.

        Raises:
            ConfigError: it describes something else.
        """
        try:
            made = cls(
                size=described["size"],
                channels=described["channels"],
                mean=_constants(described["mean"]),
                std=_constants(described["std"]),
                shorter_side=described.get("shorter_side"),
                interpolation=described["resize"].removesuffix("-antialias"),
            )
        except (KeyError, TypeError, AttributeError) as error:
            raise ConfigError(f"expected the preprocessing of images, got one without {error}; pack it anew") from error
        if made.describe() != dict(described):
            raise ConfigError("expected a preprocessing that this version knows, got another; pack the backbone anew")
        return made

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
            step = max(1, _VALUES_AT_A_TIME // max(1, images[0].size))
            parts = [self._prepare(images[start : start + step]) for start in range(0, len(images), step)]
        else:
            parts = [self._prepare(np.asarray(image)[None]) for image in images]
        return torch.cat(parts)

    def describe(self) -> dict[str, Any]:
        """Name everything that decides the result; part of a backbone's digest."""
        crop = {} if self.shorter_side is None else {"shorter_side": self.shorter_side}
        return {
            "size": self.size,
            "channels": self.channels,
            "mean": _plain(self.mean),
            "std": _plain(self.std),
            **crop,
            "resize": f"{self.interpolation}-antialias",
            "luma": list(LUMA),
            "opacity": "white",
        }

    def _prepare(self, images: np.ndarray) -> Tensor:
        pixels = _as_channels(images, self.channels)  # (N, C, H, W) in [0, 1]; grey stays one channel to the end
        height, width = pixels.shape[2:]
        to = (self.size, self.size)
        if self.shorter_side is not None:
            to = _scaled(height, width, self.shorter_side)
        resized = functional.interpolate(pixels, size=to, mode=self.interpolation, antialias=True, align_corners=False)
        square = _middle(resized, self.size)
        if self.interpolation == "bicubic":
            square = square.clamp(0, 1)  # it overshoots at edges; 8-bit pixels, which weights are trained on, cannot
        return self.scale(square).expand(-1, self.channels, -1, -1)

    def scale(self, pixels: Tensor) -> Tensor:
        """Centre and scale pixels in [0, 1] by the constants."""
        return (pixels - self._mean) / self._std

    @property
    def _mean(self) -> Tensor | float:
        return self._by_channel(self.mean)

    @property
    def _std(self) -> Tensor | float:
        return self._by_channel(self.std)

    def _by_channel(self, constants: Constants) -> Tensor | float:
        if isinstance(constants, float | int):
            return constants
        if len(constants) != self.channels:
            raise ConfigError(
                f"expected one constant or {self.channels} for the preprocessing, got {len(constants)}; correct them"
            )
        return torch.tensor(constants).reshape(-1, 1, 1)


def _scaled(height: int, width: int, shorter: int) -> tuple[int, int]:
    """Height and width of an image whose shorter side gets that length, as torchvision rounds them."""
    if height <= width:
        return shorter, int(shorter * width / height)
    return int(shorter * height / width), shorter


def _middle(pixels: Tensor, size: int) -> Tensor:
    """The square in the middle of (N, C, H, W), no smaller than it."""
    top = round((pixels.shape[2] - size) / 2.0)
    left = round((pixels.shape[3] - size) / 2.0)
    return pixels[:, :, top : top + size, left : left + size]


def _plain(constants: Constants) -> float | list[float]:
    return constants if isinstance(constants, float | int) else list(constants)


def _constants(described: float | list[float]) -> Constants:
    return described if isinstance(described, float | int) else tuple(described)


def _as_channels(images: np.ndarray, channels: int) -> Tensor:
    """From (N, H, W[, C]) uint8 to (N, channels, H, W), or grey to (N, 1, H, W), float32 in [0, 1]."""
    if images.ndim == 3:
        images = images[..., None]
    if images.dtype != np.uint8 or images.ndim != 4 or images.shape[3] not in (1, 3, 4) or 0 in images.shape[1:]:
        shape = " x ".join(map(str, images.shape[1:]))
        raise ConfigError(
            f"expected uint8 images of height x width, or height x width x 1, 3 or 4 channels, "
            f"got {images.dtype} of {shape}; convert them to 8-bit grey or RGB"
        )
    if min(images.strides) < 0:  # reversed, which torch does not take
        images = images.copy()
    pixels = torch.from_numpy(np.ascontiguousarray(images.transpose(0, 3, 1, 2))).float() / 255
    if pixels.shape[1] == 4:
        opacity = pixels[:, 3:]
        pixels = pixels[:, :3] * opacity + (1 - opacity)
    if channels == 1 and pixels.shape[1] == 3:
        red, green, blue = pixels.unbind(1)
        pixels = (LUMA[0] * red + LUMA[1] * green + LUMA[2] * blue)[:, None]
    return pixels

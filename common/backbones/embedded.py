"""The embedded network: a small residual network whose every stage leaves a coarse summary in the features."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

STAGES = ("stem", "stage1", "stage2", "stage3", "pool")

_GROUP = 16
_CONTRAST_FLOOR = 0.1
_DEVIATION_FLOOR = 1e-4
_SMALLEST = torch.finfo(torch.float32).tiny


@dataclass(frozen=True)
class Architecture:
    """What the embedded network is made of.

    Attributes:
        size: side of the square input, pixels.
        widths: channels of stages 1 to 3, multiples of 16; stage k works on a map of side ``size / 2**k``.
        blocks: residual blocks of each stage.
        grid: side of the grid that a stage's map is averaged to, so that coarse position survives.
        bins: of the histogram of brightness that the summary starts with.
        thumbnail: side of the small picture that comes after it.
        emphasis: how strongly each of ``summary_parts`` counts, entry by entry, so that the many entries of the upper
            stages do not drown the few of the others.
        features: D, how many the summary is reduced to.
        whitening: from 0, principal directions as strong as they are, to 1, all equally strong.
    """

    size: int = 32
    widths: tuple[int, int, int] = (32, 64, 128)
    blocks: tuple[int, int, int] = (1, 2, 2)
    grid: int = 2
    bins: int = 16
    thumbnail: int = 8
    emphasis: tuple[float, ...] = (3.0, 2.0, 3.0, 3.0, 2.0, 1.0, 1.0, 1.0)
    features: int = 256
    whitening: float = 0.25

    @property
    def summary_size(self) -> int:
        """F, the length of the summary of all stages."""
        return sum(self.summary_parts)

    @property
    def summary_parts(self) -> tuple[int, ...]:
        """Lengths of the summary's parts: histogram, thumbnail, then each stage's deviations and its coarse grid."""
        stages = [length for width in self.widths for length in (width, self.grid**2 * width)]
        return (self.bins, self.thumbnail**2, *stages)

    def describe(self) -> dict[str, Any]:
        """Name everything but the weights that decides what the network computes; part of the digest."""
        return {"family": "summarised-resnet-v1", "normalisation": "group", **_plain(asdict(self))}


class Residual(nn.Module):
    """Two 3x3 convolutions with GroupNorm beside a shortcut; the first may halve the map."""

    def __init__(self, channels_in: int, channels: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels_in, channels, 3, stride, 1, bias=False)
        self.norm1 = nn.GroupNorm(channels // _GROUP, channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, 1, 1, bias=False)
        self.norm2 = nn.GroupNorm(channels // _GROUP, channels)
        self.shortcut = nn.Identity() if channels == channels_in else nn.Conv2d(channels_in, channels, 1, bias=False)
        self.stride = stride

    def forward(self, map_: Tensor) -> Tensor:
        """(N, C_in, S, S) -> (N, C, S / stride, S / stride)."""
        inner = functional.relu(self.norm1(self.conv1(map_)))
        inner = self.norm2(self.conv2(inner))
        beside = functional.avg_pool2d(map_, self.stride) if self.stride > 1 else map_
        return functional.relu(inner + self.shortcut(beside))


class Stem(nn.Module):
    """The first convolution, over the image at its own contrast; halves it and starts the summary.

    Contrast is taken away because shapes are then learnt much faster. What it said goes straight into the summary: a
    histogram of the brightness and a small picture, neither of them trained.
    """

    def __init__(self, channels: int, *, bins: int, thumbnail: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, channels, 5, 2, 2, bias=False)
        self.norm = nn.GroupNorm(channels // _GROUP, channels)
        self.bins, self.thumbnail = bins, thumbnail

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """(N, 1, S, S) -> a map (N, C, S / 2, S / 2) and a summary (N, bins + thumbnail²)."""
        map_ = functional.relu(self.norm(self.conv(standardise(images))))
        picture = functional.adaptive_avg_pool2d(images, self.thumbnail).flatten(1)
        return map_, torch.cat([histogram(images, self.bins), picture], dim=1)


class Stage(nn.Module):
    """Residual blocks; to the summary they add what they end with: its deviation over the image, its mean on a grid."""

    def __init__(self, channels_in: int, channels: int, blocks: int, *, stride: int, grid: int) -> None:
        super().__init__()
        inner = [Residual(channels, channels, 1) for _ in range(blocks - 1)]
        self.blocks = nn.Sequential(Residual(channels_in, channels, stride), *inner)
        self.grid = grid

    def forward(self, before: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        """Map (N, C_in, S, S) and summary (N, F) -> map (N, C, S', S') and summary (N, F + C + grid² C)."""
        map_, summary = before
        map_ = self.blocks(map_)
        pooled = functional.adaptive_avg_pool2d(map_, self.grid).flatten(1)
        return map_, torch.cat([summary, deviations(map_), pooled], dim=1)


class Pool(nn.Module):
    """Features from the summary, by public constants; then scaled to one norm for every record.

    The constants centre the summary and turn it onto the directions in which drawn images differ most: fewer
    features mean less noise under differential privacy. The norm is sqrt(D), so that a record's gradient in a linear
    head is bounded by its error alone, which suits clipping.
    """

    mean: Tensor
    projection: Tensor

    def __init__(self, summary: int, features: int) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(summary))
        self.register_buffer("projection", torch.zeros(summary, features))

    def forward(self, before: tuple[Tensor, Tensor]) -> Tensor:
        """Map and summary (N, F) -> features (N, D)."""
        _, summary = before
        features = (summary - self.mean) @ self.projection
        scaled: Tensor = functional.normalize(features, dim=1) * math.sqrt(features.shape[1])
        return scaled

    def calibrate(self, summaries: Tensor, emphasis: Tensor, whitening: float) -> None:
        """Measure the constants on the summaries (N, F) of public images, N >= D.

        Every entry is scaled to a deviation of its ``emphasis`` (F,); the principal directions of that are kept, each
        divided by its deviation to the power of ``whitening``.
        """
        summaries = summaries.double()
        scale = emphasis.double() / summaries.std(dim=0).clamp_min(_DEVIATION_FLOOR)
        self.mean.copy_(summaries.mean(dim=0))
        variances, directions = torch.linalg.eigh(((summaries - summaries.mean(dim=0)) * scale).T.cov())
        kept = self.projection.shape[1]
        strongest = variances.flip(0)[:kept].clamp_min(_DEVIATION_FLOOR**2)
        self.projection.copy_(scale[:, None] * directions.flip(1)[:, :kept] / strongest.pow(whitening / 2))


def standardise(images: Tensor) -> Tensor:
    """Give each image (N, 1, S, S) mean 0 and deviation 1 by its own pixels; blank ones stay blank."""
    centred = images - images.mean(dim=(1, 2, 3), keepdim=True)
    deviation = centred.square().mean(dim=(1, 2, 3), keepdim=True).sqrt()
    return centred / deviation.clamp_min(_CONTRAST_FLOOR)


def deviations(maps: Tensor) -> Tensor:
    """The standard deviation of each channel of (N, C, S, S) over its map, (N, C); 0 with a slope of 0 where constant.

    ``torch.std`` goes through the values one by one, which took a tenth of the whole network's time.
    """
    centred = maps - maps.mean(dim=(2, 3), keepdim=True)
    variances = centred.square().sum(dim=(2, 3)) / (maps.shape[2] * maps.shape[3] - 1)
    return variances.clamp_min(_SMALLEST).sqrt()


def histogram(images: Tensor, bins: int) -> Tensor:
    """Square roots of a soft histogram of each image's brightness over [-2, 2], (N, bins); their squares sum to 1."""
    at = (images.flatten(1).clamp(-2, 2) + 2) * (bins - 1) / 4
    low = at.floor().clamp_max(bins - 2)
    counts = torch.zeros(len(images), bins, dtype=at.dtype, device=at.device)
    counts = counts.scatter_add(1, low.long(), low + 1 - at).scatter_add(1, low.long() + 1, at - low)
    return (counts / at.shape[1]).sqrt()


def build_stages(architecture: Architecture, seed: int = 0) -> nn.ModuleDict:
    """Make the stages with random weights.

    Args:
        architecture: what to build.
        seed: of the weights; the global generator is left as it was.

    Returns:
        The stages by name, in order, trainable and in training mode; the constants of ``pool`` are not measured yet.
    """
    widths, blocks, grid = architecture.widths, architecture.blocks, architecture.grid
    with _seeded(seed):
        return nn.ModuleDict(
            {
                "stem": Stem(widths[0], bins=architecture.bins, thumbnail=architecture.thumbnail),
                "stage1": Stage(widths[0], widths[0], blocks[0], stride=1, grid=grid),
                "stage2": Stage(widths[0], widths[1], blocks[1], stride=2, grid=grid),
                "stage3": Stage(widths[1], widths[2], blocks[2], stride=2, grid=grid),
                "pool": Pool(architecture.summary_size, architecture.features),
            }
        )


def summarise(stages: nn.ModuleDict, images: Tensor) -> Tensor:
    """Run every stage but the last.

    Args:
        stages: from ``build_stages``.
        images: preprocessed, (N, 1, S, S).

    Returns:
        The summary (N, D) of all stages, neither centred nor scaled; that of stage 3 comes last.
    """
    state = stages["stem"](images)
    for name in STAGES[1:-1]:
        state = stages[name](state)
    summary: Tensor = state[1]
    return summary


def calibrate(stages: nn.ModuleDict, images: Tensor, architecture: Architecture) -> None:
    """Measure the constants of ``pool`` on public, preprocessed images (N, 1, S, S)."""
    pool = stages["pool"]
    assert isinstance(pool, Pool)
    emphasis = torch.tensor(architecture.emphasis).repeat_interleave(torch.tensor(architecture.summary_parts))
    with torch.no_grad():
        summaries = torch.cat([summarise(stages, part) for part in torch.split(images, 256)])
        pool.calibrate(summaries, emphasis, architecture.whitening)


@contextmanager
def _seeded(seed: int) -> Iterator[None]:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        yield


def _plain(value: dict[str, Any]) -> dict[str, Any]:
    return {key: list(item) if isinstance(item, tuple) else item for key, item in value.items()}

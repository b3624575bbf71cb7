"""Families of drawn images: formulas with numbered classes, drawn in batches on any device.

A family fixes the formula of each class from its seed; drawing varies everything that should not matter. Images are
(N, S, S) float32 in [0, 1]. No picture that a human took, drew or labelled is used.
"""

from __future__ import annotations

import math
from typing import Protocol

import torch
from torch import Tensor

TAU = 2 * math.pi


class Family(Protocol):
    """A set of classes, each a formula, that can be drawn as often as one likes."""

    name: str
    classes: int

    def draw(self, labels: Tensor, size: int, generator: torch.Generator) -> Tensor:
        """Draw one image for each label.

        Args:
            labels: shape (N,), N > 0, int64, in [0, classes), on the generator's device.
            size: side of the images, pixels.
            generator: of everything that varies within a class.

        Returns:
            Shape (N, size, size), float32, in [0, 1].
        """
        ...


class Strokes:
    """Characters that nobody writes: one to four quadratic strokes, often joined end to end."""

    name = "strokes"

    def __init__(self, classes: int, seed: int, device: str = "cpu") -> None:
        self.classes = classes
        generator = torch.Generator().manual_seed(seed)
        points = torch.rand(classes, 4, 3, 2, generator=generator) * 0.84 + 0.08
        joined = torch.rand(classes, 3, generator=generator) < 0.5
        for stroke in range(1, 4):
            points[:, stroke, 0] = torch.where(
                joined[:, stroke - 1, None], points[:, stroke - 1, 2], points[:, stroke, 0]
            )
        self._points = points.to(device)  # (K, strokes, control points, xy)
        self._strokes = torch.randint(1, 5, (classes,), generator=generator).to(device)

    def draw(self, labels: Tensor, size: int, generator: torch.Generator) -> Tensor:
        """Jitter the control points, bend, turn and stretch the whole, and draw it with a pen of some width."""
        n, device = len(labels), labels.device
        points = self._points[labels] + 0.035 * _normal((n, 4, 3, 2), generator, device)
        points = _place(points.view(n, 12, 2), generator).view(n, 4, 3, 2)
        t = torch.linspace(0, 1, 20, device=device)[:, None]
        start, bend, end = (points[:, :, None, k] for k in range(3))  # (N, strokes, 1, 2)
        curve = (1 - t) ** 2 * start + 2 * t * (1 - t) * bend + t**2 * end  # (N, strokes, 20, 2)
        drawn = torch.arange(4, device=device) < self._strokes[labels][:, None]
        curve = torch.where(drawn[:, :, None, None], curve, 9.0).view(n, -1, 2)
        width = _uniform((n, 1, 1), 0.018, 0.075, generator, device)
        soft = _uniform((n, 1, 1), 0.008, 0.03, generator, device)
        return torch.sigmoid((width - _distance(curve, size)) / soft)


class Textures:
    """Band-passed noise: a band of frequencies, a direction and a squashing each."""

    name = "textures"

    def __init__(self, classes: int, seed: int, device: str = "cpu") -> None:
        self.classes = classes
        generator = torch.Generator().manual_seed(seed)
        draws = torch.rand(classes, 5, generator=generator)
        low, high = math.log(0.02), math.log(0.4)
        self._frequency = torch.exp(low + (high - low) * draws[:, 0]).to(device)  # cycles per pixel at 32 pixels
        self._band = (0.15 + 0.5 * draws[:, 1]).to(device)
        self._angle = (math.pi * draws[:, 2]).to(device)
        self._spread = torch.exp(-1.6 + 3.2 * draws[:, 3]).to(device)
        self._squash = torch.exp(-1 + 3 * draws[:, 4]).to(device)

    def draw(self, labels: Tensor, size: int, generator: torch.Generator) -> Tensor:
        """Filter fresh white noise; frequency and direction wobble a little."""
        n, device = len(labels), labels.device
        fy = torch.fft.fftfreq(size, device=device)[:, None] * size / 32
        fx = torch.fft.rfftfreq(size, device=device)[None, :] * size / 32
        radius, direction = torch.sqrt(fx**2 + fy**2) + 1e-6, torch.atan2(fy, fx)
        centre = self._frequency[labels] * torch.exp(0.08 * _normal((n,), generator, device))
        angle = self._angle[labels] + 0.15 * _normal((n,), generator, device)
        ring = -(((radius.log() - centre.log()[:, None, None]) / self._band[labels][:, None, None]) ** 2)
        fan = (torch.cos(2 * (direction - angle[:, None, None])) - 1) * self._spread[labels][:, None, None]
        noise = torch.fft.rfft2(_normal((n, size, size), generator, device))
        wave = torch.fft.irfft2(noise * torch.exp(ring + fan), s=(size, size))
        wave = wave / wave.std(dim=(1, 2), keepdim=True).clamp_min(1e-6)
        return torch.sigmoid(wave * self._squash[labels][:, None, None])


class Ellipses:
    """Arrangements of three to seven shaded ellipses, one over the other, like organs in a slice."""

    name = "ellipses"

    def __init__(self, classes: int, seed: int, device: str = "cpu") -> None:
        self.classes = classes
        generator = torch.Generator().manual_seed(seed)
        draws = torch.rand(classes, 7, 7, generator=generator)
        draws[:, 0, :2] = 0.35 + 0.3 * draws[:, 0, :2]  # the first one is the body: large and central
        axes = 0.06 + 0.26 * draws[:, :, 2:4]
        axes[:, 0] = 0.25 + 0.25 * draws[:, 0, 2:4]
        self._centre, self._axes = draws[:, :, :2].to(device), axes.to(device)
        self._angle, self._shade = (math.pi * draws[:, :, 4]).to(device), draws[:, :, 5].to(device)
        self._soft = (0.03 + 0.4 * draws[:, :, 6] ** 2).to(device)
        self._count = torch.randint(3, 8, (classes,), generator=generator).to(device)

    def draw(self, labels: Tensor, size: int, generator: torch.Generator) -> Tensor:
        """Move, turn and shade each ellipse a little and the whole some more; the light may come from a side."""
        n, device = len(labels), labels.device
        centre = self._centre[labels] + 0.02 * _normal((n, 7, 2), generator, device)
        axes = self._axes[labels] * torch.exp(0.1 * _normal((n, 7, 2), generator, device))
        angle = self._angle[labels] + 0.12 * _normal((n, 7), generator, device)
        shade = self._shade[labels] + 0.06 * _normal((n, 7), generator, device)
        grid = _place(_grid(size, device).expand(n, -1, 2), generator, turn=0.2, stretch=0.15)
        image = _uniform((n, 1), 0, 0.3, generator, device).expand(n, size * size)
        for k in range(7):
            cover = _ellipse(grid, centre[:, k], axes[:, k], angle[:, k], self._soft[labels, k])
            cover = cover * (k < self._count[labels])[:, None]
            image = image + cover * (shade[:, k, None] - image)
        slope = 0.3 * _normal((n, 1, 2), generator, device)
        image = image + ((_grid(size, device) - 0.5) * slope).sum(-1)
        return image.clamp(0, 1).view(n, size, size)


class Fractals:
    """Iterated function systems of two to four affine maps, drawn by the chaos game.

    Source: Kataoka et al. 2020, arXiv:2101.08515.
    """

    name = "fractals"

    def __init__(self, classes: int, seed: int, device: str = "cpu") -> None:
        self.classes = classes
        generator = torch.Generator().manual_seed(seed)
        turn = torch.rand(classes, 4, 2, generator=generator) * TAU
        scale = 0.2 + 0.6 * torch.rand(classes, 4, 2, generator=generator)
        scale = scale * torch.sign(torch.rand(classes, 4, 2, generator=generator) - 0.25)
        matrix = _rotation(turn[..., 0]) @ torch.diag_embed(scale) @ _rotation(turn[..., 1])
        self._matrix = matrix.to(device)
        self._shift = (torch.rand(classes, 4, 2, generator=generator) * 2 - 1).to(device)
        self._maps = torch.randint(2, 5, (classes,), generator=generator).to(device)

    def draw(self, labels: Tensor, size: int, generator: torch.Generator) -> Tensor:
        """Wobble the maps, let 192 points jump 24 times and count where the last 10 jumps landed."""
        n, device, points = len(labels), labels.device, 192
        matrix = self._matrix[labels] + 0.03 * _normal((n, 4, 2, 2), generator, device)
        shift = self._shift[labels] + 0.03 * _normal((n, 4, 2), generator, device)
        rows = torch.arange(n, device=device)[:, None]
        at, landed = torch.zeros(n, points, 2, device=device), []
        for jump in range(24):
            chance = torch.rand(n, points, generator=generator, device=device)
            which = (chance * self._maps[labels][:, None]).long()
            at = (matrix[rows, which] @ at[..., None])[..., 0] + shift[rows, which]
            if jump >= 14:
                landed.append(at)
        return _count(torch.cat(landed, dim=1), size)


class Chests:
    """Two dark lungs, a bright heart and ribs; what the class decides is where haze lies, how much and how grainy."""

    name = "chests"

    def __init__(self, classes: int, seed: int, device: str = "cpu") -> None:
        self.classes = classes
        generator = torch.Generator().manual_seed(seed)
        draws = torch.rand(classes, 6, generator=generator)
        self._at = torch.stack([0.25 + 0.5 * draws[:, 0], 0.25 + 0.5 * draws[:, 1]], dim=1).to(device)
        self._reach = (0.08 + 0.4 * draws[:, 2] ** 2).to(device)
        self._haze = (0.75 * draws[:, 3]).to(device)
        self._grain = (0.03 + 0.22 * draws[:, 4]).to(device)
        self._patchy = (draws[:, 5]).to(device)

    def draw(self, labels: Tensor, size: int, generator: torch.Generator) -> Tensor:
        """Draw another body each time; the haze keeps its place, amount and grain."""
        n, device = len(labels), labels.device
        grid = _place(_grid(size, device).expand(n, -1, 2), generator, turn=0.08, stretch=0.1)
        image, lungs = _thorax(n, grid, generator)
        haze = self._haze[labels][:, None] * torch.exp(0.15 * _normal((n, 1), generator, device))
        near = ((grid - self._at[labels][:, None]) ** 2).sum(-1) / self._reach[labels][:, None] ** 2
        clouds = _clouds(n, size, self._grain[labels], generator).view(n, -1)
        patchy = self._patchy[labels][:, None]
        haze = haze * torch.exp(-near) * (1 - patchy + patchy * torch.sigmoid(2.5 * clouds))
        image = image + haze * lungs * (0.85 - image) + 0.02 * _normal((n, size * size), generator, device)
        return image.clamp(0, 1).view(n, size, size)


def _thorax(n: int, grid: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """A chest without haze: image and lung cover, both (N, S²)."""
    device = grid.device
    shape = torch.exp(0.12 * _normal((n, 12), generator, device))
    move = 0.02 * _normal((n, 8), generator, device)
    turn = 0.1 * _normal((n, 3), generator, device)

    def ellipse(k: int, x: float, y: float, a: float, b: float, angle: Tensor, soft: float) -> Tensor:
        centre = torch.stack([x + move[:, 2 * k], y + move[:, 2 * k + 1]], dim=1)
        axes = torch.stack([a * shape[:, 2 * k], b * shape[:, 2 * k + 1]], dim=1)
        return _ellipse(grid, centre, axes, angle, torch.full((n,), soft, device=device))

    body = ellipse(0, 0.5, 0.55, 0.5, 0.6, 0 * turn[:, 0], 0.15)
    left = ellipse(1, 0.3, 0.48, 0.14, 0.3, turn[:, 0] + 0.12, 0.25)
    right = ellipse(2, 0.7, 0.48, 0.14, 0.3, turn[:, 1] - 0.12, 0.25)
    heart = ellipse(3, 0.56, 0.62, 0.14, 0.17, turn[:, 2] + 0.5, 0.3)
    lungs = torch.maximum(left, right)
    tone = _uniform((n, 4), 0.0, 1.0, generator, device)
    image = body * (0.55 + 0.25 * tone[:, :1])
    image = image - lungs * body * (0.3 + 0.3 * tone[:, 1:2])
    image = image + heart * (0.2 + 0.25 * tone[:, 2:3])
    x, y = grid.unbind(-1)
    spine = torch.exp(-(((x - 0.5) / 0.05) ** 2))
    waves = torch.cos(TAU * (y + 0.6 * (x - 0.5).abs()) * (7 * shape[:, 8:9]) + TAU * tone[:, 3:4])
    return image + 0.15 * spine * body + 0.09 * tone[:, 3:4] * waves * lungs, lungs


def _clouds(n: int, size: int, grain: Tensor, generator: torch.Generator) -> Tensor:
    """Smooth noise of unit deviation, (N, S, S); ``grain`` is its length in image sides."""
    fy = torch.fft.fftfreq(size, device=grain.device)[:, None] * size
    fx = torch.fft.rfftfreq(size, device=grain.device)[None, :] * size
    low_pass = torch.exp(-(fx**2 + fy**2) * (grain[:, None, None] * 2) ** 2)
    noise = torch.fft.rfft2(_normal((n, size, size), generator, grain.device))
    clouds: Tensor = torch.fft.irfft2(noise * low_pass, s=(size, size))
    clouds = clouds - clouds.mean(dim=(1, 2), keepdim=True)
    return clouds / clouds.std(dim=(1, 2), keepdim=True).clamp_min(1e-6)


def _place(points: Tensor, generator: torch.Generator, *, turn: float = 0.22, stretch: float = 0.14) -> Tensor:
    """Turn, stretch, shear and move points (N, P, 2) of the unit square about its middle."""
    n, device = len(points), points.device
    angle = turn * _normal((n,), generator, device)
    scale = torch.exp(stretch * _normal((n, 2), generator, device))
    matrix = _rotation(angle) @ torch.diag_embed(scale)
    matrix[:, 0, 1] += 0.15 * _normal((n,), generator, device)
    moved = (points - 0.5) @ matrix.transpose(1, 2)
    return moved + 0.5 + 0.045 * _normal((n, 1, 2), generator, device)


def _grid(size: int, device: torch.device) -> Tensor:
    """Pixel centres (1, S², xy) in the unit square, row by row."""
    line = (torch.arange(size, device=device) + 0.5) / size
    y, x = torch.meshgrid(line, line, indexing="ij")
    return torch.stack([x, y], dim=-1).view(1, -1, 2)


def _distance(points: Tensor, size: int) -> Tensor:
    """Distance (N, S, S) of each pixel to the nearest of the points (N, P, 2)."""
    grid = _grid(size, points.device)
    # |p - g|² = |p|² - 2 p·g + |g|²: the first two terms as one product, since memory traffic is what this costs
    lifted = torch.cat([-2 * points, points.square().sum(-1, keepdim=True)], dim=-1)
    onto = torch.cat([grid, torch.ones_like(grid[..., :1])], dim=-1).transpose(1, 2)
    nearest = (lifted @ onto).amin(dim=1) + grid.square().sum(-1)
    return nearest.clamp_min(0).sqrt().view(-1, size, size)


def _ellipse(grid: Tensor, centre: Tensor, axes: Tensor, angle: Tensor, soft: Tensor) -> Tensor:
    """Cover (N, S²) in [0, 1] of an ellipse with a soft edge; centre and axes (N, 2), angle and soft (N,)."""
    local = (grid - centre[:, None]) @ _rotation(angle)
    radius = (local / axes[:, None]).square().sum(-1).add(1e-9).sqrt()
    cover: Tensor = torch.sigmoid((1 - radius) / soft[:, None].clamp_min(0.02) * 2)
    return cover


def _count(points: Tensor, size: int) -> Tensor:
    """A picture (N, S, S) of how many of the points (N, P, 2) fall on each pixel, framed to their bulk."""
    n = len(points)
    points = points.nan_to_num(0, 0, 0).clamp(-1e4, 1e4)
    middle = points.mean(dim=1, keepdim=True)
    spread = points.std(dim=1, keepdim=True).amax(dim=2, keepdim=True).clamp_min(1e-6)
    cell = (((points - middle) / (4.2 * spread) + 0.5) * size).floor().long().clamp(0, size - 1)
    flat = cell[..., 1] * size + cell[..., 0] + torch.arange(n, device=points.device)[:, None] * size * size
    counts = torch.bincount(flat.flatten(), minlength=n * size * size).view(n, -1).float()
    return (counts / (4.0 * counts.mean(dim=1, keepdim=True))).clamp(0, 1).sqrt().view(n, size, size)


def _rotation(angle: Tensor) -> Tensor:
    """Rotation matrices (…, 2, 2)."""
    cos, sin = torch.cos(angle), torch.sin(angle)
    return torch.stack([torch.stack([cos, -sin], -1), torch.stack([sin, cos], -1)], -2)


def _normal(shape: tuple[int, ...], generator: torch.Generator, device: torch.device) -> Tensor:
    return torch.randn(shape, generator=generator, device=device)


def _uniform(
    shape: tuple[int, ...], low: float, high: float, generator: torch.Generator, device: torch.device
) -> Tensor:
    return low + (high - low) * torch.rand(shape, generator=generator, device=device)

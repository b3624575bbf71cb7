"""What every drawn image suffers before the network sees it: resolution, blur, contrast, inversion, noise."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

_GROUPS = 8


def distort(images: Tensor, generator: torch.Generator) -> Tensor:
    """Vary what differs between cameras, scanners and scribes.

    Args:
        images: shape (N, S, S), in [0, 1]; neighbours share a resolution, so give them in random order.
        generator: of the distortions, on the images' device.

    Returns:
        Shape (N, S, S), in [0, 1].
    """
    n, device = len(images), images.device

    def uniform(low: float, high: float) -> Tensor:
        return low + (high - low) * torch.rand(n, 1, 1, generator=generator, device=device)

    images = torch.cat([_coarsen(part, generator) for part in images.chunk(_GROUPS)])
    images = images.clamp(1e-4, 1) ** torch.exp(uniform(-0.4, 0.4))
    images = torch.where(uniform(0, 1) < 0.25, 1 - images, images)
    contrast = 1 - uniform(-0.5, 0.5).clamp_min(0)
    images = images * contrast + (1 - contrast) * uniform(0, 1)
    noise = torch.randn(images.shape, generator=generator, device=device)
    return (images + uniform(0, 0.3).square() * noise).clamp(0, 1)


def _coarsen(images: Tensor, generator: torch.Generator) -> Tensor:
    """Shrink to a resolution of 8 pixels and up, then enlarge again."""
    size = images.shape[-1]
    drawn = torch.rand((), generator=generator, device=generator.device).item()
    side = round(8 * (size * 1.5 / 8) ** drawn)
    if side >= size or len(images) == 0:
        return images
    small = functional.interpolate(images[:, None], size=(side, side), mode="bilinear", antialias=True)
    return functional.interpolate(small, size=(size, size), mode="bilinear", align_corners=False)[:, 0]

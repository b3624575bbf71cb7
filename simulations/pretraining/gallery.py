"""The recipe's pictures: all families behind one numbering of classes, drawn afresh for every batch."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch import Tensor

from common.backbones.embedded import Architecture
from common.errors import ConfigError
from simulations.pretraining.distortion import distort
from simulations.pretraining.families import Chests, Ellipses, Family, Fractals, Strokes, Textures

FAMILIES: Mapping[str, Callable[[int, int, str], Family]] = {
    "strokes": Strokes,
    "textures": Textures,
    "ellipses": Ellipses,
    "fractals": Fractals,
    "chests": Chests,
}


@dataclass(frozen=True)
class Share:
    """What a family contributes.

    Attributes:
        classes: how many formulas.
        part: of each batch.
    """

    classes: int
    part: float


def _mixture() -> dict[str, Share]:
    return {
        "strokes": Share(800, 0.5),
        "textures": Share(200, 0.12),
        "ellipses": Share(300, 0.18),
        "fractals": Share(300, 0.08),
        "chests": Share(100, 0.12),
    }


@dataclass(frozen=True)
class Recipe:
    """Everything that decides the weights, apart from the arithmetic of the machine.

    Attributes:
        seed: of formulas, drawings and initial weights.
        images: how many are drawn and learnt from in all.
        batch: images of a step.
        learning_rate: the largest; it rises over the first 5 % of the steps and falls to zero by a cosine.
        weight_decay: of AdamW.
        mixture: the families, by name; their parts sum to 1.
        calibration: images that the public constants are measured on.
        architecture: the network.
    """

    seed: int = 0
    images: int = 640_000
    batch: int = 128
    learning_rate: float = 3e-3
    weight_decay: float = 0.02
    mixture: Mapping[str, Share] = field(default_factory=_mixture)
    calibration: int = 1024
    architecture: Architecture = field(default_factory=Architecture)

    @property
    def steps(self) -> int:
        """Optimiser steps in all."""
        return max(1, self.images // self.batch)

    def describe(self) -> dict[str, Any]:
        """As JSON values, for the model card."""
        described = asdict(self)
        described["architecture"] = self.architecture.describe()
        return described


class Gallery:
    """The drawings of a recipe."""

    def __init__(self, recipe: Recipe, device: str = "cpu") -> None:
        """Draw the formulas of every class from the recipe's seed.

        Raises:
            ConfigError: a family has an unknown name, or the parts do not sum to 1.
        """
        names = sorted(recipe.mixture)
        unknown = sorted(set(names) - set(FAMILIES))
        total = sum(share.part for share in recipe.mixture.values())
        if unknown or abs(total - 1) > 1e-6:
            raise ConfigError(
                f"expected families among {', '.join(FAMILIES)} with parts that sum to 1, got {unknown or names} with "
                f"{total:g}; correct the mixture"
            )
        self._size, self._parts = recipe.architecture.size, [recipe.mixture[name].part for name in names]
        self._families = [
            FAMILIES[name](recipe.mixture[name].classes, 1000 * recipe.seed + k, device) for k, name in enumerate(names)
        ]
        self.classes = sum(family.classes for family in self._families)

    def draw(self, count: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Draw a mixed batch.

        Args:
            count: images wanted; each family draws its rounded part, one at least.
            generator: of everything drawn, on the gallery's device.

        Returns:
            Distorted images (N, S, S), float32, in [0, 1], and labels (N,), int64, both in random order.
        """
        images, labels, first = [], [], 0
        for family, part in zip(self._families, self._parts, strict=True):
            wanted = max(1, round(count * part))
            drawn = torch.randint(family.classes, (wanted,), generator=generator, device=generator.device)
            images.append(family.draw(drawn, self._size, generator))
            labels.append(drawn + first)
            first += family.classes
        numbered = torch.cat(labels)
        order = torch.randperm(len(numbered), generator=generator, device=generator.device)
        return distort(torch.cat(images)[order], generator), numbered[order]

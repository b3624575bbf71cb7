"""Pre-train the embedded backbone: ``python -m simulations.pretraining --out FOLDER``."""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import torch
from torch import nn

from common.backbones.registry import EMBEDDED
from simulations.pretraining.asset import save_asset
from simulations.pretraining.gallery import Recipe
from simulations.pretraining.training import measure, train


class Progress:
    """Prints a line every 200 steps."""

    def __init__(self, steps: int) -> None:
        self._steps, self._start, self._loss = steps, time.monotonic(), 0.0

    def __call__(self, step: int, loss: float, stages: nn.ModuleDict) -> None:
        """Take one step's loss."""
        self._loss = loss if step == 1 else 0.98 * self._loss + 0.02 * loss
        if step % 200 == 0 or step == self._steps:
            print(f"step {step} of {self._steps}, loss {self._loss:.3f}, {self.seconds():.0f} s", flush=True)

    def seconds(self) -> float:
        """Time since the beginning."""
        return time.monotonic() - self._start


def main() -> None:
    """Train, measure the constants, write the asset and print the digest to pin."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--name", default="embedded/glyph", choices=sorted(EMBEDDED))
    parser.add_argument("--out", type=Path, required=True, help="folder for the weights and the model card")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--images", type=int, default=Recipe().images, help="drawn and learnt from in all")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    spec = EMBEDDED[arguments.name]
    recipe = Recipe(seed=arguments.seed, images=arguments.images, architecture=spec.architecture)
    arguments.out.mkdir(parents=True, exist_ok=True)
    progress = Progress(recipe.steps)
    stages = train(recipe, spec.preprocessing, progress, device=arguments.device)
    calibration = measure(stages, recipe, spec.preprocessing)
    cost = {"device": arguments.device, "threads": torch.get_num_threads(), "seconds": round(progress.seconds())}
    print("digest", save_asset(arguments.out, spec, stages, calibration, recipe, cost))


if __name__ == "__main__":
    main()

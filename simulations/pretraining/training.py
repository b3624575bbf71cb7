"""Pre-training: one softmax over the formulas of all families, on images drawn afresh for every step."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional

from common.backbones.embedded import build_stages, calibrate, summarise
from common.backbones.preprocessing import ImagePreprocessing
from simulations.pretraining.gallery import Gallery, Recipe

Report = Callable[[int, float, nn.ModuleDict], None]


def train(recipe: Recipe, preprocessing: ImagePreprocessing, report: Report, *, device: str = "cpu") -> nn.ModuleDict:
    """Train the stages of the embedded network.

    Args:
        recipe: seeds, mixture, length, network.
        preprocessing: whose constants scale the drawn images, which have the network's own size.
        report: called after each step with its number, its loss and the stages.
        device: a torch device, ``"cpu"`` or ``"cuda"``; convolutions run in bfloat16 on both.

    Returns:
        The stages, on the CPU, in training mode; the constants of ``pool`` are not measured yet.

    Guarantees:
        The same recipe on the same machine with the same number of threads gives the same weights.
    """
    generator = torch.Generator(device).manual_seed(recipe.seed)
    gallery = Gallery(recipe, device)
    stages = build_stages(recipe.architecture, recipe.seed).to(device).to(memory_format=torch.channels_last)
    head = Classifier(recipe, gallery.classes).to(device)
    parameters = [*stages.parameters(), *head.parameters()]
    optimizer = torch.optim.AdamW(
        parameters, recipe.learning_rate, (0.9, 0.98), weight_decay=recipe.weight_decay, fused=True
    )
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: _rate(step / recipe.steps))
    for step in range(1, recipe.steps + 1):
        images, labels = gallery.draw(recipe.batch, generator)
        loss = _loss(stages, head, preprocessing.scale(images)[:, None], labels)
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]  # torch leaves this one untyped
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        schedule.step()
        report(step, loss.item(), stages)
    return stages.cpu()


def measure(stages: nn.ModuleDict, recipe: Recipe, preprocessing: ImagePreprocessing) -> Tensor:
    """Measure the public constants of ``pool`` on drawn images.

    Returns:
        Those images, (N, S, S) uint8, so that others can measure the same.
    """
    generator = torch.Generator().manual_seed(recipe.seed + 1)
    drawn, _ = Gallery(recipe).draw(recipe.calibration, generator)
    images = (drawn * 255).round().to(torch.uint8)
    calibrate(stages, preprocessing(images.numpy()), recipe.architecture)
    return images


class Classifier(nn.Module):
    """A normalised linear layer on the last stage's coarse grid; it is thrown away after training."""

    def __init__(self, recipe: Recipe, classes: int) -> None:
        super().__init__()
        self._width = recipe.architecture.widths[-1] * recipe.architecture.grid**2
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(recipe.seed)
            self.layers = nn.Sequential(nn.LayerNorm(self._width), nn.Linear(self._width, classes))

    def forward(self, summary: Tensor) -> Tensor:
        """Summary (N, D) of all stages -> logits (N, K)."""
        logits: Tensor = self.layers(summary[:, -self._width :])
        return logits


def _loss(stages: nn.ModuleDict, head: Classifier, inputs: Tensor, labels: Tensor) -> Tensor:
    with torch.autocast(inputs.device.type, torch.bfloat16):
        logits = head(summarise(stages, inputs))
    return functional.cross_entropy(logits.float(), labels)


def _rate(progress: float) -> float:
    """Linear rise over the first 5 %, then half a cosine to zero; never quite zero at the start."""
    return min(progress / 0.05 + 1e-3, 0.5 * (1 + math.cos(math.pi * max(0.0, (progress - 0.05) / 0.95))))

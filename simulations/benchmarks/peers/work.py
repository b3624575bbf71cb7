"""The work that every program does: images with a pattern to learn, a ResNet-18 with fixed weights, one set of numbers.

The images are drawn, class by class, as a coarse pattern of colours under noise: what a frozen network tells apart with
a linear head, though not every time. The network's weights are drawn from a seed; its norms are measured on drawn
images of no class, so that its features have the sizes that a trained network's have.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file
from torchvision import models

from common.errors import ConfigError
from common.privacy.accountant import noise_multiplier_for

CLASSES, TEST = 5, 500
PATTERN = 8  # colours along a side
SEED = 0


@dataclass(frozen=True)
class Work:
    """What is to be done.

    Attributes:
        nodes: of the federation.
        records: images at each node.
        rounds: of federated averaging over all nodes.
        pixels: of an image's side.
        batch: expected images of a step; a round goes through the node's images once.
        learning_rate: of the node's SGD.
        clipping_norm: of one image's gradient.
        epsilon: over the whole run, at each node, for one image.
        delta: of that epsilon.
        test: held-out images.
    """

    nodes: int
    records: int
    rounds: int
    pixels: int
    batch: int = 40
    learning_rate: float = 0.5
    clipping_norm: float = 1.0
    epsilon: float = 8.0
    delta: float = 1e-5
    test: int = TEST

    @property
    def name(self) -> str:
        """As a setting is named: nodes x records x rounds @ pixels."""
        return f"{self.nodes}x{self.records}x{self.rounds}@{self.pixels}"

    @property
    def local_steps(self) -> int:
        """Steps of a node in a round."""
        return max(1, self.records // self.batch)

    @property
    def sampling_rate(self) -> float:
        """Chance of an image to be in a step."""
        return 1 / self.local_steps

    @property
    def noise_multiplier(self) -> float:
        """What the accountant asks for; peers that have its unit of privacy are given it, and so are the others."""
        return noise_multiplier_for(self.epsilon, self.delta, self.sampling_rate, self.rounds * self.local_steps)


def read(name: str) -> Work:
    """Read the name of a setting.

    >>> read("10x200x5@64").local_steps
    5

    Raises:
        ConfigError: it is no such name.
    """
    try:
        counts, pixels = name.split("@")
        nodes, records, rounds = map(int, counts.split("x"))
        work = Work(nodes, records, rounds, int(pixels))
    except ValueError:
        raise ConfigError(f"expected NODESxIMAGESxROUNDS@PIXELS as in 10x200x5@64, got {name!r}; correct it") from None
    if min(nodes, records, rounds) < 1 or work.pixels < 32:
        raise ConfigError(f"expected at least one node, image and round and 32 pixels, got {name}; correct it")
    return work if nodes * records > 2 * TEST else replace(work, test=100)


def lay_out(work: Work, folder: Path) -> Path:
    """Write images, weights and numbers into the folder; the file that a program is given."""
    images, weights, file = folder / f"{work.name}.npz", folder / "resnet18.safetensors", folder / f"{work.name}.json"
    if not weights.exists():
        _weights(weights)
    if not images.exists():
        _draw(work, images)
    numbers: dict[str, Any] = asdict(work) | {
        "images": str(images),
        "weights": str(weights),
        "classes": CLASSES,
        "local_steps": work.local_steps,
        "sampling_rate": work.sampling_rate,
        "noise_multiplier": work.noise_multiplier,
    }
    file.write_text(json.dumps(numbers, indent=1), encoding="utf-8")
    return file


def _draw(work: Work, path: Path) -> None:
    """Write images (N, H, W, 3) of 8 bits with labels, sites and the split; node by node, then the test."""
    generator = np.random.default_rng(SEED)
    count = work.nodes * work.records + work.test
    labels = generator.integers(0, CLASSES, count)
    patterns = generator.normal(0, 28, (CLASSES, PATTERN, PATTERN, 3)).astype(np.float32)
    images = np.empty((count, work.pixels, work.pixels, 3), np.uint8)
    cells = np.arange(work.pixels) * PATTERN // work.pixels
    for number, label in enumerate(labels):
        coarse = patterns[label] + generator.normal(0, 20, patterns[label].shape).astype(np.float32)
        fine = generator.normal(0, 16, (work.pixels, work.pixels, 3)).astype(np.float32)
        images[number] = np.clip(128 + coarse[cells][:, cells] + fine, 0, 255)
    sites = np.append(np.repeat(np.arange(work.nodes), work.records), np.zeros(work.test, int))
    site = np.array([f"node-{number:04d}" for number in sites])
    split = np.array(["train"] * (count - work.test) + ["test"] * work.test)
    np.savez(path, images=images, labels=labels, site=site, split=split)


def _weights(path: Path) -> None:
    """A ResNet-18 drawn from a seed, with norms measured on coarse patterns under noise."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(SEED)
        network = models.resnet18(weights=None)
        for module in network.modules():
            if isinstance(module, torch.nn.BatchNorm2d):
                module.momentum = None  # the mean over all batches
        with torch.no_grad():
            for _ in range(4):
                coarse = torch.nn.functional.interpolate(torch.randn(32, 3, PATTERN, PATTERN), size=(96, 96))
                network(coarse + 0.5 * torch.randn(32, 3, 96, 96))
    save_file(network.state_dict(), path)

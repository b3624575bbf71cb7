"""The table: what a linear probe makes of raw pixels, of random weights and of the trained backbone.

Run as ``python -m simulations.pretraining.table``.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean

import numpy as np
import torch
from sklearn.datasets import load_digits
from torch import Tensor

from common import durable
from common.backbones.backbone import Backbone
from common.backbones.registry import load_backbone, untrained_twin
from common.grafting import Trunk
from simulations.pretraining.probe import choose, probe_accuracy

PER_CLASS = (5, 20)

Table = dict[str, dict[str, dict[str, float]]]
"""Accuracy in percent by labels per class, row and set: ``table["5"]["trained"]["digits"]``."""


@dataclass(frozen=True)
class ImageSet:
    """A labelled set, divided for probing.

    Attributes:
        train: images (N, H, W), uint8, that the few labelled ones are drawn from.
        train_labels: shape (N,).
        test: images that the probe is scored on.
        test_labels: their labels.
    """

    train: np.ndarray
    train_labels: np.ndarray
    test: np.ndarray
    test_labels: np.ndarray


def image_sets(folder: Path) -> dict[str, ImageSet | None]:
    """Load the sets of the table; the ones whose file is not in ``folder`` are None.

    The digits come with scikit-learn and are always there.
    """
    digits = load_digits()
    sets: dict[str, ImageSet | None] = {"digits": _divided((digits.images * 15.9375).astype(np.uint8), digits.target)}
    sites = _arrays(folder / "image-digits-multisite" / "digits.npz")
    sets["MNIST"] = _divided(sites["mnist_x"], sites["mnist_y"]) if sites else None
    sets["USPS"] = _divided(sites["usps_x"], sites["usps_y"]) if sites else None
    kinds = _arrays(folder / "image-mednist-subset" / "mednist_subset.npz")
    sets["MedNIST"] = _given(kinds, "x_train", "y_train", "x_test", "y_test") if kinds else None
    chests = _arrays(folder / "image-pneumoniamnist" / "pneumoniamnist.npz")
    names = ("train_images", "train_labels", "test_images", "test_labels")
    sets["PneumoniaMNIST"] = _given(chests, *names) if chests else None
    return sets


def extract(backbone: Backbone, images: np.ndarray) -> Tensor:
    """Compute the features (N, D) of images, 256 at a time."""
    trunk = Trunk(backbone)
    with torch.no_grad():
        return torch.cat(
            [trunk(backbone.preprocessing(images[start : start + 256])) for start in range(0, len(images), 256)]
        )


def raw_pixels(images: np.ndarray) -> Tensor:
    """Give the pixels (N, H W) as features, in [0, 1]."""
    return torch.from_numpy(images).flatten(1).float() / 255


def measure_table(backbone: Backbone, twin: Backbone, sets: dict[str, ImageSet | None], draws: int) -> Table:
    """Probe every set with every kind of features.

    Args:
        backbone: the trained one.
        twin: the same with random weights.
        sets: from ``image_sets``; absent ones are left out.
        draws: how often the few labels are drawn; the same draws serve every row.

    Returns:
        Mean accuracy over the draws, in percent.
    """
    rows: dict[str, Callable[[np.ndarray], Tensor]] = {
        "raw pixels": raw_pixels,
        "random weights": lambda images: extract(twin, images),
        "trained": lambda images: extract(backbone, images),
    }
    table: Table = {str(k): {row: {} for row in rows} for k in PER_CLASS}
    for name, images in sets.items():
        for row, features in rows.items() if images else ():
            assert images is not None
            test = features(images.test)
            for k in PER_CLASS:
                table[str(k)][row][name] = round(100 * _mean_accuracy(images, features, test, k, draws), 1)
    return table


def render(table: Table, names: Sequence[str]) -> str:
    """Lay the table out as Markdown; sets that were not measured are said to be absent."""
    lines = ["| labels per class | features | " + " | ".join(names) + " |", "| --- | --- |" + " --- |" * len(names)]
    for k, rows in table.items():
        for row, scores in rows.items():
            cells = [f"{scores[name]:.1f}" if name in scores else "absent" for name in names]
            lines.append(f"| {k} | {row} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def update_card(path: Path, table: Table, draws: int) -> None:
    """Put the table, and over how many draws it was averaged, into a model card."""
    card = json.loads(path.read_text())
    durable.write_json(path, {**card, "table": table, "table_draws": draws})


def _mean_accuracy(
    images: ImageSet, features: Callable[[np.ndarray], Tensor], test: Tensor, per_class: int, draws: int
) -> float:
    test_labels = torch.from_numpy(images.test_labels)
    scores = []
    for seed in range(draws):
        chosen = choose(images.train_labels, per_class, seed)
        labels = torch.from_numpy(images.train_labels[chosen])
        scores.append(probe_accuracy(features(images.train[chosen]), labels, test, test_labels))
    return fmean(scores)


def _arrays(path: Path) -> dict[str, np.ndarray]:
    if not path.exists():
        return {}
    with np.load(path) as file:
        return {
            name: file[name] for name in file.files if file[name].dtype == np.uint8 or name.endswith(("_y", "labels"))
        }


def _divided(images: np.ndarray, labels: np.ndarray) -> ImageSet:
    """A thousand images to test on, at most two thousand to draw from, the same every time."""
    order = np.random.default_rng(0).permutation(len(images))
    test, train = order[:1000], order[1000:3000]
    return ImageSet(images[train], labels[train].astype(np.int64), images[test], labels[test].astype(np.int64))


def _given(arrays: dict[str, np.ndarray], *names: str) -> ImageSet:
    train, train_labels, test, test_labels = (arrays[name] for name in names)
    order = np.random.default_rng(0).permutation(len(train))[:3000]
    return ImageSet(train[order], train_labels[order].astype(np.int64), test, test_labels.astype(np.int64))


def main() -> None:
    """Print the table of an embedded backbone."""
    parser = argparse.ArgumentParser(description="Probe raw pixels, random weights and the trained backbone.")
    parser.add_argument("--backbone", default="embedded/glyph")
    parser.add_argument("--data", type=Path, default=Path("../shared/data"), help="folder that holds the other sets")
    parser.add_argument("--draws", type=int, default=20, help="of the few labels")
    parser.add_argument("--card", type=Path, help="model card (JSON) to write the table into, whatever it says")
    arguments = parser.parse_args()
    backbone = load_backbone(arguments.backbone)
    sets = image_sets(arguments.data)
    table = measure_table(backbone, untrained_twin(backbone, seed=0), sets, arguments.draws)
    print(render(table, list(sets)))
    if arguments.card:
        update_card(arguments.card, table, arguments.draws)


if __name__ == "__main__":
    main()

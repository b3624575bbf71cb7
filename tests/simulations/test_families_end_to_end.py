"""Every family of torchvision's through cut, a DP round, save, load and predict, by the same commands."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import fedgraft
from common.config import dump_toml
from tests.federations import small_config

FAMILIES = (
    "resnet18:32",
    "vgg11:32",
    "inception_v3:75",
    "densenet121:32",
    "mobilenet_v2:32",
    "mobilenet_v3_small:32",
    "efficientnet_b0:32",
    "convnext_tiny:32",
    "vit_b_32:32",
    "swin_t:32",
)


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two dozen bright and dark images."""
    folder = tmp_path_factory.mktemp("images")
    rng = np.random.default_rng(0)
    labels = np.arange(24) % 2
    pixels = (rng.integers(0, 100, (24, 16, 16)) + 150 * labels[:, None, None]).astype(np.uint8)
    np.savez(folder / "images.npz", images=pixels, labels=labels)
    Image.fromarray(pixels[1]).save(folder / "bright.png")
    return folder


def run(images: Path, folder: Path, **model: str) -> Path:
    sections: dict[str, dict[str, Any]] = {
        "federation": {"nodes": 2, "rounds": 1},
        "data": {"source": str(images / "images.npz")},
        "model": dict(model),
    }
    config = folder / "config.toml"
    config.write_text(dump_toml(small_config(**sections)))
    assert fedgraft.main(["simulate", str(config), "--out", str(folder / "run")]) == 0
    return folder / "run"


def predicted(run: Path, images: Path, capsys: pytest.CaptureFixture[str]) -> dict[str, float]:
    capsys.readouterr()
    assert fedgraft.main(["predict", str(run / "model"), str(images / "bright.png"), "--json"]) == 0
    found: dict[str, float] = json.loads(capsys.readouterr().out)[0]["probabilities"]
    return found


@pytest.mark.slow
@pytest.mark.parametrize("name", FAMILIES)
def test_a_family_goes_all_the_way(name: str, images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = run(images, tmp_path, backbone=f"torchvision/{name}", weights="random-0")
    assert sum(predicted(folder, images, capsys).values()) == pytest.approx(1)


@pytest.mark.slow
@pytest.mark.parametrize("train", ["all", "biases", "adapters"])
def test_upper_stages_go_all_the_way(
    train: str, images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = {"backbone": "torchvision/resnet18:32", "weights": "random-0", "cut": "layer3"}
    folder = run(images, tmp_path, **model, head="upper", train=train)
    assert sum(predicted(folder, images, capsys).values()) == pytest.approx(1)

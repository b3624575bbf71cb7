"""The ImageNet MobileNets of ``../shared/data/weights-imagenet``, as ``module/simulations.benchmarks.mobilenet:v1``."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from common.backbones.module_family import UserBackbone
from common.backbones.preprocessing import ImagePreprocessing
from common.errors import ConfigError

FOLDER = Path("../shared/data/weights-imagenet")
SIZE = 96


class _Mean(nn.Module):
    """Mean over height and width."""

    def forward(self, maps: Tensor) -> Tensor:
        """(N, C, H, W) -> (N, C)."""
        return maps.mean(dim=(2, 3))


def v1() -> UserBackbone:
    """MobileNetV1, width 1, without its last block, at 96 pixels; 1,024 features."""
    network = _loaded("mobilenet_v1_100_to_pw12")
    return _user_backbone({"stem": network.stem, **_numbered(network.blocks)})


def v2() -> UserBackbone:
    """MobileNetV2, width 0.35, at 96 pixels; 1,280 features."""
    network = _loaded("mobilenet_v2_035")
    return _user_backbone({"stem": network.stem, **_numbered(network.blocks), "top": network.head})


def _numbered(blocks: nn.Sequential) -> dict[str, nn.Module]:
    return {f"block{number}": block for number, block in enumerate(blocks, start=1)}


def _user_backbone(stages: dict[str, nn.Module]) -> UserBackbone:
    return UserBackbone(
        {**stages, "pool": _Mean()},
        ImagePreprocessing(size=SIZE, channels=3, mean=0.5, std=0.5),
        licence="Apache-2.0 (TensorFlow model garden)",
        trained_on="ImageNet-1k photographs",
    )


def _loaded(name: str) -> Any:
    path = FOLDER / "mobilenet_tf.py"
    spec = importlib.util.spec_from_file_location("mobilenet_tf", path)
    if spec is None or spec.loader is None or not path.is_file():
        raise ConfigError(
            f"expected the MobileNets and {path.name} in {FOLDER}, found none; run from the project's root"
        )
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.load(name, str(FOLDER))

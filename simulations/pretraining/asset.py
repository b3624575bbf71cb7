"""What pre-training leaves behind: a weights file, and a model card beside it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import safetensors.torch
from torch import Tensor, nn

from common import durable
from common.backbones.backbone import backbone_digest
from common.backbones.registry import CALIBRATION, EmbeddedSpec
from simulations.pretraining.gallery import Recipe


def save_asset(
    folder: Path, spec: EmbeddedSpec, stages: nn.ModuleDict, calibration: Tensor, recipe: Recipe, cost: dict[str, Any]
) -> str:
    """Write weights and card, whole or not at all.

    Args:
        folder: of the assets; it must exist.
        spec: what the registry says of the backbone, apart from its digest.
        stages: trained, with measured constants, on the CPU.
        calibration: the images (N, S, S), uint8, that the constants were measured on.
        recipe: what the weights were made by.
        cost: what it took: device, threads, seconds.

    Returns:
        The digest, to be pinned in ``common/backbones/registry.py``.

    Raises:
        ConfigError: the folder cannot be written.
    """
    tensors = {name: value.detach().contiguous() for name, value in stages.state_dict().items()}
    tensors[CALIBRATION] = calibration
    digest = backbone_digest(spec.architecture.describe(), spec.preprocessing.describe(), tensors)
    durable.write_bytes(folder / spec.file, safetensors.torch.save(tensors))
    durable.write_json(folder / spec.card, _card(spec, digest, recipe, cost))
    return digest


def _card(spec: EmbeddedSpec, digest: str, recipe: Recipe, cost: dict[str, Any]) -> dict[str, Any]:
    return {
        "name": spec.name,
        "licence": spec.licence,
        "trained_on": spec.trained_on,
        "digest": digest,
        "architecture": spec.architecture.describe(),
        "preprocessing": spec.preprocessing.describe(),
        "recipe": recipe.describe(),
        "cost": cost,
    }

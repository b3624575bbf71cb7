"""Features centred and scaled by public constants, as a backbone's last stage.

Nothing here looks at a record of a node: the constants are measured on generated images, which every fedgraft carries,
or on a public data set that the maker of a package names.
"""

from __future__ import annotations

import hashlib
import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor, nn
from torch.nn import functional

from common import durable
from common.backbones.backbone import Activations, Backbone, freeze
from common.backbones.registry import GLYPH, calibration_images
from common.data.records import Inputs, take_inputs
from common.errors import ConfigError
from common.paths import cache_folder

STAGE = "centre"
BATCH = 32
MOST = 2048  # records of a public data set; more say nothing new about a mean

_FLOOR = 0.1
_PIXELS = 256 * 96**2


class Centre(nn.Module):
    """Take a public mean from each feature, divide it by a public deviation, then give each record the norm sqrt(D).

    With one norm for all records, a record's gradient in a linear head is bounded by its error alone, which suits
    clipping, and one learning rate suits every backbone.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, features: int) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(features))
        self.register_buffer("std", torch.ones(features))

    def forward(self, features: Tensor) -> Tensor:
        """(N, D) -> (N, D)."""
        scaled = (features - self.mean) / self.std
        return functional.normalize(scaled, dim=1) * math.sqrt(features.shape[1])


def centred(backbone: Backbone) -> Backbone:
    """Add the stage ``centre``, measured on generated images; a backbone that has one is returned as it is.

    The constants are measured once and kept in the user's cache folder. They are rounded to 8 bits, and the digest
    covers how they come about, not themselves: so another machine, whose sums round otherwise, has the same backbone.

    Args:
        backbone: of images, whose last stage gives (N, D).

    Raises:
        ConfigError: the backbone takes no images, or its features are no finite vectors.
    """
    if STAGE in backbone.stages:
        return backbone
    recipe = _recipe(backbone)
    digest = hashlib.sha256(json.dumps([backbone.digest, recipe], sort_keys=True).encode()).hexdigest()
    path = cache_folder() / "centring" / f"{digest}.safetensors"
    centre = _read(path)
    if centre is None:
        images = calibration_images(GLYPH.name)
        centre = measure(backbone, _spread(images, recipe["images"]))
        path.parent.mkdir(parents=True, exist_ok=True)
        durable.write_bytes(path, safetensors.torch.save(centre.state_dict()))
    return replace(with_centre(backbone, centre), digest=digest)


def centred_on(backbone: Backbone, inputs: Inputs) -> Backbone:
    """Add the stage ``centre``, or replace it, measured on public records; the digest is the old one.

    Raises:
        ConfigError: there are no two records, or the features are no finite vectors.
    """
    bare = without_centre(backbone)
    return with_centre(bare, measure(bare, _spread(inputs, MOST)))


def with_centre(backbone: Backbone, centre: nn.Module) -> Backbone:
    """The backbone with that last stage."""
    return replace(backbone, stages={**backbone.stages, STAGE: freeze(centre)})


def without_centre(backbone: Backbone) -> Backbone:
    """The backbone without the stage ``centre``."""
    return replace(backbone, stages={name: stage for name, stage in backbone.stages.items() if name != STAGE})


@torch.no_grad()
def measure(backbone: Backbone, inputs: Inputs) -> Centre:
    """Mean and deviation of each feature over public records, rounded to 8 bits.

    A feature that hardly varies there would be blown up wherever it does: no deviation is taken as smaller than a tenth
    of the features' root mean square deviation.

    Args:
        backbone: not centred.
        inputs: N >= 2 public records.

    Raises:
        ConfigError: fewer than two records, or features that are no finite vectors.
    """
    if len(inputs) < 2:
        raise ConfigError(f"expected at least two public records to centre features on, got {len(inputs)}; give more")
    parts = [_features(backbone, inputs[start : start + BATCH]) for start in range(0, len(inputs), BATCH)]
    features = torch.cat(parts).double()
    if features.ndim != 2 or not torch.isfinite(features).all():
        raise ConfigError(
            f"expected finite features (N, D) from {backbone.name}, got shape {tuple(features.shape)} or values that "
            "are not finite; look at its last stage"
        )
    deviation = features.std(dim=0)
    floor = _FLOOR * deviation.square().mean().sqrt()
    centre = Centre(features.shape[1])
    centre.mean.copy_(features.mean(dim=0).bfloat16())
    centre.std.copy_(deviation.clamp_min(floor).clamp_min(torch.finfo(torch.float32).tiny).bfloat16())
    return centre


def _features(backbone: Backbone, inputs: Inputs) -> Tensor:
    values: Activations = backbone.preprocessing(inputs)
    for stage in backbone.stages.values():
        values = stage(values)
    if not isinstance(values, Tensor):
        raise ConfigError(f"expected one tensor from the last stage of {backbone.name}, got several; look at it")
    return values


def _recipe(backbone: Backbone) -> dict[str, Any]:
    """How the constants are measured; large inputs get fewer images, so that it takes seconds."""
    accepted, size = backbone.preprocessing.accepts, backbone.preprocessing.describe().get("size", 224)
    if "image" not in accepted:
        raise ConfigError(
            f"features of {backbone.name}, which takes {', '.join(sorted(accepted))}, cannot be centred on images; "
            "pack it with --centre-on SOURCE"
        )
    count = min(256, max(64, _PIXELS // int(size) ** 2))
    return {"centre": "mean, deviation, norm", "on": GLYPH.digest, "images": count, "floor": _FLOOR, "bits": 8}


def _spread(inputs: Inputs, count: int) -> Inputs:
    """At most ``count`` records, evenly out of all."""
    if len(inputs) <= count:
        return inputs
    return take_inputs(inputs, np.linspace(0, len(inputs) - 1, count).astype(np.int64))


def _read(path: Path) -> Centre | None:
    """Constants measured before; None if there are none, or the file is damaged."""
    try:
        state = safetensors.torch.load(path.read_bytes())
        centre = Centre(len(state["mean"]))
        centre.load_state_dict(state)
    except (OSError, SafetensorError, KeyError, RuntimeError):
        return None
    return centre

"""Where backbones come from: a reference in, a checked and frozen backbone out."""

from __future__ import annotations

import difflib
import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from importlib import metadata
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import numpy as np
import safetensors.torch
from safetensors import SafetensorError
from torch import Tensor, nn

from common.backbones.backbone import Backbone, backbone_digest, freeze
from common.backbones.embedded import Architecture, build_stages, calibrate
from common.backbones.preprocessing import ImagePreprocessing
from common.errors import ConfigError

CALIBRATION = "calibration"
"""Tensor beside the weights: generated images (N, S, S) uint8 that the public constants are measured on."""


@dataclass(frozen=True)
class EmbeddedSpec:
    """An embedded backbone as the source knows it.

    Attributes:
        name: the reference, ``"embedded/…"``.
        digest: what ``backbone_digest`` must give.
        architecture: the network.
        preprocessing: its input.
        licence: of the weights.
        trained_on: whose data they have seen.
    """

    name: str
    digest: str
    architecture: Architecture
    preprocessing: ImagePreprocessing
    licence: str
    trained_on: str

    @property
    def file(self) -> str:
        """Name of the weights file in the assets folder."""
        return f"{self.name.rpartition('/')[2]}.safetensors"

    @property
    def card(self) -> str:
        """Name of the model card beside it."""
        return f"{self.name.rpartition('/')[2]}.json"


GLYPH = EmbeddedSpec(
    name="embedded/glyph",
    digest="30b36858024cf998493c64c3ef8b536645eccc03bd53888016887f26ebdd558c",
    architecture=Architecture(),
    preprocessing=ImagePreprocessing(size=32, channels=1),
    licence="Apache-2.0",
    trained_on="images drawn by formulas (strokes, textures, shaded shapes, fractals); no human's data",
)

EMBEDDED: Mapping[str, EmbeddedSpec] = {GLYPH.name: GLYPH}


def backbone_names() -> tuple[str, ...]:
    """Name every backbone that ``load_backbone`` knows without a network or a file of the user's."""
    return tuple(sorted(EMBEDDED))


def load_backbone(reference: str, assets: Path | None = None) -> Backbone:
    """Load a backbone and check it against the digest that the source pins.

    Args:
        reference: such as ``"embedded/glyph"``.
        assets: folder that holds the weights; by default the one of the installed distribution.

    Returns:
        The backbone, frozen, in eval mode, on the CPU.

    Raises:
        ConfigError: the name is unknown, or the weights are missing, corrupt or not those that the name promises.

    >>> list(load_backbone("embedded/glyph").stages)
    ['stem', 'stage1', 'stage2', 'stage3', 'pool']
    """
    spec = _spec(reference)
    tensors = _read(reference, (assets or installed_assets()) / spec.file)
    digest = backbone_digest(spec.architecture.describe(), spec.preprocessing.describe(), tensors)
    if digest != spec.digest:
        raise ConfigError(
            f"the weights of {reference} should have the digest {spec.digest[:16]}…, got {digest[:16]}…; "
            "they were changed or belong to another version: install fedgraft anew"
        )
    stages = _with_weights(spec, {name: value for name, value in tensors.items() if name != CALIBRATION})
    return _backbone(reference, spec, stages, digest)


def untrained_twin(backbone: Backbone, seed: int, assets: Path | None = None) -> Backbone:
    """Make the same network with random weights: the baseline without transfer.

    Its public centring constants are measured on the generated images that the weights file of ``backbone`` carries, so
    that nothing but the training differs.

    Args:
        backbone: an embedded one.
        seed: of the random weights.
        assets: as for ``load_backbone``.

    Returns:
        A backbone named ``"<name>@random-<seed>"`` with a digest of its own.

    Raises:
        ConfigError: ``backbone`` is not an embedded one, or its weights file cannot be read.
    """
    spec = _spec(backbone.name)
    tensors = _read(backbone.name, (assets or installed_assets()) / spec.file)
    stages = build_stages(spec.architecture, seed)
    calibrate(stages, spec.preprocessing(tensors[CALIBRATION].numpy()), spec.architecture)
    digest = backbone_digest(spec.architecture.describe(), spec.preprocessing.describe(), stages.state_dict())
    twin = _backbone(f"{backbone.name}@random-{seed}", spec, stages, digest)
    return replace(twin, trained_on="nothing: random weights")


def calibration_images(reference: str, assets: Path | None = None) -> np.ndarray:
    """Give the generated images, (N, S, S) uint8, that a backbone's public constants were measured on.

    Raises:
        ConfigError: as ``load_backbone``.
    """
    images: np.ndarray = _read(reference, (assets or installed_assets()) / _spec(reference).file)[CALIBRATION].numpy()
    return images


def installed_assets() -> Path:
    """Find the assets folder through the installed distribution's metadata.

    An app bundle of Flower's holds our modules but no weights, so that the place of this file says nothing.

    Raises:
        ConfigError: fedgraft is not installed in this environment.
    """
    try:
        distribution = metadata.distribution("fedgraft")
    except metadata.PackageNotFoundError as error:
        raise ConfigError(
            "expected an installed fedgraft that holds the embedded weights, found none in this environment; "
            "run pip install on the project or its wheel"
        ) from error
    return assets_of(distribution)


def assets_of(distribution: metadata.Distribution) -> Path:
    """Give the assets folder of a distribution: in the project for an editable install, else where the wheel went."""
    root = _editable_root(distribution) or Path(str(distribution.locate_file("")))
    return root / "common" / "backbones" / "assets"


def _editable_root(distribution: metadata.Distribution) -> Path | None:
    """Give the project folder of an editable install (PEP 610), None for any other."""
    origin: dict[str, Any] = json.loads(distribution.read_text("direct_url.json") or "{}")
    if not origin.get("dir_info", {}).get("editable", False):
        return None
    return Path(unquote(urlsplit(origin["url"]).path))


def _spec(reference: str) -> EmbeddedSpec:
    if reference in EMBEDDED:
        return EMBEDDED[reference]
    near = difflib.get_close_matches(reference, backbone_names(), n=1, cutoff=0.5)
    hint = f"did you mean {near[0]!r}?" if near else "choose one of them"
    families = "torchvision/…, hf/…, vectors/…, module/…, package/…, tabular/…, pixels/…"
    names = ", ".join(backbone_names())
    raise ConfigError(f"model.backbone must be one of {names}, or begin as {families}, got {reference!r}; {hint}")


def _read(reference: str, path: Path) -> dict[str, Tensor]:
    again = "install fedgraft anew"
    try:
        return safetensors.torch.load(path.read_bytes())
    except FileNotFoundError as error:
        raise ConfigError(f"the weights of {reference} should be at {path}, but no file is there; {again}") from error
    except OSError as error:
        raise ConfigError(f"the weights of {reference} at {path} cannot be read: {error.strerror}; {again}") from error
    except SafetensorError as error:
        raise ConfigError(f"the weights of {reference} at {path} are not a whole safetensors file; {again}") from error


def _with_weights(spec: EmbeddedSpec, tensors: Mapping[str, Tensor]) -> nn.ModuleDict:
    stages = build_stages(spec.architecture)
    stages.load_state_dict(tensors)
    return stages


def _backbone(name: str, spec: EmbeddedSpec, stages: nn.ModuleDict, digest: str) -> Backbone:
    freeze(stages)
    return Backbone(name, dict(stages.items()), spec.preprocessing, spec.licence, spec.trained_on, digest)

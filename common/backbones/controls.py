"""From a reference to its backbone, whatever its family; and the backbones that transfer nothing, for comparison."""

from __future__ import annotations

import importlib
import re

from torch import nn

from common.backbones.backbone import Backbone, backbone_digest
from common.backbones.preprocessing import ImagePreprocessing
from common.backbones.registry import backbone_names, load_backbone, untrained_twin
from common.errors import ConfigError

FAMILIES = {
    "torchvision": "common.backbones.torchvision_family",
    "hf": "common.backbones.hf_family",
    "vectors": "common.backbones.vectors",
    "tabular": "common.backbones.tabular",
    "module": "common.backbones.module_family",
    "package": "common.backbones.package",
}
"""Modules with a function ``load(reference)``, by what a reference begins with; imported when they are used."""

SPECTROGRAM = "spectrogram/"
"""Before the reference of a backbone for images: it looks at sounds, as pictures of their spectrograms."""

_TWIN = re.compile(r"(?P<original>.+)@random-(?P<seed>\d+)")
_PIXELS = re.compile(r"pixels/(?P<size>\d+)")
MAX_PIXELS = 256


def load_reference(reference: str) -> Backbone:
    """Load a backbone of any family, or one of the controls: ``"<backbone>@random-<seed>"`` and ``"pixels/<size>"``.

    Raises:
        ConfigError: the name is unknown, or as the family's ``load`` raises it.
    """
    if reference.startswith(SPECTROGRAM):
        from common.backbones.spectrogram import for_audio

        return for_audio(load_reference(reference.removeprefix(SPECTROGRAM)))
    family = reference.partition("/")[0]
    twin = _TWIN.fullmatch(reference)
    if family == "package" and twin:
        from common.backbones.package import untrained

        return untrained(twin["original"], int(twin["seed"]))
    if family in FAMILIES and "/" in reference:
        loaded: Backbone = importlib.import_module(FAMILIES[family]).load(reference)
        return loaded
    if twin:
        return _untrained(twin["original"], int(twin["seed"]))
    if pixels := _PIXELS.fullmatch(reference):
        return raw_pixels(int(pixels["size"]))
    original, _, weights = reference.partition("@")
    if weights and (original in backbone_names() or _PIXELS.fullmatch(original)):
        raise ConfigError(
            f'model.weights of {original} must be "random-" and a seed, as in "random-0", or not given, got '
            f"{weights!r}; correct or leave it out"
        )
    return load_backbone(reference)


def _untrained(reference: str, seed: int) -> Backbone:
    if _PIXELS.fullmatch(reference):
        return load_reference(reference)  # nothing in it was ever trained
    return untrained_twin(load_backbone(reference), seed)


def raw_pixels(size: int) -> Backbone:
    """A backbone that does nothing: the grey image itself, standardised by its own mean and deviation.

    Args:
        size: side of the image in pixels; features have size x size values.

    Raises:
        ConfigError: the size is not within 1 to 256.
    """
    if not 1 <= size <= MAX_PIXELS:
        raise ConfigError(f"expected a size of 1 to {MAX_PIXELS} pixels for raw pixels, got {size}; choose another")
    preprocessing = ImagePreprocessing(size=size, channels=1)
    digest = backbone_digest({"family": "pixels"}, preprocessing.describe(), {})
    stages: dict[str, nn.Module] = {"pixels": nn.Flatten()}
    return Backbone(f"pixels/{size}", stages, preprocessing, "none needed", "nothing: raw pixels", digest)

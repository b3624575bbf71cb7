"""How a model of the transformers library goes into a package: its small files beside its tensors."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import Field
from torch import nn

from common.backbones.backbone import Backbone, Preprocessing
from common.backbones.hf_files import DESCRIBING, model_folder, parse, read_files
from common.backbones.package_facts import Builder, read_builder
from common.backbones.text import TextPreprocessing
from common.errors import ConfigError

_CONFIG, _TOKENIZER = "config.json", "tokenizer.json"
_NAMES = {name.replace("/", "__"): name for name in (_CONFIG, _TOKENIZER, *DESCRIBING)}  # as packed, to as they are


class _Builder(Builder):
    length: int | None = Field(ge=0)


def describe(backbone: Backbone) -> dict[str, Any]:
    """What ``rebuild`` needs beside tensors and files."""
    return {"family": "hf", "length": parse(backbone.name).length}


def files(backbone: Backbone) -> dict[str, bytes]:
    """What the model's folder says of the network and of its input; a slash in a name becomes two underscores."""
    described = read_files(model_folder(parse(backbone.name)))
    places = {packed: described.folder / name for packed, name in _NAMES.items() if name != _TOKENIZER}
    content = {packed: place.read_bytes() for packed, place in places.items() if place.is_file()}
    if isinstance(backbone.preprocessing, TextPreprocessing):
        content[_TOKENIZER] = backbone.preprocessing.tokenizer.encode()
    return content


def rebuild(
    description: Mapping[str, Any], preprocessing: Mapping[str, Any], files: Mapping[str, bytes], seed: int | None
) -> tuple[Mapping[str, nn.Module], Preprocessing]:
    """The stages with random weights, and the preprocessing, of what ``describe`` and ``files`` said.

    Raises:
        ConfigError: the installed transformers library cannot build the network, or a file is none that is packed.
    """
    from common.backbones.hf_family import load

    length = read_builder(_Builder, description).length
    if strange := sorted(files.keys() - _NAMES.keys()):  # a package may come from anywhere
        raise ConfigError(
            f"expected no files of a model in the package but {', '.join(_NAMES)}, got {strange[0]!r}; do not use it"
        )
    with tempfile.TemporaryDirectory(prefix="fedgraft-") as folder:
        for name, data in files.items():
            path = Path(folder) / _NAMES[name]
            path.parent.mkdir(exist_ok=True)
            path.write_bytes(data)
        made = load(f"hf/{folder}{'' if length is None else f':{length}'}@random-{seed or 0}")
    return made.stages, made.preprocessing

"""How a model of the transformers library goes into a package: its small files beside its tensors."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import nn

from common.backbones.backbone import Backbone, Preprocessing
from common.backbones.hf_files import model_folder, parse, read_files
from common.backbones.text import TextPreprocessing
from common.errors import ConfigError

_TOKENIZER = "tokenizer.json"


def describe(backbone: Backbone) -> dict[str, Any]:
    """What ``rebuild`` needs beside tensors and files."""
    return {"family": "hf", "length": parse(backbone.name).length}


def files(backbone: Backbone) -> dict[str, bytes]:
    """What the model's folder says of the network and of its input; a slash in a name becomes two underscores."""
    described = read_files(model_folder(parse(backbone.name)))
    names = ["config.json", *(name for name in described.others if (described.folder / name).is_file())]
    content = {name.replace("/", "__"): (described.folder / name).read_bytes() for name in names}
    if isinstance(backbone.preprocessing, TextPreprocessing):
        content[_TOKENIZER] = backbone.preprocessing.tokenizer.encode()
    return content


def rebuild(
    description: Mapping[str, Any], preprocessing: Mapping[str, Any], files: Mapping[str, bytes], seed: int | None
) -> tuple[Mapping[str, nn.Module], Preprocessing]:
    """The stages with random weights, and the preprocessing, of what ``describe`` and ``files`` said.

    Raises:
        ConfigError: the installed transformers library cannot build the network, or a name leads out of its folder.
    """
    from common.backbones.hf_family import load

    length = description["length"]
    with tempfile.TemporaryDirectory(prefix="fedgraft-") as folder:
        for name, data in files.items():
            path = (Path(folder) / name.replace("__", "/")).resolve()
            if not path.is_relative_to(Path(folder).resolve()):  # a package may come from anywhere
                raise ConfigError(f"expected files of a model in the package, got the name {name!r}; do not use it")
            path.parent.mkdir(exist_ok=True)
            path.write_bytes(data)
        made = load(f"hf/{folder}{'' if length is None else f':{length}'}@random-{seed or 0}")
    return made.stages, made.preprocessing

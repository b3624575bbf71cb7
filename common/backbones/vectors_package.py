"""How word vectors go into a package: the vocabulary beside the tensors."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from pydantic import Field
from torch import nn

from common.backbones.backbone import Backbone, Preprocessing
from common.backbones.package_facts import Builder, read_builder
from common.backbones.vectors import WordPreprocessing

_VOCABULARY = "vocab.txt"


class _Builder(Builder):
    length: int = Field(ge=0)
    dimensions: int = Field(ge=1)


def describe(backbone: Backbone) -> dict[str, Any]:
    """What ``rebuild`` needs beside tensors and files."""
    words = _words(backbone)
    dimensions = backbone.stages["embed"].get_parameter("vectors.weight").shape[1]
    return {"family": "vectors", "length": words.max_length, "dimensions": dimensions}


def files(backbone: Backbone) -> dict[str, bytes]:
    """The vocabulary, a word a line."""
    return {_VOCABULARY: "".join(f"{word}\n" for word in _words(backbone).words).encode()}


def rebuild(
    description: Mapping[str, Any], preprocessing: Mapping[str, Any], files: Mapping[str, bytes], seed: int | None
) -> tuple[Mapping[str, nn.Module], Preprocessing]:
    """The stages with random vectors, and the preprocessing, of what ``describe`` and ``files`` said.

    Raises:
        ConfigError: the vocabulary does not fit.
    """
    from common.backbones.vectors import load

    builder = read_builder(_Builder, description)
    count = files[_VOCABULARY].count(b"\n")
    any_matrix = torch.randn(count, builder.dimensions, generator=torch.Generator().manual_seed(0))
    with tempfile.TemporaryDirectory(prefix="fedgraft-") as folder:
        (Path(folder) / _VOCABULARY).write_bytes(files[_VOCABULARY])
        path = Path(folder) / "vectors.safetensors"
        path.write_bytes(safetensors.torch.save({"vectors": any_matrix}))
        made = load(f"vectors/{path}:{builder.length}@random-{seed or 0}")
    return made.stages, made.preprocessing


def _words(backbone: Backbone) -> WordPreprocessing:
    assert isinstance(backbone.preprocessing, WordPreprocessing)
    return backbone.preprocessing

"""The backbone: an ordered list of stages with its preprocessing, its provenance and a digest."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

from torch import Tensor, nn

from common.data.records import Inputs

Activations = Tensor | tuple[Tensor, ...]
"""What passes between two stages: one tensor or several, the batch first."""


class Preprocessing(Protocol):
    """From records to the first stage's input; every rule is a public constant or looks at one record only."""

    @property
    def accepts(self) -> frozenset[str]:
        """Modalities of ``records.Inputs`` that it takes."""

    def __call__(self, inputs: Inputs, /) -> Activations:
        """Prepare N records; row n of the result depends on record n alone.

        Raises:
            ConfigError: a record cannot be prepared.
        """

    def blank(self) -> Inputs:
        """One made-up record, of no patient, to find out with which shapes the stages work."""

    def describe(self) -> dict[str, Any]:
        """Name everything that decides the result, JSON values only; part of a backbone's digest."""


LENGTH_STEP = 32
"""Tokens: texts that need equally many steps are computed together, padded to the last of them and no further.

How far a text is padded then depends on itself alone, and so do its features, to the last bit.
"""


@dataclass(frozen=True)
class Encoding:
    """Texts cut into tokens, padded to T.

    Attributes:
        ids: int64, shape (N, T).
        mask: float32, shape (N, T), 1 for tokens and 0 for padding.
        words: int64, shape (N, T): the index of the word that a token begins, -1 for all other tokens.
        offsets: int64, shape (N, T, 2): a token's first character, and the one after its last, in the text (of a pair,
            in the context); (-1, -1) for tokens that are not of it.
    """

    ids: Tensor
    mask: Tensor
    words: Tensor
    offsets: Tensor


@runtime_checkable
class CutsTexts(Protocol):
    """A preprocessing that knows where in the text each token is."""

    def encode(self, inputs: Inputs, /) -> Encoding:
        """Cut N texts, lists of words or pairs into tokens."""

    def truncated(self, inputs: Inputs, /) -> int:
        """How many of the records are too long, and lose their end."""


@dataclass(frozen=True)
class Backbone:
    """A pre-trained model that a cut point can divide.

    Attributes:
        name: the reference it was loaded by, such as ``"embedded/glyph"``.
        stages: in order; each maps the previous one's output to its own, a Tensor or a tuple of Tensors with the batch
            first. The last one gives features (N, D), already centred and scaled by public constants. Every stage is
            in eval mode and none of its parameters wants a gradient.
        preprocessing: from records to the first stage's input.
        licence: of the weights.
        trained_on: whose data the weights have seen; a promise about a head does not cover it.
        digest: SHA-256, in hex, over architecture, preprocessing and weights.
    """

    name: str
    stages: Mapping[str, nn.Module]
    preprocessing: Preprocessing
    licence: str
    trained_on: str
    digest: str


def backbone_digest(
    architecture: Mapping[str, Any], preprocessing: Mapping[str, Any], tensors: Mapping[str, Tensor]
) -> str:
    """SHA-256, in hex, over everything that decides what a backbone computes.

    Args:
        architecture: description of the network, JSON values only.
        preprocessing: ``Preprocessing.describe()``.
        tensors: parameters and buffers by name, of any order.

    Returns:
        64 hex digits; another order of keys or names gives the same.
    """
    described = {"architecture": architecture, "preprocessing": preprocessing}
    digest = hashlib.sha256(json.dumps(described, sort_keys=True, separators=(",", ":")).encode())
    for name in sorted(tensors):
        tensor = tensors[name].detach().cpu().contiguous()
        digest.update(f"\n{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.numpy().tobytes())
    return digest.hexdigest()


def stage_tensors(stages: Mapping[str, nn.Module]) -> dict[str, Tensor]:
    """Parameters and buffers of all stages, each by its stage's name and its own."""
    return {f"{stage}.{name}": value for stage, made in stages.items() for name, value in made.state_dict().items()}


def freeze(module: nn.Module) -> nn.Module:
    """Put a module into eval mode and take the gradients away; the module itself is returned."""
    return module.eval().requires_grad_(False)

"""Heads: the trained part of the model, above the cut point."""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Mapping
from functools import lru_cache

import torch
from torch import Tensor, nn

from common.errors import ConfigError

HEADS = ("linear", "mlp")


def build_head(kind: str, features: int, classes: int, *, hidden: int = 64, seed: int = 0) -> nn.Module:
    """Make an untrained head, the same one wherever it is made.

    A linear head starts at zero, so that the first clipped gradients point at class means and no initial noise has to
    be unlearnt; an MLP needs its symmetry broken and is drawn from ``seed``.

    Args:
        kind: ``"linear"`` or ``"mlp"`` (one hidden layer).
        features: D, the size of the trunk's output.
        classes: K.
        hidden: width of the MLP's hidden layer.
        seed: of the MLP's initial weights; public.

    Returns:
        A module that maps (N, D) to (N, K).

    Raises:
        ConfigError: ``kind`` is not a head.
    """
    return _copy(_template(kind, features, classes, hidden, seed))


def _copy(module: nn.Module) -> nn.Module:
    """A module of its own, four times faster than ``copy.deepcopy``, which every round would wait for."""
    twin = copy.copy(module)
    twin.__dict__.update({key: value.copy() for key, value in vars(module).items() if isinstance(value, dict)})
    twin._parameters = {
        name: None if value is None else nn.Parameter(value.detach().clone(), requires_grad=value.requires_grad)
        for name, value in module._parameters.items()
    }
    twin._modules = {name: None if child is None else _copy(child) for name, child in module._modules.items()}
    return twin


@lru_cache(maxsize=16)
def _template(kind: str, features: int, classes: int, hidden: int, seed: int) -> nn.Module:
    if kind == "linear":
        return _zero_linear(features, classes)
    if kind == "mlp":
        return _mlp(features, classes, hidden, torch.Generator().manual_seed(seed))
    raise ConfigError(f"model.head must be one of {', '.join(HEADS)}, got {kind!r}; choose one of them")


def _mlp(features: int, classes: int, hidden: int, generator: torch.Generator) -> nn.Module:
    first, last = _zero_linear(features, hidden), _zero_linear(hidden, classes)
    for layer in (first, last):
        nn.init.kaiming_uniform_(layer.weight, nonlinearity="relu", generator=generator)
    return nn.Sequential(first, nn.ReLU(), last)


def _zero_linear(inputs: int, outputs: int) -> nn.Linear:
    layer = nn.Linear(inputs, outputs, device="meta").to_empty(device="cpu")  # draws nothing from the global generator
    nn.init.zeros_(layer.weight)
    nn.init.zeros_(layer.bias)
    return layer


def head_arrays(head: nn.Module) -> dict[str, Tensor]:
    """Copy the trainable parameters of a head, by name; nothing else of it ever travels."""
    return {name: value.detach().clone() for name, value in head.named_parameters() if value.requires_grad}


def load_arrays(head: nn.Module, arrays: Mapping[str, Tensor]) -> None:
    """Put ``arrays`` into the head's trainable parameters.

    Raises:
        ConfigError: names or shapes are not those of the head.
    """
    expected = {name: tuple(value.shape) for name, value in head.named_parameters() if value.requires_grad}
    came = {name: tuple(value.shape) for name, value in arrays.items()}
    if expected != came:
        raise ConfigError(f"the head has parameters {expected}, got {came}; use the head that the model was made with")
    with torch.no_grad():
        for name, value in head.named_parameters():
            if name in arrays:
                value.copy_(arrays[name])


def arrays_digest(arrays: Mapping[str, Tensor]) -> str:
    """SHA-256, in hex, over names, shapes, types and values."""
    digest = hashlib.sha256()
    for name in sorted(arrays):
        value = arrays[name].detach().cpu().contiguous()
        digest.update(f"{name} {value.dtype} {tuple(value.shape)}\n".encode())
        digest.update(value.numpy().tobytes())
    return digest.hexdigest()

"""Weights from a user's file: read without running anything in it, and laid into a network that they must fit."""

from __future__ import annotations

import re
from collections import OrderedDict
from collections.abc import Iterable, Mapping
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import safetensors.torch
import torch
from torch import Tensor, nn

from common.errors import ConfigError

PICKLED = (".pth", ".pt", ".bin", ".ckpt")

_WRAPPERS = ("state_dict", "model_state_dict", "model")
_COUNTER = ".num_batches_tracked"


def read_state(path: Path) -> dict[str, Tensor]:
    """Read tensors by name from a ``.safetensors`` file or a PyTorch state dict.

    The latter is a pickle, which PyTorch's restricted reader reads (``weights_only=True``): it takes tensors and plain
    containers, and runs nothing. One is opened here for ``fedgraft backbones pack --weights`` alone; torchvision's own
    checkpoints are opened by torchvision, with the same reader.

    Args:
        path: a whole file.

    Returns:
        Its tensors. A wrapping dictionary (``state_dict``, ``model``) and DataParallel's ``module.`` are taken off.

    Raises:
        ConfigError: not there, of another kind, damaged, or holding more than tensors.
    """
    if path.suffix != ".safetensors" and path.suffix not in PICKLED:
        kinds = ", ".join((".safetensors", *PICKLED))
        raise ConfigError(f"expected weights in a file that ends in {kinds}, got {path}; convert or rename it")
    try:
        loaded = safetensors.torch.load_file(path) if path.suffix == ".safetensors" else _unpickle(path)
    except Exception as error:  # the unpickler raises nearly anything on a damaged file
        raise ConfigError(_unreadable(path, error)) from error
    return _tensors(path, loaded)


def lay_into(network: nn.Module, state: Mapping[str, Tensor], *, origin: str, unused: Iterable[str] = ()) -> None:
    """Copy weights into a network.

    Args:
        network: changed in place; one on the device "meta" gets new tensors, so that whoever has its old ones does not.
        state: by the network's own names.
        origin: of the weights, for messages.
        unused: beginnings of names that may be missing, left over or of another shape, such as a classifier's.

    Raises:
        ConfigError: a tensor is missing, left over, of another shape, or not finite; the network is then unusable.
    """
    skipped = tuple(unused)
    known = {name: value for name, value in network.state_dict().items() if not name.startswith(skipped)}
    given = {name: value for name, value in state.items() if not name.startswith(skipped)}
    needed = {name for name in known if not name.endswith(_COUNTER)}  # old files lack the counters, which do nothing
    _refuse_names(origin, "lack", needed - given.keys())
    _refuse_names(origin, "have, beyond what the network knows,", given.keys() - known.keys())
    for name, value in given.items():
        if value.shape != known[name].shape:
            raise ConfigError(
                f"expected {name} of shape {tuple(known[name].shape)} in {origin}, got {tuple(value.shape)}; "
                "give the weights of this very network"
            )
        if not torch.isfinite(value).all():
            raise ConfigError(f"{origin} have values in {name} that are not finite; give other weights")
    without_memory = any(value.is_meta for value in known.values())
    if without_memory:
        missing = {name: torch.zeros_like(known[name], device="cpu") for name in known.keys() - given.keys()}
        given = {name: copied_like(value, known[name]) for name, value in given.items()} | missing
    whole = OrderedDict(given)
    # some of torchvision's networks look up a version there, which safetensors files do not hold
    whole._metadata = getattr(state, "_metadata", getattr(network.state_dict(), "_metadata", {}))  # type: ignore[attr-defined]
    network.load_state_dict(whole, strict=False, assign=without_memory)


def copied_like(value: Tensor, other: Tensor) -> Tensor:
    """A copy in the processor's memory, of another tensor's type and laid out as that one, not as it is in a file."""
    return torch.empty_like(other, device="cpu").copy_(value.detach())


def _unpickle(path: Path) -> Any:
    return torch.load(path, map_location="cpu", weights_only=True)


def _tensors(path: Path, loaded: Any) -> dict[str, Tensor]:
    for wrapper in _WRAPPERS:
        if isinstance(loaded, Mapping) and isinstance(loaded.get(wrapper), Mapping):
            loaded = loaded[wrapper]
    if not isinstance(loaded, Mapping) or not loaded or not all(isinstance(value, Tensor) for value in loaded.values()):
        raise ConfigError(
            f"expected a state dict, tensors by name, in {path}, got something else; save it with "
            "torch.save(model.state_dict(), FILE)"
        )
    return {re.sub(r"^module\.", "", name): value for name, value in loaded.items()}


def _refuse_names(origin: str, verb: str, names: set[str]) -> None:
    if names:
        first = ", ".join(sorted(names)[:3])
        raise ConfigError(
            f"{origin} {verb} {len(names)} tensors ({first}{', …' if len(names) > 3 else ''}); "
            "give the weights of this very network"
        )


def _unreadable(path: Path, error: Exception) -> str:
    if isinstance(error, FileNotFoundError):
        return f"expected a file of weights at {path}, found none; correct the path"
    if isinstance(error, UnpicklingError):
        return (
            f"{path} holds more than tensors, or is no state dict, and nothing else is read from a pickle; save it "
            "with torch.save(model.state_dict(), FILE), or as safetensors"
        )
    return f"the weights {path} cannot be read ({type(error).__name__}); copy the file again"

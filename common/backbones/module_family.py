"""The user's own network as a backbone: ``module/<import path>:<factory>``."""

from __future__ import annotations

import hashlib
import importlib
import re
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from common.backbones.backbone import Activations, Backbone, Preprocessing, backbone_digest, freeze, stage_tensors
from common.backbones.centring import STAGE, centred, without_centre
from common.backbones.package_facts import Builder, read_builder
from common.errors import ConfigError
from common.light_torch import complete_torch

_REFERENCE = re.compile(r"module/(?P<module>[\w.]+):(?P<factory>\w+)(?:@random-(?P<seed>\d+))?")
_ADDRESS = re.compile(r" at 0x[0-9a-f]+")
_EXAMPLE = "write it as in module/mynets:chest_net"


@dataclass(frozen=True)
class UserBackbone:
    """What a factory of the user's gives back.

    >>> from common.backbones.preprocessing import ImagePreprocessing
    >>> def tiny() -> UserBackbone:
    ...     stages = {"stem": nn.Conv2d(3, 8, 3, 2), "pool": nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten())}
    ...     return UserBackbone(stages, ImagePreprocessing(size=64, channels=3), "Apache-2.0", "photographs")
    >>> list(tiny().stages)
    ['stem', 'pool']

    Attributes:
        stages: in order; each maps the previous one's output to its own, the last one gives (N, D).
        preprocessing: from records to the first stage's input.
        licence: of the weights.
        trained_on: whose data the weights have seen.
    """

    stages: Mapping[str, nn.Module]
    preprocessing: Preprocessing
    licence: str = "not stated"
    trained_on: str = "not stated"


class _Builder(Builder):
    factory: str
    layers: dict[str, str]


def load(reference: str) -> Backbone:
    """Load a network of the user's; one that takes images gets its features centred on generated images.

    Args:
        reference: ``"module/mynets:chest_net"`` calls ``chest_net()`` of the module ``mynets``, which lies in the
            working folder or is installed; with ``@random-0`` its weights are drawn anew from that seed.

    Returns:
        The backbone, frozen, in eval mode, on the CPU, in float32. Its digest covers the factory's name, the stages as
        they print, the preprocessing and the weights.

    Raises:
        ConfigError: it cannot be imported, fails, gives something else, has no weights, or its stages do not fit each
            other.
    """
    match = _REFERENCE.fullmatch(reference)
    if match is None:
        raise ConfigError(f"expected module/<import path>:<factory>, got {reference!r}; {_EXAMPLE}")
    factory = f"{match['module']}:{match['factory']}"
    made = _made(factory)
    if match["seed"] is not None:
        _draw(made.stages, int(match["seed"]))
        made = UserBackbone(made.stages, made.preprocessing, "none needed", "nothing: random weights")
    backbone = _backbone(reference, factory, made)
    return centred(backbone) if "image" in backbone.preprocessing.accepts else backbone


def describe(backbone: Backbone) -> dict[str, Any]:
    """What ``rebuild`` needs beside the tensors; a package holds no code, so the module must be there as well."""
    match = _REFERENCE.fullmatch(backbone.name)
    assert match is not None
    return {
        "family": "module",
        "factory": f"{match['module']}:{match['factory']}",
        "layers": _printed(without_centre(backbone).stages),
    }


def rebuild(
    description: Mapping[str, Any], preprocessing: Mapping[str, Any], files: Mapping[str, bytes], seed: int | None
) -> tuple[dict[str, nn.Module], Preprocessing]:
    """The stages, with random weights or with no seed the factory's, and the preprocessing, of what was described.

    Raises:
        ConfigError: as ``load``, or the factory makes another network by now.
    """
    builder = read_builder(_Builder, description)
    made = _made(builder.factory)
    stages = {name: stage for name, stage in made.stages.items() if name != STAGE}
    if _printed(stages) != builder.layers:
        raise ConfigError(
            f"the factory {builder.factory} makes another network here than the one that was packed; "
            "install the version of it that was packed"
        )
    if seed is not None:
        _draw(stages, seed)
    return stages, made.preprocessing


def _made(factory: str) -> UserBackbone:
    """Call the factory, and check what it gives back."""
    with _working_folder():
        made = _called(factory, _imported(factory))
    if isinstance(made, Backbone):
        made = UserBackbone(made.stages, made.preprocessing, made.licence, made.trained_on)
    stages = made.stages if isinstance(made, UserBackbone) else None
    if not isinstance(stages, Mapping) or not stages or not all(_is_stage(*item) for item in stages.items()):
        raise ConfigError(
            f"the factory {factory} must give a UserBackbone or a Backbone, whose stages are PyTorch modules by name, "
            f"got {type(made).__name__}; see fedgraft's common.backbones.module_family.UserBackbone"
        )
    assert isinstance(made, UserBackbone)
    tensors = stage_tensors(stages)
    if not tensors:
        raise ConfigError(
            f"the network of {factory} has no parameter, so that nothing was learned; give one with weights"
        )
    if not all(bool(torch.isfinite(value).all()) for value in tensors.values()):
        raise ConfigError(f"the network of {factory} has weights that are not finite; load others in the factory")
    stages = {name: freeze(stage).cpu().float() for name, stage in stages.items()}
    _try_out(factory, stages, made.preprocessing)
    return UserBackbone(stages, made.preprocessing, str(made.licence), str(made.trained_on))


def _is_stage(name: Any, stage: Any) -> bool:
    return isinstance(name, str) and isinstance(stage, nn.Module)


def _imported(factory: str) -> Callable[[], Any]:
    module, _, attribute = factory.partition(":")
    complete_torch()  # a network of the user's may do anything with it
    try:
        found = getattr(importlib.import_module(module), attribute, None)
    except Exception as error:  # the user's own code may raise anything
        raise ConfigError(
            f"the module {module} cannot be imported ({type(error).__name__}: {error}); run in the folder it "
            "lies in, or install it"
        ) from error
    if not callable(found):
        raise ConfigError(f"the module {module} has no function {attribute}; {_EXAMPLE}")
    factory_function: Callable[[], Any] = found
    return factory_function


def _called(name: str, factory: Callable[[], Any]) -> Any:
    try:
        return factory()
    except Exception as error:  # as above
        raise ConfigError(
            f"the factory {name} failed ({type(error).__name__}: {error}); it is called without arguments and "
            "must work on its own"
        ) from error


@torch.inference_mode()
def _try_out(factory: str, stages: Mapping[str, nn.Module], preprocessing: Preprocessing) -> None:
    """Run the stages on a made-up record, to name the one that fails."""
    try:
        values: Activations = preprocessing(preprocessing.blank())
    except Exception as error:
        raise ConfigError(
            f"the preprocessing of {factory} cannot prepare its own blank record ({type(error).__name__}: {error}); "
            "use common.backbones.preprocessing.ImagePreprocessing or write one like it"
        ) from error
    for name, stage in stages.items():
        try:
            values = stage(values)
        except Exception as error:
            raise ConfigError(
                f"the stage {name!r} of {factory} fails on what comes before it ({type(error).__name__}: {error}); "
                "each stage must take the output of the one before"
            ) from error
    if not isinstance(values, Tensor) or values.ndim != 2 or not values.is_floating_point():
        shape = tuple(values.shape) if isinstance(values, Tensor) else type(values).__name__
        raise ConfigError(
            f"the last stage of {factory} must give features (N, D), got {shape} for one record; "
            "end with a pooling stage, nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten())"
        )


def _backbone(reference: str, factory: str, made: UserBackbone) -> Backbone:
    architecture = {"family": "module", "factory": factory, "layers": _printed(made.stages)}
    described = made.preprocessing.describe()
    digest = backbone_digest(architecture, described, stage_tensors(made.stages))
    return Backbone(reference, made.stages, made.preprocessing, made.licence, made.trained_on, digest)


def _printed(stages: Mapping[str, nn.Module]) -> dict[str, str]:
    """SHA-256 of each stage as it prints, which names layers and their settings."""
    printed = {name: _ADDRESS.sub("", repr(stage)) for name, stage in stages.items()}
    return {name: hashlib.sha256(text.encode()).hexdigest() for name, text in printed.items()}


@torch.no_grad()
def _draw(stages: Mapping[str, nn.Module], seed: int) -> None:
    """Draw all weights anew, as each layer draws its own; what has no way of its own keeps its deviation."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        for stage in stages.values():
            for module in stage.modules():
                reset = getattr(module, "reset_parameters", None) or getattr(module, "_reset_parameters", None)
                if callable(reset):
                    reset()
                    continue
                for value in module.parameters(recurse=False):
                    value.normal_(0, float(value.std(correction=0)) or 0.02)
            freeze(stage)


@contextmanager
def _working_folder() -> Iterator[None]:
    """Let imports look into the working folder too, last of all, so that nothing there can stand in for a library."""
    here = str(Path.cwd())
    if here in sys.path or "" in sys.path:
        yield
        return
    sys.path.append(here)
    try:
        yield
    finally:
        sys.path.remove(here)

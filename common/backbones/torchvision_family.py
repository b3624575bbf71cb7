"""torchvision's classification networks as backbones: ``torchvision/<model>[:<pixels>][@<weights>]``."""

from __future__ import annotations

import difflib
import itertools
import re
import socket
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from common.backbones.backbone import Backbone, backbone_digest, freeze, stage_tensors
from common.backbones.centring import centred
from common.backbones.package_facts import Builder, read_builder
from common.backbones.preprocessing import ImagePreprocessing
from common.backbones.torchvision_models import models
from common.backbones.torchvision_stages import Stages, divide, is_divisible
from common.backbones.weight_files import lay_into, read_state
from common.errors import ConfigError

FAMILY = "torchvision"
MIN_PIXELS, MAX_PIXELS = 32, 1024
CONNECT_TIMEOUT_S = 20.0

_REFERENCE = re.compile(
    r"torchvision/(?P<model>\w+)(?::(?P<size>\d+))?(?:@(?P<weights>(?!random-)[^@]+))?(?:@random-(?P<seed>\d+))?"
)
_AUXILIARY = ("AuxLogits.", "aux1.", "aux2.")  # classifiers that only training uses
_REGISTERED = frozenset({"_parameters", "_buffers", "_modules"})
_OLD_DENSENET = re.compile(r"^(.*denselayer\d+\.(?:norm|conv))\.([12]\..+)$")


@dataclass(frozen=True)
class Recipe:
    """What decides the network and its input, all but the weights.

    Attributes:
        model: torchvision's name of the builder, such as ``"resnet18"``.
        weights: torchvision's name of the weights, which come with their own way of preparing an image.
        size: side of the input, pixels.
    """

    model: str
    weights: str
    size: int

    def describe(self) -> dict[str, Any]:
        """The same as JSON; part of the digest."""
        return {"family": FAMILY, "model": self.model, "weights": self.weights, "size": self.size}


class _Builder(Builder):
    model: str
    weights: str
    size: int


def load(reference: str, checkpoints: Path | None = None) -> Backbone:
    """Load a network of torchvision's, its features centred on generated images.

    Args:
        reference: ``"torchvision/resnet18"`` for torchvision's best weights, ``…@IMAGENET1K_V1`` for others by
            torchvision's own name, ``…@random-0`` for weights drawn from that seed; before the ``@`` perhaps ``:96``
            for an input of 96 pixels instead of the weights' own size.
        checkpoints: folder of torchvision's downloads; by default torchvision's own, in the user's cache.

    Returns:
        The backbone, frozen, on the CPU; its stages up to ``pool`` (or ``fc…``) followed by the network's own
        classifier are the whole network, and ``centre`` follows them.

    Raises:
        ConfigError: unknown model, weights or size; a model that is no row of stages; weights that cannot be fetched.
    """
    recipe, seed = _read(reference)
    if seed is not None:
        network = build(recipe, seed)
        return centred(_backbone(reference, recipe, network, "none needed", "nothing: random weights"))
    network = build(recipe, None)
    _fill(network, recipe, _fetch(recipe, checkpoints), f"the weights {recipe.weights} of {reference}")
    return centred(_backbone(reference, recipe, network, _licence(recipe), _trained_on(recipe)))


def load_file(reference: str, path: Path) -> Backbone:
    """As ``load``, with the weights of a file of the user's, not centred; licence and origin are left to be said.

    Raises:
        ConfigError: as ``load``, or the file does not hold the weights of this network.
    """
    recipe, seed = _read(reference)
    if seed is not None:
        raise ConfigError(f"{reference} names random weights, and there is a file of weights as well; leave one out")
    network = build(recipe, None)
    _fill(network, recipe, read_state(path), f"the weights in {path}")
    return _backbone(reference, recipe, network, "not stated", f"not stated: weights of {path.name}")


def describe(backbone: Backbone) -> dict[str, Any]:
    """What ``rebuild`` needs beside the tensors, JSON values only; the family's half of a package."""
    return _read(backbone.name)[0].describe()


def rebuild(
    description: Mapping[str, Any], preprocessing: Mapping[str, Any], files: Mapping[str, bytes], seed: int | None
) -> tuple[Stages, ImagePreprocessing]:
    """The stages, with random weights or as ``build`` makes them with no seed, and the preprocessing, of a description.

    Raises:
        ConfigError: this version of torchvision has no such network.
    """
    builder = read_builder(_Builder, description)
    recipe = _recipe(builder.model, builder.weights, builder.size)
    return divide(build(recipe, seed))[0], ImagePreprocessing.from_description(preprocessing)


def model_names() -> tuple[str, ...]:
    """Every model that can be a backbone."""
    known = models()
    return tuple(name for name in known.list_models(module=known) if is_divisible(name))


def build(recipe: Recipe, seed: int | None = 0) -> nn.Module:
    """Make the network, frozen, with random weights on the CPU; the global generator is left as it was.

    Args:
        recipe: of the network.
        seed: of the weights; None where every stage is filled from elsewhere next. Then nothing is drawn, and all is on
            the device "meta", if the network can be made so.

    Raises:
        ConfigError: the network cannot take images of that size.
    """
    if seed is None:
        # what cannot be made on that device, or not at all, is tried again below
        with suppress(AssertionError, NotImplementedError, RuntimeError, TypeError, ValueError), torch.device("meta"):
            network = _made(recipe)
            if _is_all_state(network):
                return freeze(network)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed or 0)
        try:
            return freeze(_made(recipe))
        except (AssertionError, ValueError) as error:
            raise _wrong_size(recipe) from error


def _made(recipe: Recipe) -> nn.Module:
    network: nn.Module = models().get_model(recipe.model, weights=None, **_options(recipe))
    return network


def _is_all_state(network: nn.Module) -> bool:
    """Whether a network has no tensor but the parameters and buffers that its state names."""
    state = {id(value) for value in network.state_dict(keep_vars=True).values()}
    known = itertools.chain(network.parameters(), network.buffers())
    return all(id(value) in state for value in known) and not any(map(_has_others, network.modules()))


def _has_others(module: nn.Module) -> bool:
    """Whether a module keeps tensors, or modules, where PyTorch does not know of them."""
    return any(_holds_tensor(value) for name, value in vars(module).items() if name not in _REGISTERED)


def _holds_tensor(value: object) -> bool:
    if isinstance(value, Mapping):
        value = list(value.values())
    inner = isinstance(value, list | tuple | set) and any(map(_holds_tensor, value))
    return inner or isinstance(value, Tensor | nn.Module)


def _options(recipe: Recipe) -> dict[str, Any]:
    if recipe.model.startswith("vit_"):
        return {"image_size": recipe.size}
    if recipe.model.startswith("maxvit"):
        return {"input_size": (recipe.size, recipe.size)}
    if recipe.model in ("inception_v3", "googlenet"):
        return {"aux_logits": False, "transform_input": True, "init_weights": True}
    return {}


def _read(reference: str) -> tuple[Recipe, int | None]:
    """Take a reference apart, into the recipe and the seed of random weights."""
    match = _REFERENCE.fullmatch(reference)
    if match is None:
        raise ConfigError(
            f"expected torchvision/<model>, perhaps with :<pixels> and @<weights>, got {reference!r}; "
            "write it as in torchvision/resnet18:96@IMAGENET1K_V1"
        )
    seed = match["seed"]
    size = None if match["size"] is None else int(match["size"])
    return _recipe(match["model"], match["weights"], size), None if seed is None else int(seed)


def _recipe(model: str, weights: str | None, size: int | None) -> Recipe:
    known = _weights_of(model)
    name = known.DEFAULT.name if weights in (None, "DEFAULT") else str(weights)
    if name not in known.__members__:
        raise ConfigError(
            f"torchvision's {model} has the weights {', '.join(item.name for item in known)}, not {name!r}; "
            "choose one of them or random-0"
        )
    if size is not None and not MIN_PIXELS <= size <= MAX_PIXELS:
        raise ConfigError(
            f"expected an input of {MIN_PIXELS} to {MAX_PIXELS} pixels, got {size}; write another after the colon"
        )
    own = known[name].transforms().crop_size[0]
    return Recipe(model, name, own if size is None else size)


def _weights_of(model: str) -> Any:
    names = model_names()
    if model not in names:
        near = difflib.get_close_matches(model, names, n=1)
        hint = f"did you mean {near[0]}?" if near else "choose one of them"
        why = "is no row of stages that ends in one vector" if model in models().list_models() else "is unknown"
        raise ConfigError(f"torchvision/{model} {why}; models that can be backbones are {', '.join(names)}; {hint}")
    return models().get_model_weights(model)


def _preprocessing(recipe: Recipe) -> ImagePreprocessing:
    """How torchvision itself prepares an image for these weights, scaled to the input's size."""
    transforms = _weights_of(recipe.model)[recipe.weights].transforms()
    shorter_side = round(transforms.resize_size[0] * recipe.size / transforms.crop_size[0])
    return ImagePreprocessing(
        size=recipe.size,
        channels=3,
        mean=tuple(transforms.mean),
        std=tuple(transforms.std),
        shorter_side=shorter_side,
        interpolation=transforms.interpolation.value,
    )


def _backbone(reference: str, recipe: Recipe, network: nn.Module, licence: str, trained_on: str) -> Backbone:
    stages, _ = divide(network)
    preprocessing = _preprocessing(recipe)
    _try_out(stages, preprocessing, recipe)
    architecture = {**recipe.describe(), "stages": list(stages)}
    digest = backbone_digest(architecture, preprocessing.describe(), stage_tensors(stages))
    return Backbone(reference, stages, preprocessing, licence, trained_on, digest)


@torch.inference_mode()
def _try_out(stages: Stages, preprocessing: ImagePreprocessing, recipe: Recipe) -> None:
    values: Any = preprocessing(preprocessing.blank())
    try:
        for stage in stages.values():
            values = freeze(stage)(values)
    except RuntimeError as error:  # a map that has shrunk to nothing
        raise _wrong_size(recipe) from error


def _wrong_size(recipe: Recipe) -> ConfigError:
    own = _weights_of(recipe.model)[recipe.weights].transforms().crop_size[0]
    return ConfigError(
        f"torchvision's {recipe.model} cannot take images of {recipe.size} pixels; "
        f"choose another number after the colon, {own} being its own"
    )


def _fill(network: nn.Module, recipe: Recipe, state: dict[str, Tensor], origin: str) -> None:
    """Lay weights into the stages; the classifier, which no backbone has, stays as it is."""
    if recipe.model.startswith("densenet"):
        _rename(state)
    if recipe.model.startswith("vit_") and "encoder.pos_embedding" in state:
        patch = int(recipe.model.rpartition("_")[2])
        state = models().vision_transformer.interpolate_embeddings(recipe.size, patch, state)
    lay_into(network, state, origin=origin, unused=(*_classifier_names(network), *_AUXILIARY))


def _rename(state: dict[str, Tensor]) -> None:
    """DenseNet's published weights have names from before PyTorch forbade dots in them."""
    for name in list(state):
        if match := _OLD_DENSENET.match(name):
            state["".join(match.groups())] = state.pop(name)


def _classifier_names(network: nn.Module) -> set[str]:
    """Beginnings of the names of all tensors that are in no stage."""
    within = {id(value) for stage in divide(network)[0].values() for value in stage.state_dict(keep_vars=True).values()}
    names = [name for name, value in network.state_dict(keep_vars=True).items() if id(value) not in within]
    return {f"{name.rpartition('.')[0]}." for name in names}


def _fetch(recipe: Recipe, checkpoints: Path | None) -> dict[str, Tensor]:
    """Weights by torchvision, from its folder of downloads or else its server, which are then kept in that folder."""
    weights = _weights_of(recipe.model)[recipe.weights]
    folder = None if checkpoints is None else str(checkpoints)
    try:
        with _patience(CONNECT_TIMEOUT_S):
            state: dict[str, Tensor] = weights.get_state_dict(
                progress=sys.stderr.isatty(), check_hash=True, weights_only=True, map_location="cpu", model_dir=folder
            )
    except OSError as error:
        reason = getattr(error, "reason", error)
        raise ConfigError(
            f"the weights {recipe.weights} of torchvision/{recipe.model} are not on this machine and cannot be fetched "
            f"({reason}); on a connected machine run `fedgraft backbones pack torchvision/{recipe.model} --out FOLDER` "
            "and use package/FOLDER here, or pack a file that you have with --weights FILE, or take random weights "
            f"with torchvision/{recipe.model}@random-0"
        ) from error
    except Exception as error:  # what unpickling damaged files raises has many types
        raise ConfigError(
            f"the weights {recipe.weights} of torchvision/{recipe.model} arrived damaged ({type(error).__name__}); "
            f"delete {weights.url.rpartition('/')[2]} in torchvision's folder of downloads and run again"
        ) from error
    return state


@contextmanager
def _patience(timeout_s: float) -> Iterator[None]:
    """Give up on a network that swallows everything; without this, connecting takes minutes."""
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(timeout_s)
    try:
        yield
    finally:
        socket.setdefaulttimeout(before)


def _licence(recipe: Recipe) -> str:
    meta: Mapping[str, Any] = _weights_of(recipe.model)[recipe.weights].meta
    return str(meta.get("license", "BSD-3-Clause (torchvision); ImageNet's own terms may apply"))


def _trained_on(recipe: Recipe) -> str:
    pictures = "pictures from Instagram and ImageNet" if "SWAG" in recipe.weights else "ImageNet's photographs"
    return f"{pictures} (torchvision {recipe.model} {recipe.weights})"

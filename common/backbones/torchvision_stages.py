"""torchvision's classification networks, divided into stages that keep torchvision's own names."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn

from common.errors import ConfigError

Stages: TypeAlias = dict[str, nn.Module]
Division: TypeAlias = tuple[Stages, nn.Module]
"""Stages in order, of which the last gives one vector (D,) a record, and the classifier that follows them."""


class GlobalMean(nn.Module):
    """The mean of each channel's map."""

    def forward(self, maps: Tensor) -> Tensor:
        """(N, C, H, W) -> (N, C)."""
        return maps.mean(dim=(2, 3))


class FirstToken(nn.Module):
    """What the class token has become."""

    def forward(self, tokens: Tensor) -> Tensor:
        """(N, S, D) -> (N, D)."""
        return tokens[:, 0]


class Rescaled(nn.Module):
    """From torchvision's usual constants to those of the TensorFlow checkpoints of Inception and GoogLeNet."""

    scale: Tensor
    shift: Tensor

    def __init__(self) -> None:
        super().__init__()
        scale = torch.tensor([0.229 / 0.5, 0.224 / 0.5, 0.225 / 0.5])
        shift = torch.tensor([(0.485 - 0.5) / 0.5, (0.456 - 0.5) / 0.5, (0.406 - 0.5) / 0.5])
        self.register_buffer("scale", scale.reshape(3, 1, 1), persistent=False)
        self.register_buffer("shift", shift.reshape(3, 1, 1), persistent=False)

    def forward(self, images: Tensor) -> Tensor:
        """(N, 3, S, S) -> the same shape."""
        return images * self.scale + self.shift


class PatchEmbeddings(nn.Module):
    """A vision transformer's patches with its class token before them and their positions added."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.conv_proj = model.conv_proj
        self.class_token = model.class_token
        self.pos_embedding = model.encoder.pos_embedding
        self.dropout = model.encoder.dropout

    def forward(self, images: Tensor) -> Tensor:
        """(N, 3, S, S) -> (N, 1 + patches, D)."""
        patches = self.conv_proj(images).flatten(2).transpose(1, 2)
        tokens = torch.cat([self.class_token.expand(len(patches), -1, -1), patches], dim=1)
        embedded: Tensor = self.dropout(tokens + self.pos_embedding)
        return embedded


def divide(model: nn.Module) -> Division:
    """Divide a network of torchvision's; the modules are its own, not copies.

    Raises:
        ConfigError: it cannot be expressed as ordered stages that end in one vector.
    """
    known = _DIVISIONS.get(type(model).__name__)
    if known is None:
        raise ConfigError(
            f"expected one of torchvision's networks {', '.join(_DIVISIONS)}, got {type(model).__name__}, which is no "
            "row of stages that ends in one vector; choose another"
        )
    return known(model)


def is_divisible(model_name: str) -> bool:
    """Whether ``divide`` knows the architecture that torchvision's builder of this name makes."""
    # SqueezeNet classifies each place of the last map and averages the classes: no vector comes before its classifier
    return not model_name.startswith("squeezenet")


def _resnet(model: Any) -> Division:
    stages: Stages = {
        "stem": nn.Sequential(model.conv1, model.bn1, model.relu, model.maxpool),
        **_named(model, "layer1", "layer2", "layer3", "layer4"),
        "pool": nn.Sequential(model.avgpool, nn.Flatten()),
    }
    return stages, model.fc


def _vgg(model: Any) -> Division:
    """VGG and AlexNet: blocks that end in a max-pooling, then fully connected layers."""
    blocks = _split(model.features, nn.MaxPool2d)
    *hidden, last = _split(model.classifier, nn.ReLU)
    stages: Stages = {
        **{f"block{number}": block for number, block in enumerate(blocks, 1)},
        "pool": nn.Sequential(model.avgpool, nn.Flatten()),
        **{f"fc{number}": layers for number, layers in enumerate(hidden, 1)},
    }
    return stages, last


def _inception(model: Any) -> Division:
    first = [Rescaled()] if model.transform_input else []
    names = [f"Mixed_{name}" for name in ("5b", "5c", "5d", "6a", "6b", "6c", "6d", "6e", "7a", "7b", "7c")]
    stages: Stages = {
        "stem": nn.Sequential(*first, model.Conv2d_1a_3x3, model.Conv2d_2a_3x3, model.Conv2d_2b_3x3, model.maxpool1),
        "stem2": nn.Sequential(model.Conv2d_3b_1x1, model.Conv2d_4a_3x3, model.maxpool2),
        **_named(model, *names),
        "pool": nn.Sequential(model.avgpool, nn.Flatten()),
    }
    return stages, nn.Sequential(model.dropout, model.fc)


def _googlenet(model: Any) -> Division:
    first = [Rescaled()] if model.transform_input else []
    stages: Stages = {
        "stem": nn.Sequential(*first, model.conv1, model.maxpool1, model.conv2, model.conv3, model.maxpool2),
        "inception3a": model.inception3a,
        "inception3b": nn.Sequential(model.inception3b, model.maxpool3),
        **_named(model, "inception4a", "inception4b", "inception4c", "inception4d"),
        "inception4e": nn.Sequential(model.inception4e, model.maxpool4),
        **_named(model, "inception5a", "inception5b"),
        "pool": nn.Sequential(model.avgpool, nn.Flatten()),
    }
    return stages, nn.Sequential(model.dropout, model.fc)


def _densenet(model: Any) -> Division:
    features = model.features
    stages: Stages = {
        "stem": nn.Sequential(features.conv0, features.norm0, features.relu0, features.pool0),
        "denseblock1": features.denseblock1,
        **{
            name: nn.Sequential(getattr(features, f"transition{number}"), getattr(features, name))
            for number, name in enumerate(("denseblock2", "denseblock3", "denseblock4"), 1)
        },
        "pool": nn.Sequential(features.norm5, nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()),
    }
    return stages, model.classifier


def _mobilenet_v2(model: Any) -> Division:
    return {**_numbered("features", model.features), "pool": _pooled()}, model.classifier


def _mobilenet_v3(model: Any) -> Division:
    *hidden, last = model.classifier
    stages = {**_numbered("features", model.features), "pool": _pooled(), "fc": nn.Sequential(*hidden)}
    return stages, last


def _efficientnet(model: Any) -> Division:
    stages = {**_numbered("features", model.features), "pool": nn.Sequential(model.avgpool, nn.Flatten())}
    return stages, model.classifier


def _convnext(model: Any) -> Division:
    norm, flatten, last = model.classifier
    return {**_numbered("features", model.features), "pool": nn.Sequential(model.avgpool, norm, flatten)}, last


def _vit(model: Any) -> Division:
    stages: Stages = {
        "embeddings": PatchEmbeddings(model),
        **_numbered("layer", model.encoder.layers),
        "pool": nn.Sequential(model.encoder.ln, FirstToken()),
    }
    return stages, model.heads


def _swin(model: Any) -> Division:
    pool = nn.Sequential(model.norm, model.permute, model.avgpool, model.flatten)
    return {**_numbered("features", model.features), "pool": pool}, model.head


def _maxvit(model: Any) -> Division:
    *pool, last = model.classifier
    return {"stem": model.stem, **_numbered("blocks", model.blocks), "pool": nn.Sequential(*pool)}, last


def _regnet(model: Any) -> Division:
    stages: Stages = {
        "stem": model.stem,
        **dict(model.trunk_output.named_children()),
        "pool": nn.Sequential(model.avgpool, nn.Flatten()),
    }
    return stages, model.fc


def _mnasnet(model: Any) -> Division:
    stacks = {f"stack{number}": stack for number, stack in enumerate(model.layers[8:14], 1)}
    return {"stem": model.layers[:8], **stacks, "top": model.layers[14:], "pool": GlobalMean()}, model.classifier


def _shufflenet(model: Any) -> Division:
    stages: Stages = {
        "stem": nn.Sequential(model.conv1, model.maxpool),
        **_named(model, "stage2", "stage3", "stage4", "conv5"),
        "pool": GlobalMean(),
    }
    return stages, model.fc


_DIVISIONS: dict[str, Callable[[Any], Division]] = {
    "AlexNet": _vgg,
    "ConvNeXt": _convnext,
    "DenseNet": _densenet,
    "EfficientNet": _efficientnet,
    "GoogLeNet": _googlenet,
    "Inception3": _inception,
    "MNASNet": _mnasnet,
    "MaxVit": _maxvit,
    "MobileNetV2": _mobilenet_v2,
    "MobileNetV3": _mobilenet_v3,
    "RegNet": _regnet,
    "ResNet": _resnet,
    "ShuffleNetV2": _shufflenet,
    "SwinTransformer": _swin,
    "VGG": _vgg,
    "VisionTransformer": _vit,
}


def _named(model: nn.Module, *names: str) -> Stages:
    return {name: model.get_submodule(name) for name in names}


def _numbered(prefix: str, modules: Any) -> Stages:
    """``prefix.0``, ``prefix.1``, … as in the network's own state."""
    return {f"{prefix}.{number}": module for number, module in enumerate(modules)}


def _split(modules: nn.Sequential, ending: type[nn.Module]) -> list[nn.Sequential]:
    """Pieces that end in a module of the type; what is left over after the last one is a piece as well."""
    pieces: list[list[nn.Module]] = [[]]
    for module in modules:
        pieces[-1].append(module)
        if isinstance(module, ending):
            pieces.append([])
    return [nn.Sequential(*piece) for piece in pieces if piece]


def _pooled() -> nn.Sequential:
    return nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten())

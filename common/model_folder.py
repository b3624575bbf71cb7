"""A trained model on disk: its head, what it stands on, and what was promised about it."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from pydantic import BaseModel, ConfigDict, ValidationError
from torch import Tensor, nn

from common import durable
from common.backbones.backbone import Preprocessing
from common.backbones.controls import load_reference
from common.data.records import Inputs, Modality
from common.errors import BackboneMismatchError, ConfigError
from common.feature_pass import FeaturePass
from common.messages import ModelSpec
from common.model import trained_head

HEAD = "head.safetensors"
FACTS = "model.json"
CARD = "MODEL_CARD.md"
BATCH = 64


class ModelFacts(BaseModel):
    """What ``model.json`` holds.

    Attributes:
        model: backbone, cut, head and label names.
        features: D, the size of a feature vector.
        modality: of the records that it takes.
        columns: of a table, in order.
        keys: the run's ``data.keys``: what columns are called in files, and the codes of words.
        privacy: the promise, as in ``result.json``; None for a model trained without one.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    model: ModelSpec
    features: int
    modality: Modality = "image"
    columns: tuple[str, ...] = ()
    keys: dict[str, str] = {}
    privacy: dict[str, Any] | None


@dataclass(frozen=True)
class Model:
    """A trunk with a trained head."""

    facts: ModelFacts
    trunk: FeaturePass
    head: nn.Module
    preprocessing: Preprocessing

    @torch.inference_mode()
    def logits(self, inputs: Inputs) -> Tensor:
        """What the head says of each record, (N, K), or (N, T, K) where each token has its own.

        Args:
            inputs: N records of the modality ``facts.modality``.
        """
        parts = [inputs[start : start + BATCH] for start in range(0, len(inputs), BATCH)]
        return torch.cat([self.head(self.trunk.features(self.preprocessing(part))) for part in parts])


def save_model(folder: Path, facts: ModelFacts, head: dict[str, Tensor], card: str) -> None:
    """Write a model folder; ``model.json`` comes last, so that a folder with it is whole."""
    folder.mkdir(parents=True, exist_ok=True)
    durable.write_bytes(folder / HEAD, safetensors.torch.save(head))
    durable.write_bytes(folder / CARD, card.encode())
    durable.write_json(folder / FACTS, facts.model_dump(mode="json"))


def load_model(folder: Path) -> Model:
    """Read a model folder, and the backbone it stands on.

    Raises:
        ConfigError: the folder holds no whole model, its head no finite numbers, or the backbone is not at hand.
        BackboneMismatchError: the backbone at hand is another one than the head was trained on.
    """
    facts = _read_facts(folder)
    spec = facts.model
    backbone = load_reference(spec.backbone)
    if backbone.digest != spec.backbone_digest:
        raise BackboneMismatchError(
            f"the head in {folder} was trained on {spec.backbone} with digest {spec.backbone_digest}, the one that is "
            f"installed here has {backbone.digest}; install the fedgraft release that trained the model"
        )
    try:
        arrays = safetensors.torch.load_file(folder / HEAD)
    except (OSError, safetensors.SafetensorError) as error:
        raise ConfigError(f"the head {folder / HEAD} cannot be read ({error}); copy the model folder again") from error
    head = trained_head(spec, arrays)
    _check_values(folder / HEAD, arrays, head)
    return Model(facts, FeaturePass(backbone, spec.cut, spec.precision), head.eval(), backbone.preprocessing)


def _check_values(path: Path, arrays: dict[str, Tensor], head: nn.Module) -> None:
    expected = {name: value.dtype for name, value in head.named_parameters()}
    for name, value in arrays.items():
        if value.dtype != expected[name] or not torch.isfinite(value).all():
            raise ConfigError(
                f"expected finite numbers of type {expected[name]} as {name} in {path}, got others; copy the model "
                "folder again, or train the model anew"
            )


def _read_facts(folder: Path) -> ModelFacts:
    path = folder / FACTS
    try:
        return ModelFacts.model_validate_json(path.read_bytes(), strict=False)
    except OSError as error:
        raise ConfigError(
            f"expected a model folder with {FACTS}, found none in {folder}; give the folder `model` of a finished run"
        ) from error
    except (ValidationError, json.JSONDecodeError) as error:
        raise ConfigError(
            f"expected the facts of a model in {path}, got a damaged file; copy the folder again"
        ) from error

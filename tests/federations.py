"""Small federations for tests: real types, real files, no network."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from common.backbones.controls import load_reference
from common.config import RunConfig
from common.heads import build_head, head_arrays
from common.messages import ModelSpec, Offer, TrainTask
from common.privacy.plan import PrivacyTerms

CLASSES = tuple("0123456789")


def small_config(**sections: dict[str, Any]) -> RunConfig:
    """Four nodes that train a linear head on raw digits for three rounds; sections override."""
    tree: dict[str, dict[str, Any]] = {
        "federation": {"nodes": 4, "rounds": 3, "seed": 7},
        "data": {"source": "digits"},
        "model": {"backbone": "pixels/8"},
        "training": {},
        "privacy": {
            "epsilon": 8.0,
            "delta": 1e-5,
            "clipping_norm": 1.0,
            "sampling_rate": 0.5,
            "unit": "record",
            "trust": "local",
        },
        "evaluation": {},
    }
    return RunConfig.model_validate({name: {**tree[name], **sections.get(name, {})} for name in tree})


def small_terms(**changes: Any) -> PrivacyTerms:
    """Terms of three rounds with one step each."""
    values: dict[str, Any] = {
        "unit": "record",
        "trust": "local",
        "sampling_rate": 0.5,
        "rounds": 3,
        "steps_per_round": 1,
        "clipping_norm": 1.0,
        "noise_multiplier": 2.0,
        "delta": 1e-5,
    }
    return PrivacyTerms(**{**values, **changes})


def small_offer(**changes: Any) -> Offer:
    """An offer of a linear head on raw digits."""
    model = ModelSpec(
        backbone="pixels/8",
        backbone_digest=load_reference("pixels/8").digest,
        cut="pixels",
        head="linear",
        hidden=8,
        classes=CLASSES,
    )
    return Offer("run-1", model, small_terms(**changes))


def small_task(round_: int = 1, **changes: Any) -> TrainTask:
    """The first round's task, from a zero head."""
    head = head_arrays(build_head("linear", 64, len(CLASSES)))
    return TrainTask(small_offer(**changes), round_, head, learning_rate=0.5)


def digest_of(folder: Path) -> str:
    """Digest of the newest checkpoint's head."""
    from common.heads import arrays_digest
    from server.checkpoints import RunStore
    from server.run_folder import run_identity

    latest = RunStore(folder, run_identity(folder)).latest()
    assert latest is not None
    return arrays_digest(latest.head)


def finite(head: dict[str, torch.Tensor]) -> bool:
    """Whether every value of a head is finite."""
    return all(bool(value.isfinite().all()) for value in head.values())

"""What ``result.json`` says of every run, simulated or of real nodes, by the same formulas."""

from __future__ import annotations

import importlib.metadata
import platform
from collections.abc import Mapping, Sequence
from typing import Any

from common.features import cached_backbone
from common.messages import ModelSpec
from common.privacy.hospitals import across_hospitals
from common.privacy.plan import PrivacyTerms
from common.privacy.sums import both_figures
from server.checkpoints import Line

_VERSIONS = ("fedgraft", "flwr", "torch", "opacus", "dp-accounting", "numpy")


def privacy_facts(
    terms: PrivacyTerms,
    epsilon_per_node: Mapping[str, float],
    rounds: Mapping[str, int],
    *,
    budget: float | None,
    accountant: str,
    noise_source: str,
    guarantee: bool,
) -> dict[str, Any]:
    """What was promised and what was spent.

    Args:
        terms: of the run.
        epsilon_per_node: spent, by node name.
        rounds: that each node was charged for, by node name.
        budget: epsilon that was asked for; None where the noise was given.
        accountant: that computed what was spent.
        noise_source: ``"system"`` or ``"seeded"``.
        guarantee: whether epsilon is one.
    """
    return {
        "unit": terms.unit,
        "delta": terms.delta,
        "epsilon_per_node": dict(epsilon_per_node),
        "epsilon_budget": budget,
        "noise_multiplier": terms.noise_multiplier,
        "sampling_rate": terms.sampling_rate,
        "steps": terms.steps,
        "clipping_norm": terms.clipping_norm,
        "accountant": accountant,
        "trust": terms.trust,
        "relation": terms.relation,
        "noise_source": noise_source,
        "epsilon_is_guarantee": guarantee,
        **(both_figures(terms, rounds) if terms.trust == "secagg" else {}),
        **across_hospitals(terms, rounds.values()),
    }


def bytes_facts(lines: Sequence[Line], backbone_once: int) -> dict[str, int | None]:
    """What was moved, both ways; the mean is over a round's nodes that answered, None where none ever did.

    Args:
        lines: the round log.
        backbone_once: bytes of the backbone that were sent, to all nodes together.
    """
    moved = sum(line["bytes_down"] + line["bytes_up"] for line in lines)
    answers = sum(line["nodes"] for line in lines)
    return {
        "per_round_per_node": moved // answers if answers else None,
        "backbone_once": backbone_once,
        "total": moved,
    }


def backbone_facts(model: ModelSpec) -> dict[str, Any]:
    """Which backbone it was, and whose data it has seen."""
    backbone = cached_backbone(model.backbone)
    return {
        "name": backbone.name,
        "digest": backbone.digest,
        "cut": model.cut,
        "licence": backbone.licence,
        "trained_on": backbone.trained_on,
    }


def versions() -> dict[str, str | None]:
    """Of this program and the libraries that decide the result; None for what is not installed as a package."""
    return {**{name: _version(name) for name in _VERSIONS}, "python": platform.python_version()}


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None

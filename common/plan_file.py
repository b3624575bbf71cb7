"""A plan as a file that a hospital's operator reads, and approves by its digest, before a run begins.

The digest covers the privacy terms and the model, whose backbone stands in it by its own digest; not what a server
calls that backbone, nor the run: what was approved holds for every run with this plan, each within the node's cap.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from common import durable
from common.errors import ConfigError, FederationError
from common.messages import ModelSpec
from common.privacy.accountant import epsilon_by_round
from common.privacy.canonical import canonical_json, sha256_hex
from common.privacy.hospitals import in_words
from common.privacy.plan import PrivacyTerms

FORMAT = "fedgraft plan 1"
SHOWN = 60


def plan_digest(model: ModelSpec, terms: PrivacyTerms) -> str:
    """SHA-256, in hex, of what a run would do with records and promise for them."""
    meant = model.model_dump(mode="json", exclude={"backbone"})
    return sha256_hex(FORMAT, canonical_json({"model": meant, "terms": terms.to_dict()}))


def plan_in_words(model: ModelSpec, terms: PrivacyTerms) -> str:
    """One line for an operator: what is trained, with how much noise, and what it would cost."""
    epsilon = epsilon_by_round(terms)[terms.rounds]
    hidden = f" of width {model.hidden}" if model.head == "mlp" else ""
    return (
        f"{model.task}, {len(model.classes)} classes, head {_short(model.head)}{hidden} above {_short(model.cut)} of "
        f"backbone {model.backbone_digest[:12]}; {terms.rounds} rounds of {terms.steps_per_round} steps, sampling rate "
        f"{terms.sampling_rate:g}, clipping norm {terms.clipping_norm:g}, noise multiplier "
        f"{terms.noise_multiplier:.4g}; epsilon {epsilon:.4g} at delta {terms.delta:g}, one {terms.unit}, "
        f"{terms.trust} trust{in_words(terms)}"
    )


def write_plan(path: Path, model: ModelSpec, terms: PrivacyTerms) -> None:
    """Write a plan, with its digest and what it means in words.

    Raises:
        ConfigError: the file cannot be written.
    """
    body: dict[str, Any] = {
        "format": FORMAT,
        "digest": plan_digest(model, terms),
        "words": plan_in_words(model, terms),
        "terms": terms.to_dict(),
        "model": model.model_dump(mode="json"),
    }
    durable.write_json(path, body)


def read_plan(path: Path) -> tuple[ModelSpec, PrivacyTerms]:
    """Read a plan; its words and its digest are made anew, never believed.

    Raises:
        ConfigError: it cannot be read, is no plan, or is another one than its digest says.
        PrivacyError: its terms promise nothing sensible.
    """
    try:
        found = json.loads(path.read_bytes())
        if not isinstance(found, dict) or found.get("format") != FORMAT:
            raise ValueError("another format")
        model = ModelSpec.model_validate_json(json.dumps(found["model"]))
        terms = PrivacyTerms.from_dict(found["terms"])
    except OSError as error:
        raise ConfigError(f"expected a plan at {path}, got: {error.strerror}; ask the coordinator for it") from error
    except (ValueError, LookupError, TypeError, RecursionError, ValidationError) as error:
        raise ConfigError(
            f"expected a plan at {path}, as `fedgraft server plan` writes it, got something else; ask the coordinator "
            "for it"
        ) from error
    except FederationError as error:
        raise type(error)(f"{path}: {error}") from error
    if found.get("digest") != plan_digest(model, terms):
        raise ConfigError(
            f"expected {path} to hold the plan that its digest names, it holds another; ask the coordinator for it anew"
        )
    return model, terms


def _short(text: str) -> str:
    """What a server chose, cut to a line's part."""
    return ascii(text[:SHOWN])[1:-1]

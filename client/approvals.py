"""What a node's operator has approved: software by its digest, backbones by theirs and the operator's own copy.

A server names a backbone by digest; which file or package that is here, the operator alone has said. A reference that
comes in a message is never loaded.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from pydantic import BaseModel, ConfigDict, StringConstraints, ValidationError

from common import durable
from common.errors import BackboneMismatchError, ConfigError, PrivacyError
from common.messages import ModelSpec

APPROVALS = "approved.json"

_Digest = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]


class Approvals(BaseModel):
    """What may be used on this node.

    Attributes:
        apps: SHA-256 of app bundles, to what the operator noted.
        backbones: SHA-256 of backbones, to the operator's own reference.
        awaited: SHA-256 of backbones that the server may send, to the most bytes that one may have.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    apps: dict[_Digest, str] = {}
    backbones: dict[_Digest, str] = {}
    awaited: dict[_Digest, int] = {}

    def own(self, model: ModelSpec) -> ModelSpec:
        """The same model, its backbone named as this node knows it.

        Raises:
            PrivacyError: nobody approved that backbone here.
            BackboneMismatchError: it is approved, and has not come yet.
        """
        reference = self.backbones.get(model.backbone_digest)
        if reference is None and model.backbone_digest in self.awaited:
            raise BackboneMismatchError(
                f"the backbone with digest {model.backbone_digest} is approved and not here yet; the server sends "
                "it, or approve a copy of your own"
            )
        if reference is None:
            raise PrivacyError(
                f"the backbone with digest {model.backbone_digest} is not approved on this node; look at it, then run "
                "`fedgraft node approve backbone REFERENCE`"
            )
        return model.model_copy(update={"backbone": reference})

    def with_app(self, digest: str, note: str) -> Approvals:
        """These, and one more app bundle."""
        return self.model_copy(update={"apps": {**self.apps, digest: note}})

    def with_backbone(self, digest: str, reference: str) -> Approvals:
        """These, and one more backbone, which is awaited no longer."""
        awaited = {key: limit for key, limit in self.awaited.items() if key != digest}
        return self.model_copy(update={"backbones": {**self.backbones, digest: reference}, "awaited": awaited})

    def awaiting(self, digest: str, most_bytes: int) -> Approvals:
        """These, and one more backbone that the server may send."""
        return self.model_copy(update={"awaited": {**self.awaited, digest: most_bytes}})


def read_approvals(folder: Path) -> Approvals:
    """Read what the operator of a node's folder has approved; nothing where there is no file.

    Raises:
        ConfigError: the file is damaged.
    """
    path = folder / APPROVALS
    try:
        return Approvals.model_validate_json(path.read_bytes())
    except FileNotFoundError:
        return Approvals()
    except (OSError, ValidationError) as error:
        raise ConfigError(
            f"expected what was approved in {path}, got a file that cannot be read; remove it and approve again"
        ) from error


def keep_approvals(folder: Path, approvals: Approvals) -> None:
    """Write what was approved, durably.

    Raises:
        ConfigError: it cannot be written.
    """
    durable.write_json(folder / APPROVALS, approvals.model_dump(), mode=0o600)

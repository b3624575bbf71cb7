"""What a node's operator has approved: software and plans by their digests, backbones by theirs and an own copy.

A server names a backbone by digest; which file or package that is here, the operator alone has said. A reference that
comes in a message is never loaded.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

from pydantic import Field, StringConstraints, ValidationError

from common import durable
from common.errors import ConfigError, PrivacyError
from common.locks import alone
from common.messages import ModelSpec
from common.strict import Strict

APPROVALS = "approved.json"

_Digest = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]


class Approvals(Strict):
    """What may be used on this node.

    Attributes:
        apps: SHA-256 of app bundles, to what the operator noted.
        backbones: SHA-256 of backbones, to the operator's own reference.
        plans: digests of plans, to what they are in words.
        peers: digest of the file of the hospitals' keys, to their names; one at most, see ``client.peers``.
        sent: SHA-256 of backbones that the coordinator may send, to the most bytes that one may have.
    """

    apps: dict[_Digest, str] = Field(default_factory=dict)
    backbones: dict[_Digest, str] = Field(default_factory=dict)
    plans: dict[_Digest, str] = Field(default_factory=dict)
    peers: dict[_Digest, str] = Field(default_factory=dict)
    sent: dict[_Digest, int] = Field(default_factory=dict)

    def own(self, model: ModelSpec, folder: Path) -> ModelSpec:
        """The same model, its backbone named as this node knows it.

        Args:
            model: as the server names it.
            folder: of the node, where backbones lie that were sent.

        Raises:
            PrivacyError: nobody approved that backbone here, or it is of a kind that may not be sent.
            BackboneMismatchError: it is approved, and has not come yet.
            ConfigError: what was sent was changed since it came.
        """
        digest = model.backbone_digest
        reference = self.backbones.get(digest)
        if reference is None and digest in self.sent:
            from client.sent_backbones import sent_reference

            reference = sent_reference(folder, digest)
        if reference is None:
            raise PrivacyError(
                f"the backbone with digest {digest} is not approved on this node; look at it, then run "
                "`fedgraft node approve backbone REFERENCE`"
            )
        return model.model_copy(update={"backbone": reference})

    def with_app(self, digest: str, note: str) -> Approvals:
        """These, and one more app bundle."""
        return self.model_copy(update={"apps": {**self.apps, digest: note}})

    def with_backbone(self, digest: str, reference: str) -> Approvals:
        """These, and one more backbone, in a copy of the operator's own and no other."""
        left = self.without(digest)
        return left.model_copy(update={"backbones": {**left.backbones, digest: reference}})

    def with_sent(self, digest: str, most_bytes: int) -> Approvals:
        """These, and one more backbone, in the copy that the coordinator sends and no other."""
        left = self.without(digest)
        return left.model_copy(update={"sent": {**left.sent, digest: most_bytes}})

    def with_plan(self, digest: str, words: str) -> Approvals:
        """These, and one more plan."""
        return self.model_copy(update={"plans": {**self.plans, digest: words}})

    def with_peers(self, digest: str, names: str) -> Approvals:
        """These, and a file of the hospitals' keys in the place of the one before."""
        return self.model_copy(update={"peers": {digest: names}})

    def without(self, digest: str) -> Approvals:
        """These, but what has this digest, of whatever kind."""
        parts = {kind: getattr(self, kind) for kind in type(self).model_fields}
        return self.model_copy(
            update={kind: {key: value for key, value in part.items() if key != digest} for kind, part in parts.items()}
        )

    def kinds(self) -> list[tuple[str, dict[str, str]]]:
        """What is approved, by the name of its kind, in words."""
        sent = {digest: f"sent by the coordinator, at most {limit / 1e6:g} MB" for digest, limit in self.sent.items()}
        backbones = {**self.backbones, **sent}
        return [("apps", self.apps), ("backbones", backbones), ("plans", self.plans), ("peers", self.peers)]


@contextmanager
def changing_approvals(folder: Path) -> Iterator[None]:
    """Hold, alone, what was approved, between reading and keeping it: of two commands at once, none is lost.

    Raises:
        ConfigError: another command holds it too long, or the folder cannot be written.
    """
    with alone(folder / f"{APPROVALS}.lock"):
        yield


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

"""The two messages that a node's key signs in a round, and how they are told from everything else.

The same key proves to the coordinator who a node is, and signs exports of its ledger. So what is signed here begins
with a line of its own, is written in one way only, and names the node; who keeps the key signs nothing else for an app.
"""

from __future__ import annotations

from typing import Annotated, ClassVar

from pydantic import Field, ValidationError, field_validator

from common.errors import PrivacyError
from common.privacy.canonical import canonical_json
from common.secagg.roster import MOST_NODES
from common.secagg.session import Digest, NodeName
from common.strict import Strict

KEYS_TAG, SURVIVORS_TAG = "fedgraft secagg keys 1", "fedgraft secagg survivors 1"
MOST_SIGNED_BYTES = 128 * MOST_NODES


class Said(Strict):
    """What a node says of a session with its signature.

    Attributes:
        session: digest.
        name: of the node that signs.
    """

    tag: ClassVar[str]

    session: Digest
    name: NodeName

    def to_bytes(self) -> bytes:
        """What is signed."""
        return f"{self.tag}\n{canonical_json(self.model_dump(mode='json'))}".encode()


class SaidKeys(Said):
    """Its public keys and its commitment, in hex."""

    tag = KEYS_TAG

    channel_key: Digest
    mask_key: Digest
    commitment: Digest


class SaidSurvivors(Said):
    """Whom it has seen survive, in the order of their names, out of which sharers."""

    tag = SURVIVORS_TAG

    sharers: Digest
    survivors: Annotated[tuple[NodeName, ...], Field(min_length=1, max_length=MOST_NODES)]

    @field_validator("survivors")
    @classmethod
    def _in_order(cls, names: tuple[str, ...]) -> tuple[str, ...]:
        if list(names) != sorted(set(names)):
            raise ValueError("each name once, in order")
        return names


def check_signable(data: bytes, name: str) -> None:
    """Make sure, where the key is kept, that bytes are one of the two messages, said by this node.

    Raises:
        PrivacyError: they are anything else; sign nothing.
    """
    for kind in (SaidKeys, SaidSurvivors):
        tag = f"{kind.tag}\n".encode()
        if len(data) <= MOST_SIGNED_BYTES and data.startswith(tag):
            try:
                said = kind.model_validate_json(data[len(tag) :])
            except (ValidationError, ValueError, RecursionError):
                break
            if said.name == name and said.to_bytes() == data:
                return
    raise PrivacyError(
        f"the node's key signs keys and survivors of a secure sum for an app, in the name of {name}, other bytes came; "
        "sign nothing"
    )

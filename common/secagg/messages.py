"""What server and node say to each other in a round of secure aggregation, and how it is written as bytes.

A message is a line that names its kind and one line of canonical JSON, bytes in base64; behind a masked vector's comes
the vector. There is one way to write a message, and what is written in any other is refused.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import Annotated, ClassVar, Self

import numpy as np
from pydantic import ConfigDict, Field, ValidationError

from common.errors import FederationError, PrivacyError
from common.privacy.canonical import canonical_json
from common.sealing import NONCE_BYTES
from common.secagg.keys import KEY_BYTES
from common.secagg.masks import Words, reduced, word_type
from common.secagg.roster import MOST_NODES
from common.secagg.session import Digest, NodeName, Session, SumTerms
from common.secagg.shamir import SHARE_BYTES
from common.strict import Strict

TAG = "fedgraft secagg 1"
PAIR_BYTES = 2 * SHARE_BYTES  # a share of the mask key's seed, and one of the self-mask's
SEALED_BYTES = NONCE_BYTES + PAIR_BYTES + 16
MOST_MESSAGE_BYTES = 1024 * (MOST_NODES + 4)  # of all kinds but vectors

_Key = Annotated[bytes, Field(min_length=KEY_BYTES, max_length=KEY_BYTES)]
_Share = Annotated[bytes, Field(min_length=SHARE_BYTES, max_length=SHARE_BYTES)]
_Sealed = Annotated[bytes, Field(min_length=SEALED_BYTES, max_length=SEALED_BYTES)]
_Signature = Annotated[bytes, Field(min_length=8, max_length=112)]
_Names = Annotated[tuple[NodeName, ...], Field(max_length=MOST_NODES)]


class Stage(StrEnum):
    """The steps of a round, in their order; each is a request of the server's and a node's reply."""

    KEYS = "keys"
    SHARES = "shares"
    VECTOR = "vector"
    AGREEMENT = "agreement"
    REVEAL = "reveal"


class _Part(Strict):
    model_config = ConfigDict(ser_json_bytes="base64", val_json_bytes="base64")


class Message(_Part):
    """What all messages share."""

    kind: ClassVar[str]

    def to_bytes(self) -> bytes:
        """Write it; ``parse`` reads it back."""
        return f"{TAG} {self.kind}\n{canonical_json(self.model_dump(mode='json'))}".encode()

    @classmethod
    def parse(cls, data: bytes) -> Self:
        """Read a message from bytes that anybody may have made.

        Raises:
            PrivacyError: they are none of this kind, too many, or not written as ``to_bytes`` writes them.
        """
        tag = f"{TAG} {cls.kind}\n".encode()
        if len(data) > MOST_MESSAGE_BYTES:
            raise PrivacyError(
                f"expected {cls.kind} of at most {MOST_MESSAGE_BYTES} bytes, got {len(data)}; refuse them"
            )
        try:
            if not data.startswith(tag):
                raise ValueError("another kind")
            message = cls.model_validate_json(data[len(tag) :])
        except FederationError:
            raise  # a session that promises too little says so itself
        except (ValidationError, ValueError, RecursionError) as error:
            raise _unreadable(cls.kind) from error
        if message.to_bytes() != data:
            raise _unreadable(cls.kind)
        return message


class Invitation(Message):
    """The server's first request: the session."""

    kind = "an invitation"

    session: Session


class NodeKeys(_Part):
    """A node's public keys of a session.

    Attributes:
        name: of the node.
        channel_key: X25519, that shares are sealed to.
        mask_key: X25519, that pairwise masks are agreed with.
        commitment: to the self-mask.
        signature: by the node's key, see ``common.secagg.signatures``.
    """

    name: NodeName
    channel_key: _Key
    mask_key: _Key
    commitment: _Key
    signature: _Signature


class Advertisement(Message):
    """A node's reply to an invitation."""

    kind = "advertised keys"

    session: Digest
    keys: NodeKeys


class Group(Message):
    """The server's second request: the keys of all who advertised some, in the order of their names."""

    kind = "a group's keys"

    session: Digest
    members: Annotated[tuple[NodeKeys, ...], Field(max_length=MOST_NODES)]


class SealedShares(Message):
    """A node's reply: shares of its secrets, sealed to each other member."""

    kind = "sealed shares"

    session: Digest
    name: NodeName
    group: Digest
    sealed: Annotated[dict[NodeName, _Sealed], Field(max_length=MOST_NODES)]


class Delivery(Message):
    """The server's third request: what the others sealed to this node; these and itself are the sharers."""

    kind = "delivered shares"

    session: Digest
    sealed: Annotated[dict[NodeName, _Sealed], Field(max_length=MOST_NODES)]


class VectorHead(Message):
    """What stands before a masked vector."""

    kind = "a masked vector"

    session: Digest
    name: NodeName
    sharers: Digest


class Survivors(Message):
    """The server's fourth request: whose masked vectors it has, in the order of their names."""

    kind = "a list of survivors"

    session: Digest
    names: _Names


class SignedSurvivors(_Part):
    """A node's word that it has seen this set of survivors, and will unmask no other."""

    name: NodeName
    signature: _Signature


class Agreement(Message):
    """A node's reply to a list of survivors."""

    kind = "an agreement"

    session: Digest
    signed: SignedSurvivors


class Agreements(Message):
    """The server's last request: enough nodes' word on the same survivors."""

    kind = "agreements"

    session: Digest
    signed: Annotated[tuple[SignedSurvivors, ...], Field(max_length=MOST_NODES)]


class Revealed(Message):
    """A node's last reply: one share for each sharer, of one kind only.

    Attributes:
        session: digest.
        name: of the node that reveals.
        self_masks: survivor to this node's share of its self-mask's seed.
        mask_keys: dropped node to this node's share of its mask key's seed.
    """

    kind = "revealed shares"

    session: Digest
    name: NodeName
    self_masks: Annotated[dict[NodeName, _Share], Field(max_length=MOST_NODES)]
    mask_keys: Annotated[dict[NodeName, _Share], Field(max_length=MOST_NODES)]


@dataclass(frozen=True)
class MaskedVector:
    """A node's reply to delivered shares.

    Attributes:
        head: whose it is, and with whom it is masked.
        words: residues, shape (length,).
    """

    head: VectorHead
    words: Words

    def to_bytes(self) -> bytes:
        """Write it; ``parse`` reads it back."""
        return self.head.to_bytes() + b"\n" + self.words.tobytes()

    @classmethod
    def parse(cls, data: bytes, terms: SumTerms) -> MaskedVector:
        """Read a masked vector from bytes that anybody may have made.

        Raises:
            PrivacyError: they are none, or of another length or modulus.
        """
        kind = word_type(terms)
        expected = terms.length * kind.itemsize
        if not expected < len(data) <= expected + MOST_MESSAGE_BYTES or data[-expected - 1 : -expected] != b"\n":
            raise PrivacyError(f"expected a masked vector of {expected} bytes, got another length; refuse it")
        words = np.frombuffer(data, dtype=kind, offset=len(data) - expected)
        if not np.array_equal(words, reduced(words, terms)):
            raise PrivacyError(f"expected residues modulo 2^{terms.modulus_bits}, got larger ones; refuse them")
        return cls(VectorHead.parse(data[: -expected - 1]), words)


def check_reply(stage: Stage, data: bytes, terms: SumTerms) -> None:
    """Make sure, at a node's gate, that bytes are a reply of this stage and nothing else.

    Raises:
        PrivacyError: they are not.
    """
    if stage is Stage.VECTOR:
        MaskedVector.parse(data, terms)
    else:
        _REPLIES[stage].parse(data)


_REPLIES: dict[Stage, type[Message]] = {
    Stage.KEYS: Advertisement,
    Stage.SHARES: SealedShares,
    Stage.AGREEMENT: Agreement,
    Stage.REVEAL: Revealed,
}


def _unreadable(kind: str) -> PrivacyError:
    return PrivacyError(f"expected {kind} of secure aggregation, got bytes that are none; refuse them")

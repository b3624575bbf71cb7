"""The secrets of one session, and what is derived of them: X25519 and HKDF from ``cryptography``.

A node draws all of them anew for each session. Nothing that outlives a round is shared: the key that a node signs with
takes no part in masks, and what is given back of a node that dropped out is worth nothing in any other round.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, field

from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from common.errors import PrivacyError
from common.sealing import Seal
from common.secagg.session import Session
from common.secagg.shamir import SHARE_BYTES, random_element

KEY_BYTES = 32


@dataclass(frozen=True)
class Secrets:
    """A node's, for one session.

    Attributes:
        channel: private X25519 key; never shared.
        mask_seed: element of the field, from which the private key of the pairwise masks is derived; shared.
        self_seed: element of the field, from which the self-mask is derived; shared.
    """

    channel: bytes = field(repr=False)
    mask_seed: int = field(repr=False)
    self_seed: int = field(repr=False)

    @classmethod
    def draw(cls) -> Secrets:
        """Draw them from the operating system's generator."""
        return cls(os.urandom(KEY_BYTES), random_element(), random_element())


def channel_private(secrets: Secrets) -> X25519PrivateKey:
    """The private key that shares are sealed with."""
    return X25519PrivateKey.from_private_bytes(secrets.channel)


def mask_private(session: Session, owner: str, mask_seed: int) -> X25519PrivateKey:
    """The private key of a node's pairwise masks."""
    return X25519PrivateKey.from_private_bytes(_derive(_element(mask_seed), session, "mask key", owner))


def self_mask(session: Session, owner: str, self_seed: int) -> bytes:
    """The key of a node's self-mask."""
    return _derive(_element(self_seed), session, "self mask", owner)


def commit(session: Session, owner: str, self_seed: int) -> bytes:
    """What a node says beforehand of its self-mask; it tells nothing of the seed, and fits no other."""
    return _derive(_element(self_seed), session, "commitment", owner)


def pair_mask(session: Session, private: X25519PrivateKey, public: bytes, owner: str, peer: str) -> bytes:
    """The key of the mask between two nodes, the same for both.

    Raises:
        PrivacyError: the public key is of those that give everybody the same secret.
    """
    return _derive(_exchange(private, public, peer), session, "pair mask", *sorted((owner, peer)))


def channel_to(session: Session, private: X25519PrivateKey, public: bytes, own: str, peer: str) -> Seal:
    """What shares from this node to another are sealed with. Errors as in ``pair_mask``."""
    return Seal(_derive(_exchange(private, public, peer), session, "channel", own, peer))


def channel_from(session: Session, private: X25519PrivateKey, public: bytes, own: str, peer: str) -> Seal:
    """What shares from another node to this one are sealed with: another key. Errors as in ``pair_mask``."""
    return Seal(_derive(_exchange(private, public, peer), session, "channel", peer, own))


def check_usable(public: bytes, peer: str) -> None:
    """Make sure that a public key agrees on another secret with everybody. Errors as in ``pair_mask``."""
    _exchange(X25519PrivateKey.generate(), public, peer)


def _exchange(private: X25519PrivateKey, public: bytes, peer: str) -> bytes:
    try:
        return private.exchange(X25519PublicKey.from_public_bytes(public))
    except ValueError as error:
        raise PrivacyError(f"expected a usable key of {peer}, got one that agrees on nothing; refuse it") from error


def _element(value: int) -> bytes:
    return value.to_bytes(SHARE_BYTES, "big")


def _derive(secret: bytes, session: Session, purpose: str, *names: str) -> bytes:
    """A key of its own for each session, purpose and pair of nodes (names hold no newline)."""
    info = "\n".join(("fedgraft secagg 1", purpose, *names)).encode()
    return HKDF(SHA256(), KEY_BYTES, salt=bytes.fromhex(session.digest), info=info).derive(secret)

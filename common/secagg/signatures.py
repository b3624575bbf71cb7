"""What nodes sign in a round, with the key that the operators exchanged, and who verifies it.

Two things are signed: a node's public keys of the session, so that no server can put its own in their place; and the
set of survivors, so that a server which shows two sets finds too few signatures for either.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import lru_cache

from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePublicKey

from common.errors import PrivacyError
from common.privacy.canonical import sha256_hex
from common.privacy.keys import fits, parse_public
from common.secagg.messages import NodeKeys, SignedSurvivors
from common.secagg.roster import Roster
from common.secagg.session import Session
from common.secagg.signed import SaidKeys, SaidSurvivors

Sign = Callable[[bytes], bytes]  # by the node's key, which an app without a network cannot read itself


def sign_keys(
    sign: Sign,
    session: Session,
    name: str,
    *,
    channel_key: bytes,
    mask_key: bytes,
    commitment: bytes,
) -> NodeKeys:
    """Sign a node's public keys of a session."""
    data = _keys_bytes(session, name, channel_key, mask_key, commitment)
    return NodeKeys(name=name, channel_key=channel_key, mask_key=mask_key, commitment=commitment, signature=sign(data))


def check_keys(session: Session, roster: Roster, keys: NodeKeys) -> None:
    """Make sure that the node itself made these keys, for this session.

    Raises:
        PrivacyError: it is not in the cohort, or did not sign them.
    """
    data = _keys_bytes(session, keys.name, keys.channel_key, keys.mask_key, keys.commitment)
    if keys.name not in session.points or not _signed(roster, keys.name, keys.signature, data):
        raise PrivacyError(
            f"the keys in the name of {keys.name} must be signed by its node key for this very round, they are not: "
            "somebody put others in their place, or sent old ones; take no part in the round and tell that hospital"
        )


def group_digest(session: Session, members: Iterable[NodeKeys]) -> str:
    """Name a group by its members and their keys."""
    parts = [(one.name, one.channel_key.hex(), one.mask_key.hex(), one.commitment.hex()) for one in members]
    return sha256_hex(
        "fedgraft secagg group 1", session.digest, *(part for parts_of_one in parts for part in parts_of_one)
    )


def sharers_digest(group: str, names: Iterable[str]) -> str:
    """Name those whose shares went round, out of a group."""
    return sha256_hex("fedgraft secagg sharers 1", group, *sorted(names))


def sign_survivors(sign: Sign, session: Session, name: str, sharers: str, survivors: Iterable[str]) -> SignedSurvivors:
    """Sign a set of survivors."""
    return SignedSurvivors(name=name, signature=sign(_survivors_bytes(session, name, sharers, survivors)))


def check_survivors(
    session: Session, roster: Roster, signed: SignedSurvivors, sharers: str, survivors: Iterable[str]
) -> None:
    """Make sure that a survivor saw the same survivors, out of the same sharers.

    Raises:
        PrivacyError: it did not sign these.
    """
    listed = list(survivors)
    data = _survivors_bytes(session, signed.name, sharers, listed)
    if signed.name not in listed or not _signed(roster, signed.name, signed.signature, data):
        raise PrivacyError(
            f"{signed.name} must have signed the same survivors of this round, it did not: the server may have shown "
            "two sets; reveal nothing"
        )


def _keys_bytes(session: Session, name: str, channel_key: bytes, mask_key: bytes, commitment: bytes) -> bytes:
    keys = {"channel_key": channel_key.hex(), "mask_key": mask_key.hex(), "commitment": commitment.hex()}
    return SaidKeys(session=session.digest, name=name, **keys).to_bytes()


def _survivors_bytes(session: Session, name: str, sharers: str, survivors: Iterable[str]) -> bytes:
    listed = tuple(sorted(survivors))
    return SaidSurvivors(session=session.digest, name=name, sharers=sharers, survivors=listed).to_bytes()


def _signed(roster: Roster, name: str, signature: bytes, data: bytes) -> bool:
    return name in roster.keys and verified(roster.keys[name], signature, data)


@lru_cache(maxsize=8192)
def verified(public_key: str, signature: bytes, data: bytes) -> bool:
    """Whether an OpenSSH key made a signature; remembered, as all nodes of a simulation ask the same in one process."""
    return fits(_parsed(public_key), signature, data)


@lru_cache(maxsize=1024)
def _parsed(public_key: str) -> EllipticCurvePublicKey:
    return parse_public(public_key.encode(), "a node")

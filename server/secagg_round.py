"""The server's half of secure aggregation: five requests a round, and at the end the sum over the survivors.

Nothing here is trusted with a secret: a server that did otherwise would learn no more (docs/decisions/0020). What is
checked is checked so that one node's unusable reply costs that node, and not the round.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import TypeVar

import numpy as np
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from numpy.typing import NDArray

from common.errors import PrivacyError, RoundDiscardedError
from common.secagg.keys import check_usable, commit, mask_private, pair_mask, self_mask
from common.secagg.masks import Words, from_ring, plus, reduced, word_type
from common.secagg.messages import (
    Advertisement,
    Agreement,
    Agreements,
    Delivery,
    Group,
    Invitation,
    MaskedVector,
    NodeKeys,
    Revealed,
    SealedShares,
    SignedSurvivors,
    Stage,
    Survivors,
)
from common.secagg.roster import Roster
from common.secagg.session import Session
from common.secagg.shamir import combine, weights
from common.secagg.signatures import check_keys, check_survivors, group_digest, sharers_digest

Requests = Mapping[str, bytes]
Replies = Mapping[str, bytes]
Ask = Callable[[Stage, Requests], Replies]

NO_REPLY = "no reply"

_Read = TypeVar("_Read")


@dataclass(frozen=True)
class SumRound:
    """A round under way.

    Attributes:
        session: which.
        peers: the nodes' keys.
        requests: node to what it is sent next.
        group: name to keys of those who advertised some.
        sharers: digest of those who shared their secrets, out of the group.
        sharing: their names.
        survivors: who sent a masked vector.
        total: sum of the masked vectors.
        dropped: node to why it is no longer asked; for the log.
    """

    session: Session
    peers: Roster
    requests: Requests
    group: Mapping[str, NodeKeys] = field(default_factory=dict)
    sharers: str = ""
    sharing: tuple[str, ...] = ()
    survivors: tuple[str, ...] = ()
    total: Words | None = field(default=None, repr=False)
    dropped: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class MaskedSum:
    """What a round gives.

    Attributes:
        values: sum of what the survivors sent, modulo 2^b, in -2^(b-1) … 2^(b-1) - 1; int64, shape (length,).
        survivors: whose numbers are in it, in the order of their names.
        dropped: the others, and why.
    """

    values: NDArray[np.int64]
    survivors: tuple[str, ...]
    dropped: Mapping[str, str]


def masked_sum(session: Session, peers: Roster, ask: Ask) -> MaskedSum:
    """Sum one round's vectors.

    Args:
        session: whom it is over, and about what.
        peers: the nodes' keys, at least those of the cohort.
        ask: sends each node its request of a stage, and returns the replies of those who gave one.

    Raises:
        RoundDiscardedError: too few nodes are left, or their shares do not fit; nothing is unmasked.
        PrivacyError: a member of the cohort is unknown, or has another key.
    """
    begun = begin(session, peers)
    keyed = take_keys(begun, ask(Stage.KEYS, begun.requests))
    shared = take_shares(keyed, ask(Stage.SHARES, keyed.requests))
    masked = take_vectors(shared, ask(Stage.VECTOR, shared.requests))
    agreed = take_agreements(masked, ask(Stage.AGREEMENT, masked.requests))
    return unmask(agreed, ask(Stage.REVEAL, agreed.requests))


def begin(session: Session, peers: Roster) -> SumRound:
    """Invite the cohort. Errors as in ``masked_sum``."""
    session.check_keys(peers)
    invitation = Invitation(session=session).to_bytes()
    return SumRound(session, peers, dict.fromkeys(session.points, invitation))


def take_keys(before: SumRound, replies: Replies) -> SumRound:
    """Verify who advertised keys, and send all of them to each. Errors as in ``masked_sum``."""
    seen: set[bytes] = set()

    def read(name: str, data: bytes) -> NodeKeys:
        message = Advertisement.parse(data)
        keys = message.keys
        _check_sender(before, name, message.session, keys.name)
        check_keys(before.session, before.peers, keys)
        if len({*seen, keys.channel_key, keys.mask_key}) != len(seen) + 2:
            raise PrivacyError(f"each key of a group must be another one, {name} sent one again; leave it out")
        for key in (keys.channel_key, keys.mask_key):
            check_usable(key, name)  # else all others would refuse the group
        seen.update((keys.channel_key, keys.mask_key))
        return keys

    group, dropped = _read_all(before, replies, read)
    _check_enough(before.session, len(group), before.session.needed, "advertised keys")
    request = Group(session=before.session.digest, members=tuple(group.values())).to_bytes()
    return replace(before, requests=dict.fromkeys(group, request), group=group, dropped=dropped)


def take_shares(before: SumRound, replies: Replies) -> SumRound:
    """Hand on to each what the others sealed to it. Errors as in ``masked_sum``."""
    session, digest = before.session, group_digest(before.session, before.group.values())

    def read(name: str, data: bytes) -> SealedShares:
        message = SealedShares.parse(data)
        _check_sender(before, name, message.session, message.name)
        if message.group != digest or set(message.sealed) != set(before.group) - {name}:
            raise PrivacyError(f"expected shares for each other member, got others from {name}; leave it out")
        return message

    found, dropped = _read_all(before, replies, read)
    _check_enough(session, len(found), session.needed, "shared their secrets")
    requests = {
        name: Delivery(
            session=session.digest, sealed={peer: found[peer].sealed[name] for peer in found if peer != name}
        ).to_bytes()
        for name in found
    }
    sharers = sharers_digest(digest, found)
    return replace(before, requests=requests, sharers=sharers, sharing=tuple(found), dropped=dropped)


def take_vectors(before: SumRound, replies: Replies) -> SumRound:
    """Add the masked vectors up, and ask for agreement on whose they are. Errors as in ``masked_sum``."""
    session, terms = before.session, before.session.terms
    total = np.zeros(terms.length, word_type(terms))

    def read(name: str, data: bytes) -> str:
        nonlocal total
        message = MaskedVector.parse(data, terms)
        _check_sender(before, name, message.head.session, message.head.name)
        if message.head.sharers != before.sharers:
            raise PrivacyError(f"expected a vector masked with all sharers, got another from {name}; leave it out")
        total = total + message.words
        return name

    found, dropped = _read_all(before, replies, read)
    _check_enough(session, len(found), session.needed, "sent masked vectors")
    request = Survivors(session=session.digest, names=tuple(found)).to_bytes()
    return replace(
        before,
        requests=dict.fromkeys(found, request),
        survivors=tuple(found),
        total=reduced(total, terms),
        dropped=dropped,
    )


def take_agreements(before: SumRound, replies: Replies) -> SumRound:
    """Send the word of enough nodes to all who agreed. Errors as in ``masked_sum``."""
    session = before.session

    def read(name: str, data: bytes) -> SignedSurvivors:
        message = Agreement.parse(data)
        _check_sender(before, name, message.session, message.signed.name)
        check_survivors(session, before.peers, message.signed, before.sharers, before.survivors)
        return message.signed

    found, dropped = _read_all(before, replies, read)
    _check_enough(session, len(found), session.threshold, "agreed on the survivors")
    enough = tuple(found.values())[: session.threshold]
    request = Agreements(session=session.digest, signed=enough).to_bytes()
    return replace(before, requests=dict.fromkeys(found, request), dropped=dropped)


def unmask(before: SumRound, replies: Replies) -> MaskedSum:
    """Give the survivors' self-masks and the dropped nodes' pairwise masks back, and take them off the sum.

    Errors as in ``masked_sum``.
    """
    session = before.session
    gone = set(before.sharing) - set(before.survivors)

    def read(name: str, data: bytes) -> Revealed:
        message = Revealed.parse(data)
        _check_sender(before, name, message.session, message.name)
        if set(message.self_masks) != set(before.survivors) or set(message.mask_keys) != gone:
            raise PrivacyError(f"expected one share for each sharer, got others from {name}; leave it out")
        return message

    found, dropped = _read_all(before, replies, read)
    _check_enough(session, len(found), session.threshold, "revealed shares")
    used = list(found.values())[: session.threshold]
    weighted = weights(session.points[one.name] for one in used)
    self_masks = [
        _self_mask(before, name, _give_back(session, weighted, {one.name: one.self_masks[name] for one in used}))
        for name in before.survivors
    ]
    added: list[bytes] = []
    subtracted: list[bytes] = []
    for name in sorted(gone):
        seed = _give_back(session, weighted, {one.name: one.mask_keys[name] for one in used})
        private = _mask_private(before, name, seed)
        for peer in before.survivors:
            key = pair_mask(session, private, before.group[peer].mask_key, name, peer)
            (added if peer > name else subtracted).append(key)  # the survivor did the opposite
    assert before.total is not None
    unmasked = plus(before.total, session.terms, added=added, subtracted=[*self_masks, *subtracted])
    return MaskedSum(from_ring(unmasked, session.terms), before.survivors, dropped)


def _read_all(
    before: SumRound, replies: Replies, read: Callable[[str, bytes], _Read]
) -> tuple[dict[str, _Read], dict[str, str]]:
    """Read the replies in the order of the names; who gave none, or one that is refused, is dropped."""
    found: dict[str, _Read] = {}
    dropped = dict(before.dropped)
    for name in sorted(before.requests):
        if name not in replies:
            dropped[name] = NO_REPLY
            continue
        try:
            found[name] = read(name, replies[name])
        except PrivacyError as error:
            dropped[name] = str(error)
    return found, dropped


def _check_sender(before: SumRound, name: str, session: str, said: str) -> None:
    if session != before.session.digest or said != name:
        raise PrivacyError(f"expected a reply of {name} for this session, got one of another; leave it out")


def _check_enough(session: Session, count: int, needed: int, what: str) -> None:
    if count < needed:
        raise RoundDiscardedError(
            f"round {session.round} needs {needed} of its {len(session.cohort)} nodes, only {count} {what}; nothing is "
            "unmasked, go on with the next round"
        )


def _give_back(session: Session, weighted: Mapping[int, int], shares: Mapping[str, bytes]) -> int:
    return combine({session.points[name]: int.from_bytes(share, "big") for name, share in shares.items()}, weighted)


def _self_mask(before: SumRound, name: str, seed: int) -> bytes:
    if commit(before.session, name, seed) != before.group[name].commitment:
        raise _misfit(before.session, name)
    return self_mask(before.session, name, seed)


def _mask_private(before: SumRound, name: str, seed: int) -> X25519PrivateKey:
    private = mask_private(before.session, name, seed)
    if private.public_key().public_bytes_raw() != before.group[name].mask_key:
        raise _misfit(before.session, name)
    return private


def _misfit(session: Session, name: str) -> RoundDiscardedError:
    return RoundDiscardedError(
        f"the shares of {name} must give back what it advertised in round {session.round}, they do not: a node sent "
        "wrong ones; go on with the next round"
    )

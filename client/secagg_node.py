"""A node's half of secure aggregation: five answers a round, each recorded before it leaves.

Bonawitz et al. 2017 (doi:10.1145/3133956.3133982), figure 4 with the signatures for active adversaries: what a server
gets is the sum over survivors that enough nodes have signed, or nothing. See docs/decisions/0020.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from client.secagg_record import Kept, KeptSecrets, SumRecord
from common.errors import PrivacyError
from common.sealing import SealBrokenError
from common.secagg.keys import (
    Secrets,
    channel_from,
    channel_private,
    channel_to,
    commit,
    mask_private,
    pair_mask,
    self_mask,
)
from common.secagg.masks import plus, to_ring
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
    Stage,
    Survivors,
    VectorHead,
)
from common.secagg.roster import Roster
from common.secagg.session import Session, SumRun
from common.secagg.shamir import PRIME, SHARE_BYTES, split
from common.secagg.signatures import (
    Sign,
    check_keys,
    check_survivors,
    group_digest,
    sharers_digest,
    sign_keys,
    sign_survivors,
)

Values = Callable[[], NDArray[np.int64]]


class SumNode:
    """One node, which keeps nothing in memory between two answers."""

    def __init__(self, name: str, sign: Sign, peers: Roster, folder: Path, *, durable: bool = True) -> None:
        """Use a node's signatures and what its operator approved.

        Args:
            name: of the node.
            sign: signs bytes with the node's key, as ``common.privacy.keys.sign`` does.
            peers: the approved hospitals and their keys, this one among them.
            folder: where what was answered is recorded; made where it is not there.
            durable: survive a power cut; False, for simulations, survives a killed process.
        """
        self._name, self._sign, self._peers = name, sign, peers
        self._folder, self._durable = folder, durable

    def check_ready(self, nodes: int) -> None:
        """Make sure, when a run is offered, that enough hospitals' keys are approved, this node's among them.

        Raises:
            PrivacyError: they are not.
        """
        if self._name not in self._peers.keys or len(self._peers.keys) < nodes:
            raise PrivacyError(
                f"sums over {nodes} nodes need the approved keys of so many, this node's own among them, there are "
                f"{len(self._peers.keys)}; run `fedgraft node approve peers FILE` with all of them"
            )

    def answer(self, stage: Stage, request: bytes, run: SumRun, values: Values) -> bytes:
        """Answer a request of the server's.

        Args:
            stage: what the request is for.
            request: its bytes.
            run: what this node accepted for this run.
            values: computes what this node adds to the sum, int64; called for the stage ``VECTOR`` alone, and not when
                that was answered before. Charge the budget in it.

        Returns:
            The reply's bytes, which are durably recorded: the same ones whenever the same request comes again.

        Raises:
            PrivacyError: answering would break a promise, or the message is none of this round's: send nothing.
            ConfigError: the record cannot be written: send nothing.
        """
        match stage:
            case Stage.KEYS:
                return self._advertise(request, run)
            case Stage.SHARES:
                group = Group.parse(request)
                return self._once(stage, request, run, group.session, lambda kept: self._share(kept, group))
            case Stage.VECTOR:
                return self._mask(request, run, values)
            case Stage.AGREEMENT:
                survivors = Survivors.parse(request)
                return self._once(stage, request, run, survivors.session, lambda kept: self._agree(kept, survivors))
            case Stage.REVEAL:
                agreed = Agreements.parse(request)
                return self._once(stage, request, run, agreed.session, lambda kept: self._reveal(kept, agreed))

    def _advertise(self, request: bytes, run: SumRun) -> bytes:
        session = Invitation.parse(request).session
        if session.run != run:
            raise PrivacyError(
                f"a session must keep to run, plan and terms that this node accepted ({run.run_id}), the server asks "
                "for others; refuse it"
            )
        session.check_keys(self._peers)
        if self._name not in session.points:
            raise PrivacyError(f"this node, {self._name}, must be in a cohort that it is asked in; refuse the request")
        record = self._record(run)
        with record.alone():
            kept = record.read()
            if kept is not None and kept.session == session:
                return kept.answer(Stage.KEYS, request) or b""
            if kept is not None:
                _check_later(kept, session)
            secrets = Secrets.draw()
            keys = sign_keys(
                self._sign,
                session,
                self._name,
                channel_key=channel_private(secrets).public_key().public_bytes_raw(),
                mask_key=mask_private(session, self._name, secrets.mask_seed).public_key().public_bytes_raw(),
                commitment=commit(session, self._name, secrets.self_seed),
            )
            self._check_own_key(session, keys)
            reply = Advertisement(session=session.digest, keys=keys).to_bytes()
            record.keep(Kept(session=session, secrets=KeptSecrets.of(secrets)).answered(Stage.KEYS, request, reply))
            record.forget_vector()
            return reply

    def _check_own_key(self, session: Session, keys: NodeKeys) -> None:
        try:
            check_keys(session, self._peers, keys)
        except PrivacyError as error:
            raise PrivacyError(
                f"the approved peers must name this node's own key for {self._name}, they name another; approve a "
                "peers file with its newest node.key.pub"
            ) from error

    def _share(self, kept: Kept, group: Group) -> tuple[Kept, bytes]:
        session, names = kept.session, [one.name for one in group.members]
        own = Advertisement.parse(kept.answers[Stage.KEYS].reply).keys
        if names != sorted(set(names)) or own not in group.members:
            raise PrivacyError("a group must name each node once, in order, and this one as it is; refuse this group")
        _check_enough(session, len(names), "advertised keys")
        for one in group.members:
            check_keys(session, self._peers, one)
        if len({key for one in group.members for key in (one.channel_key, one.mask_key)}) != 2 * len(names):
            raise PrivacyError("each key of a group must be another one, but two are alike; refuse this group")
        secrets, digest = _secrets(kept), group_digest(session, group.members)
        seeds = (secrets.mask_seed, secrets.self_seed)
        shared = [split(seed, session.threshold, len(session.cohort)) for seed in seeds]
        pairs = {
            name: b"".join(shares[point - 1].to_bytes(SHARE_BYTES, "big") for shares in shared)
            for name, point in session.points.items()
        }
        private = channel_private(secrets)
        sealed = {
            one.name: channel_to(session, private, one.channel_key, self._name, one.name).close(pairs[one.name], digest)
            for one in group.members
            if one.name != self._name
        }
        reply = SealedShares(session=session.digest, name=self._name, group=digest, sealed=sealed).to_bytes()
        return kept.model_copy(update={"members": group.members, "own_shares": pairs[self._name]}), reply

    def _mask(self, request: bytes, run: SumRun, values: Values) -> bytes:
        """Mask and send what ``values`` gives; the record is not held while that is computed."""
        delivery = Delivery.parse(request)
        record = self._record(run)
        with record.alone():
            kept = _read(record, run, delivery.session)
            if (sent := kept.answer(Stage.VECTOR, request)) is not None:
                return record.vector(sent)
            held = self._open(kept, delivery)
        computed = to_ring(values(), kept.session.terms)
        with record.alone():
            kept = _read(record, run, delivery.session)
            if (sent := kept.answer(Stage.VECTOR, request)) is not None:  # another process was quicker
                return record.vector(sent)
            session, secrets = kept.session, _secrets(kept)
            private = mask_private(session, self._name, secrets.mask_seed)
            pairs = {
                one.name: pair_mask(session, private, one.mask_key, self._name, one.name)
                for one in kept.members
                if one.name in delivery.sealed
            }
            words = plus(
                computed,
                session.terms,
                added=[self_mask(session, self._name, secrets.self_seed), *(pairs[p] for p in pairs if p > self._name)],
                subtracted=[pairs[p] for p in pairs if p < self._name],
            )
            head = VectorHead(session=session.digest, name=self._name, sharers=_sharers(kept, held))
            reply = MaskedVector(head, words).to_bytes()
            kept = kept.model_copy(update={"held": held})
            record.keep(kept.answered(Stage.VECTOR, request, record.keep_vector(reply)))
            return reply

    def _open(self, kept: Kept, delivery: Delivery) -> dict[str, bytes]:
        """The shares that the others sealed to this node, and its own."""
        session, digest = kept.session, group_digest(kept.session, kept.members)
        others = {one.name: one for one in kept.members if one.name != self._name}
        if unknown := set(delivery.sealed) - set(others):
            raise PrivacyError(f"shares must come from members of the group, {min(unknown)} is none; refuse them")
        _check_enough(session, len(delivery.sealed) + 1, "shared their secrets")
        held, private = {self._name: kept.own_shares}, channel_private(_secrets(kept))
        for name, sealed in delivery.sealed.items():
            seal = channel_from(session, private, others[name].channel_key, self._name, name)
            try:
                held[name] = seal.open(sealed, digest)
            except SealBrokenError as error:
                raise PrivacyError(
                    f"the shares of {name} do not open: they were changed, or {name} was shown other keys; take no "
                    "part in the round"
                ) from error
            if any(int.from_bytes(part, "big") >= PRIME for part in _parts(held[name])):
                raise PrivacyError(f"the shares of {name} must be elements of the field, they are not; refuse them")
        return held

    def _agree(self, kept: Kept, survivors: Survivors) -> tuple[Kept, bytes]:
        session, names = kept.session, list(survivors.names)
        if names != sorted(set(names)) or not set(names) <= set(kept.held) or self._name not in names:
            raise PrivacyError(
                "survivors must be nodes that shared their secrets, each once, in order, this one among them, but "
                "these are not; reveal nothing"
            )
        _check_enough(session, len(names), "sent masked vectors")
        signed = sign_survivors(self._sign, session, self._name, _sharers(kept, kept.held), names)
        reply = Agreement(session=session.digest, signed=signed).to_bytes()
        return kept.model_copy(update={"survivors": survivors.names}), reply

    def _reveal(self, kept: Kept, agreed: Agreements) -> tuple[Kept, bytes]:
        session, sharers = kept.session, _sharers(kept, kept.held)
        signers = {one.name for one in agreed.signed}
        if len(signers) < session.threshold:
            raise PrivacyError(
                f"at least {session.threshold} nodes must have signed the survivors before anything is revealed, got "
                f"{len(signers)}; reveal nothing"
            )
        for one in agreed.signed:
            check_survivors(session, self._peers, one, sharers, kept.survivors)
        self_masks = {name: _parts(kept.held[name])[1] for name in kept.survivors}
        mask_keys = {name: _parts(held)[0] for name, held in kept.held.items() if name not in kept.survivors}
        reply = Revealed(session=session.digest, name=self._name, self_masks=self_masks, mask_keys=mask_keys)
        return kept.model_copy(update={"secrets": None, "held": {}, "own_shares": b""}), reply.to_bytes()

    def _record(self, run: SumRun) -> SumRecord:
        return SumRecord(self._folder, run.run_id, durable=self._durable)

    def _once(
        self, stage: Stage, request: bytes, run: SumRun, session: str, make: Callable[[Kept], tuple[Kept, bytes]]
    ) -> bytes:
        """Answer a request once, and its repetitions with the same bytes."""
        record = self._record(run)
        with record.alone():
            kept = _read(record, run, session)
            if (sent := kept.answer(stage, request)) is not None:
                return sent
            changed, reply = make(kept)
            record.keep(changed.answered(stage, request, reply))  # from here on it may have been sent
            if stage is Stage.REVEAL:
                record.forget_vector()
            return reply


def _read(record: SumRecord, run: SumRun, session: str) -> Kept:
    kept = record.read()
    if kept is None or kept.session.run != run or kept.session.digest != session:
        raise PrivacyError(
            "a message must belong to the session that this node takes part in, this one is of another round, run or "
            "cohort; refuse it"
        )
    return kept


def _check_later(kept: Kept, session: Session) -> None:
    before = kept.session
    if (session.round, session.attempt) <= (before.round, before.attempt):
        raise PrivacyError(
            f"sessions follow each other, but round {session.round}, attempt {session.attempt}, came after round "
            f"{before.round}, attempt {before.attempt}; take a later one"
        )
    if session.round == before.round and Stage.VECTOR in kept.answers:
        raise PrivacyError(
            f"this node has sent its masked vector of round {session.round}, which is summed once or never; take the "
            "next round"
        )


def _check_enough(session: Session, count: int, what: str) -> None:
    if count < session.needed:
        raise PrivacyError(
            f"at least {session.needed} nodes must be left of this round, only {count} {what}; discard the round"
        )


def _secrets(kept: Kept) -> Secrets:
    assert kept.secrets is not None  # they go with the last answer, and stages come in order
    return kept.secrets.secrets()


def _sharers(kept: Kept, held: Iterable[str]) -> str:
    return sharers_digest(group_digest(kept.session, kept.members), held)


def _parts(pair: bytes) -> tuple[bytes, bytes]:
    """A share of the mask key's seed, and one of the self-mask's."""
    return pair[:SHARE_BYTES], pair[SHARE_BYTES:]

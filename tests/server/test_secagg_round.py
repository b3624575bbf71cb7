"""The server's sum is the survivors' plain sum, exactly, or there is none."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from common.errors import PrivacyError, RoundDiscardedError
from common.secagg.messages import Advertisement, MaskedVector, Revealed, SealedShares, Stage
from common.secagg.session import Session
from common.secagg.shamir import PRIME, combine, weights
from common.secagg.signatures import sign_keys
from server.secagg_round import NO_REPLY, Requests, masked_sum
from tests.sums import Sums, names_of, roster_of, run_of, signer

Lost = list[tuple[Stage, bool] | None]


def lost_at(lost: Lost, names: list[str], *, arrived: bool) -> dict[Stage, list[str]]:
    """Who drops out at each stage: before the request came, or after the reply was made."""
    return {stage: [name for name, at in zip(names, lost, strict=True) if at == (stage, arrived)] for stage in Stage}


def left_after(lost: Lost, stage: Stage) -> int:
    stages = list(Stage)
    return sum(at is None or stages.index(at[0]) > stages.index(stage) for at in lost)


@st.composite
def federations(draw: st.DrawFn) -> tuple[int, int, int, Lost]:
    nodes = draw(st.integers(3, 8))
    colluders = draw(st.integers(0, nodes - 2))
    dropouts = draw(st.integers(0, nodes - (nodes + colluders) // 2 - 1))
    drops = st.one_of(st.none(), st.none(), st.tuples(st.sampled_from(list(Stage)), st.booleans()))
    return nodes, colluders, dropouts, draw(st.lists(drops, min_size=nodes, max_size=nodes))


@settings(max_examples=30, suppress_health_check=[HealthCheck.too_slow])
@given(federations(), st.sampled_from([8, 20, 32, 33, 64]))
@example((5, 0, 2, [(Stage.VECTOR, True), (Stage.VECTOR, False), None, None, None]), 20)
@example((5, 0, 2, [(Stage.VECTOR, True), (Stage.SHARES, False), (Stage.VECTOR, False), None, None]), 20)
@example((6, 1, 2, [(Stage.REVEAL, True), (Stage.REVEAL, False), None, None, None, None]), 20)
@example((4, 0, 1, [(Stage.AGREEMENT, True), (Stage.AGREEMENT, False), None, None]), 20)
def test_the_sum_is_the_plain_sum_of_the_survivors_or_nothing_is_revealed(
    federation: tuple[int, int, int, Lost], bits: int
) -> None:
    nodes, colluders, dropouts, lost = federation
    run = run_of(nodes, dropouts=dropouts, colluders=colluders, bits=bits)
    names = names_of(nodes)
    needed, threshold = max(nodes - dropouts, run.terms.threshold_of(nodes)), run.terms.threshold_of(nodes)
    goes_well = all(left_after(lost, stage) >= needed for stage in (Stage.KEYS, Stage.SHARES, Stage.VECTOR)) and all(
        left_after(lost, stage) >= threshold for stage in (Stage.AGREEMENT, Stage.REVEAL)
    )
    with tempfile.TemporaryDirectory() as folder:
        sums = Sums(Path(folder), run, names)
        ask = sums.ask(lost=lost_at(lost, names, arrived=True), deaf=lost_at(lost, names, arrived=False))
        if not goes_well:
            with pytest.raises(RoundDiscardedError, match="nothing is unmasked"):
                masked_sum(sums.session(), sums.peers, ask)
            revealed = [name for stage, name in sums.seen if stage is Stage.REVEAL]
            arrived = left_after(lost, Stage.REVEAL) if revealed else 0
            assert arrived < threshold
            return
        found = masked_sum(sums.session(), sums.peers, ask)
    survivors = [name for name, at in zip(names, lost, strict=True) if at is None or at[0] in list(Stage)[3:]]
    assert list(found.survivors) == survivors
    half = 2 ** (bits - 1)
    assert found.values.tolist() == [(int(x) + half) % 2**bits - half for x in sums.plain_sum(survivors)]
    assert set(found.dropped) == {name for name, at in zip(names, lost, strict=True) if at is not None}


@pytest.mark.parametrize("nodes", [20, pytest.param(100, marks=pytest.mark.slow)])
def test_many_nodes(tmp_path: Path, nodes: int) -> None:
    sums = Sums(tmp_path, run_of(nodes, dropouts=2, colluders=1, length=50), names_of(nodes))
    lost = {Stage.VECTOR: sums.names[:1], Stage.SHARES: sums.names[1:2], Stage.REVEAL: sums.names[2:9]}
    found = masked_sum(sums.session(), sums.peers, sums.ask(lost))
    assert list(found.survivors) == sums.names[2:]
    assert np.array_equal(found.values, sums.plain_sum(sums.names[2:]))


def test_too_few_shares_leave_every_secret_as_it_was(tmp_path: Path) -> None:
    """With one share less than the threshold, all colluders' included, each secret is still any element."""
    sums = Sums(tmp_path, run_of(5, dropouts=2), names_of(5))
    threshold = sums.session().threshold
    with pytest.raises(RoundDiscardedError):
        masked_sum(sums.session(), sums.peers, sums.ask(lost={Stage.REVEAL: sums.names[threshold - 1 :]}))
    revealed = [Revealed.parse(sums.seen[Stage.REVEAL, name]) for name in sums.names]
    points = sums.session().points
    for owner in sums.names:
        shares = {points[one.name]: int.from_bytes(one.self_masks[owner], "big") for one in revealed}
        real = combine(shares, weights(list(shares)[:threshold]))
        few = list(shares)[: threshold - 1]
        assert real == combine(shares, weights(list(shares)[-threshold:]))  # the control: enough of them do tell
        for guess in (1, real):  # any secret whatever fits what was seen
            assert combine({**shares, 0: guess}, weights([0, *few])) == guess


def test_an_overflow_wraps_without_a_word(tmp_path: Path) -> None:
    sums = Sums(tmp_path, run_of(3, bits=8, length=500), names_of(3))
    found = masked_sum(sums.session(), sums.peers, sums.ask())
    plain = sums.plain_sum(sums.names)
    assert np.abs(plain).max() > 128  # forced
    assert not np.array_equal(found.values, plain)
    assert np.array_equal((found.values - plain) % 256, np.zeros(500))


def advertised(sums: Sums, reply: bytes, key: str, mask_key: bytes | None = None) -> bytes:
    """The first node's keys, signed by some key, with another mask key if one is given."""
    keys = Advertisement.parse(reply).keys
    signed = sign_keys(
        signer(key),
        sums.session(),
        sums.names[0],
        channel_key=keys.channel_key,
        mask_key=mask_key or keys.mask_key,
        commitment=keys.commitment,
    )
    return Advertisement(session=sums.session().digest, keys=signed).to_bytes()


def cut(sums: Sums, reply: bytes) -> bytes:
    vector = MaskedVector.parse(reply, sums.run.terms)
    return MaskedVector(vector.head, vector.words[1:]).to_bytes()


BAD: list[tuple[Stage, Callable[[Sums, bytes, bytes], bytes], str]] = [
    *((stage, lambda sums, own, other: b"nonsense", "refuse") for stage in Stage),
    *((stage, lambda sums, own, other: other, "one of another; leave it out") for stage in Stage),
    (Stage.KEYS, lambda sums, own, other: advertised(sums, own, "nobody"), "signed by its node key"),
    (
        Stage.KEYS,
        lambda sums, own, other: advertised(sums, own, sums.names[0], Advertisement.parse(own).keys.channel_key),
        "each key of a group",
    ),
    (Stage.KEYS, lambda sums, own, other: advertised(sums, own, sums.names[0], bytes(32)), "a usable key of node-000"),
    (
        Stage.SHARES,
        lambda sums, own, other: SealedShares.parse(own).model_copy(update={"sealed": {}}).to_bytes(),
        "for each other member",
    ),
    (Stage.VECTOR, lambda sums, own, other: cut(sums, own), "another length"),
    (
        Stage.REVEAL,
        lambda sums, own, other: Revealed.parse(own).model_copy(update={"self_masks": {}}).to_bytes(),
        "one share for each sharer",
    ),
]


def test_an_unusable_reply_costs_its_node_and_not_the_round(tmp_path: Path) -> None:
    for number, (stage, make, words) in enumerate(BAD):
        sums = Sums(tmp_path / str(number), run_of(4, dropouts=1), names_of(4))
        send, (bad, other, *_) = sums.ask(), sums.names

        def ask(at: Stage, requests: Requests, send=send, sums=sums, bad=bad, other=other) -> dict[str, bytes]:
            replies: dict[str, bytes] = send(at, requests)
            if at is stage and bad in replies:  # noqa: B023
                replies[bad] = make(sums, replies[bad], replies[other])  # noqa: B023
            return replies

        found = masked_sum(sums.session(), sums.peers, ask)
        assert list(found.dropped) == [bad]
        assert words in found.dropped[bad]
        assert np.array_equal(found.values, sums.plain_sum(found.survivors))


def test_a_wrong_share_is_noticed_and_nothing_wrong_is_summed(tmp_path: Path) -> None:
    for kind in ("self_masks", "mask_keys"):
        sums = Sums(tmp_path / kind, run_of(4, dropouts=1), names_of(4))
        send = sums.ask(lost={Stage.VECTOR: [sums.names[3]]})

        def ask(stage: Stage, requests: Mapping[str, bytes], send=send, sums=sums, kind=kind) -> dict[str, bytes]:
            replies: dict[str, bytes] = send(stage, requests)
            if stage is Stage.REVEAL:
                message = Revealed.parse(replies[sums.names[0]])
                shares = getattr(message, kind)
                wrong = {
                    name: ((int.from_bytes(one, "big") + 1) % PRIME).to_bytes(32, "big") for name, one in shares.items()
                }
                replies[sums.names[0]] = message.model_copy(update={kind: wrong}).to_bytes()
            return replies

        with pytest.raises(RoundDiscardedError, match="must give back what it advertised"):
            masked_sum(sums.session(), sums.peers, ask)


def test_a_node_without_a_reply_is_named(tmp_path: Path) -> None:
    sums = Sums(tmp_path, run_of(4, dropouts=1), names_of(4))
    found = masked_sum(sums.session(), sums.peers, sums.ask(deaf={Stage.SHARES: ["node-002"]}))
    assert found.dropped == {"node-002": NO_REPLY}


def test_a_cohort_of_strangers_is_not_begun(tmp_path: Path) -> None:
    sums = Sums(tmp_path, run_of(3), names_of(3))
    with pytest.raises(PrivacyError, match="node-003 is not"):
        masked_sum(Session.of(sums.run, 1, roster_of(names_of(4))), sums.peers, sums.ask())

"""There is one way to write each message; whatever else comes is refused in a sentence."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from common.errors import PrivacyError
from common.secagg.keys import Secrets
from common.secagg.messages import (
    MOST_MESSAGE_BYTES,
    Agreements,
    Delivery,
    Group,
    Invitation,
    MaskedVector,
    Message,
    NodeKeys,
    Revealed,
    Stage,
    Survivors,
    VectorHead,
    check_reply,
)
from common.secagg.roster import MOST_NODES
from server.secagg_round import masked_sum
from tests.sums import Sums, names_of, run_of

REQUESTS: dict[Stage, type[Message]] = {
    Stage.KEYS: Invitation,
    Stage.SHARES: Group,
    Stage.VECTOR: Delivery,
    Stage.AGREEMENT: Survivors,
    Stage.REVEAL: Agreements,
}

TERMS = run_of(3, bits=20, length=5).terms
HEAD = VectorHead(session="ab" * 32, name="north", sharers="cd" * 32)


@pytest.fixture(scope="module")
def sums(tmp_path_factory: pytest.TempPathFactory) -> Sums:
    """A round that went well, with all that was said in it."""
    sums = Sums(tmp_path_factory.mktemp("sums"), run_of(3), names_of(3))
    masked_sum(sums.session(), sums.peers, sums.ask())
    return sums


def test_requests_and_replies_are_read_as_they_were_written(sums: Sums) -> None:
    assert len(sums.asked) == len(sums.seen) == 5 * 3
    for (stage, _), request in sums.asked.items():
        assert REQUESTS[stage].parse(request).to_bytes() == request
    for (stage, _), reply in sums.seen.items():
        check_reply(stage, reply, sums.run.terms)


def test_a_reply_of_one_stage_is_none_of_another(sums: Sums) -> None:
    for stage in Stage:
        for other in set(Stage) - {stage}:
            with pytest.raises(PrivacyError, match="refuse"):
                check_reply(stage, sums.seen[other, "node-000"], sums.run.terms)


def test_bytes_cut_short_or_added_to_are_refused(sums: Sums) -> None:
    for stage in Stage:
        request, reply = sums.asked[stage, "node-000"], sums.seen[stage, "node-000"]
        for odd in (b"", request[:-1], request + b" ", request + b"\n", b" " + request, request + request):
            with pytest.raises(PrivacyError, match="refuse"):
                REQUESTS[stage].parse(odd)
        for odd in (b"", reply[:-1], reply[1:], reply + b"\0"):
            with pytest.raises(PrivacyError, match="refuse"):
                check_reply(stage, odd, sums.run.terms)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (b'{"mask_keys"', b'{ "mask_keys"'),
        (b'"self_masks"', b'"self_masks":{},"self_masks"'),
        (b'"mask_keys":{}', b'"mask_keys":{},"more":1'),
        (b'"mask_keys":{}', b'"mask_keys":[]'),
        (b'"mask_keys":{}', b'"mask_keys":{"node-000":"AAAA"}'),
        (b'"mask_keys":{}', b'"mask_keys":{"../node":"' + b"A" * 43 + b'="}'),
        (b'"name":"node-000"', b'"name":7'),
        (b"\n{", b"\n" + b"[" * 3000 + b"{"),
        (b'"node-000"', b'"\xff"'),
    ],
)
def test_json_that_another_program_would_write_is_refused(sums: Sums, old: bytes, new: bytes) -> None:
    reply = sums.seen[Stage.REVEAL, "node-000"]
    assert old in reply
    with pytest.raises(PrivacyError, match="expected revealed shares of secure aggregation") as caught:
        Revealed.parse(reply.replace(old, new, 1))
    assert "\n" not in str(caught.value)


def test_a_message_is_bounded_before_it_is_read() -> None:
    with pytest.raises(PrivacyError, match=f"at most {MOST_MESSAGE_BYTES} bytes"):
        Revealed.parse(b"x" * (MOST_MESSAGE_BYTES + 1))


def test_the_bound_leaves_room_for_the_largest_federation() -> None:
    names = [f"{number:064}" for number in range(MOST_NODES)]
    keys = [bytes(31) + bytes([number]) for number in range(MOST_NODES)]
    members = tuple(
        NodeKeys(name=name, channel_key=key, mask_key=key, commitment=key, signature=bytes(112))
        for name, key in zip(names, keys, strict=True)
    )
    group = Group(session="ab" * 32, members=members).to_bytes()
    assert Group.parse(group).members == members
    revealed = Revealed(session="ab" * 32, name="x", self_masks=dict(zip(names, keys, strict=True)), mask_keys={})
    assert Revealed.parse(revealed.to_bytes()) == revealed


@given(st.binary(max_size=200))
def test_no_bytes_make_anything_but_a_message_or_a_refusal(data: bytes) -> None:
    for stage in Stage:
        for tag in (b"", f"fedgraft secagg 1 {REQUESTS[stage].kind}\n".encode()):
            with pytest.raises(PrivacyError):
                REQUESTS[stage].parse(tag + data)
            with pytest.raises(PrivacyError):
                check_reply(stage, tag + data, TERMS)


def test_residues_above_the_modulus_and_other_lengths_are_refused() -> None:
    words = np.full(5, 2**20 - 1, np.uint32)
    assert np.array_equal(MaskedVector.parse(MaskedVector(HEAD, words).to_bytes(), TERMS).words, words)
    with pytest.raises(PrivacyError, match=r"modulo 2\^20"):
        MaskedVector.parse(MaskedVector(HEAD, words + np.uint32(1)).to_bytes(), TERMS)
    for other in (words[1:], words.astype(np.uint64), np.tile(words, 2)):
        with pytest.raises(PrivacyError, match="refuse"):
            MaskedVector.parse(MaskedVector(HEAD, other).to_bytes(), TERMS)


def test_secrets_are_in_no_text_of_theirs() -> None:
    secrets = Secrets.draw()
    assert str(secrets.self_seed) not in repr(secrets)
    assert str(secrets.mask_seed) not in repr(secrets)
    assert repr(secrets) == "Secrets()"

"""Every key is another one: for each session, purpose, pair and direction; and both ends of a pair have the same."""

from __future__ import annotations

import pytest

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
from common.secagg.session import Session
from tests.sums import names_of, roster_of, run_of

SESSIONS = [Session.of(run_of(3), round, roster_of(names_of(3))) for round in (1, 2)]


def test_two_nodes_agree_on_one_mask_and_on_a_channel_each_way() -> None:
    session, (one, two) = SESSIONS[0], (Secrets.draw(), Secrets.draw())
    masks = mask_private(session, "a", one.mask_seed), mask_private(session, "b", two.mask_seed)
    public = [private.public_key().public_bytes_raw() for private in masks]
    assert pair_mask(session, masks[0], public[1], "a", "b") == pair_mask(session, masks[1], public[0], "b", "a")
    channels = channel_private(one), channel_private(two)
    public = [private.public_key().public_bytes_raw() for private in channels]
    sealed = channel_to(session, channels[0], public[1], "a", "b").close(b"shares", "group")
    receiver = channel_from(session, channels[1], public[0], "b", "a")
    assert receiver.open(sealed, "group") == b"shares"
    with pytest.raises(SealBrokenError):
        receiver.open(sealed, "another group")
    with pytest.raises(SealBrokenError):  # sent back to whom it came from
        channel_from(session, channels[0], public[1], "a", "b").open(sealed, "group")


def test_the_same_secrets_give_other_keys_for_another_session_purpose_or_node() -> None:
    secrets, peer = Secrets.draw(), mask_private(SESSIONS[0], "b", 7).public_key().public_bytes_raw()
    fixed = channel_private(secrets)
    keys = [
        key
        for session in SESSIONS
        for owner in ("a", "c")
        for key in (
            self_mask(session, owner, secrets.self_seed),
            commit(session, owner, secrets.self_seed),
            mask_private(session, owner, secrets.self_seed).private_bytes_raw(),
            pair_mask(session, fixed, peer, owner, "b"),
            channel_to(session, fixed, peer, owner, "b").key,
            channel_from(session, fixed, peer, owner, "b").key,
        )
    ]
    assert len(set(keys)) == len(keys)


def test_a_key_that_agrees_on_the_same_secret_with_everybody_is_refused() -> None:
    for low_order in (bytes(32), (1).to_bytes(32, "little")):
        with pytest.raises(PrivacyError, match="expected a usable key of b"):
            pair_mask(SESSIONS[0], channel_private(Secrets.draw()), low_order, "a", "b")

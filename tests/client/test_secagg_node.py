"""What a node answers a malicious server, and what it remembers of what it answered."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Collection
from pathlib import Path

import numpy as np
import pytest
from cryptography.hazmat.primitives import serialization

from client.secagg_node import SumNode
from client.secagg_record import SumRecord
from common.errors import PrivacyError
from common.secagg.messages import (
    Advertisement,
    Agreement,
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
)
from common.secagg.session import Member, Session
from common.secagg.signatures import sign_keys
from server.secagg_round import SumRound, begin, masked_sum, take_agreements, take_keys, take_shares, take_vectors
from tests.processes import PATIENCE_S
from tests.sums import Sums, names_of, node_key, roster_of, run_of, signer

ROOT = Path(__file__).parents[2]
ME = "node-000"
TAKES = {
    Stage.KEYS: take_keys,
    Stage.SHARES: take_shares,
    Stage.VECTOR: take_vectors,
    Stage.AGREEMENT: take_agreements,
}


def played_to(sums: Sums, stage: Stage, session: Session | None = None, without: Collection[str] = ()) -> SumRound:
    """A round up to the requests of a stage, which nobody was sent yet; some nodes send no masked vector."""
    step, send = begin(session or sums.session(), sums.peers), sums.ask(lost={Stage.VECTOR: without})
    for before in Stage:
        if before is stage:
            break
        step = TAKES[before](step, send(before, step.requests))
    return step


def refusal(sums: Sums, stage: Stage, request: Message | bytes, name: str = ME) -> str:
    """The one sentence with which a node refuses."""
    computed = dict(sums.computed)
    with pytest.raises(PrivacyError) as caught:
        sums.answer(stage, name, request if isinstance(request, bytes) else request.to_bytes())
    assert "\n" not in str(caught.value)
    assert sums.computed == computed or stage is Stage.VECTOR
    return str(caught.value)


@pytest.fixture
def sums(tmp_path: Path) -> Sums:
    """Five nodes, of which one may drop out and one may collude: four must agree."""
    return Sums(tmp_path, run_of(5, dropouts=1, colluders=1), names_of(5))


def with_keys(group: Group, name: str, change: Callable[[NodeKeys], NodeKeys]) -> Group:
    return group.model_copy(
        update={"members": tuple(change(one) if one.name == name else one for one in group.members)}
    )


# The cohort


def test_a_server_that_puts_its_own_key_in_a_nodes_place_is_refused(sums: Sums) -> None:
    step = played_to(sums, Stage.SHARES)
    group = Group.parse(step.requests[ME])

    def own_key(keys: NodeKeys) -> NodeKeys:
        return keys.model_copy(update={"channel_key": bytes(31) + b"9"})

    def signed_by_the_server(keys: NodeKeys) -> NodeKeys:
        return sign_keys(
            signer("server"),
            step.session,
            keys.name,
            channel_key=bytes(31) + b"9",
            mask_key=keys.mask_key,
            commitment=keys.commitment,
        )

    for change in (own_key, signed_by_the_server):
        said = refusal(sums, Stage.SHARES, with_keys(group, "node-001", change))
        assert "the keys in the name of node-001 must be signed by its node key for this very round" in said


def test_keys_of_another_round_are_refused(sums: Sums) -> None:
    old = Group.parse(played_to(sums, Stage.SHARES).requests[ME])
    new = Group.parse(played_to(sums, Stage.SHARES, sums.session(2)).requests[ME])
    replayed = with_keys(new, "node-001", lambda _: old.members[1])
    assert "or sent old ones" in refusal(sums, Stage.SHARES, replayed)


def test_messages_of_another_round_are_refused(sums: Sums, tmp_path: Path) -> None:
    for stage in list(Stage)[1:]:
        here = Sums(tmp_path / stage, sums.run, sums.names)
        request = played_to(here, stage).requests[ME]
        played_to(here, stage, here.session(2))
        assert "is of another round, run or cohort" in refusal(here, stage, request)


def test_a_cohort_smaller_than_agreed_is_refused(sums: Sums) -> None:
    small = run_of(4, dropouts=0, colluders=1)
    session = Session.of(small, 1, roster_of(sums.names[:4]))
    data = Invitation(session=session).to_bytes().replace(b'"nodes":4', b'"nodes":5').replace(b'outs":0', b'outs":1')
    assert "a cohort must have at least 5 nodes, got 4" in refusal(sums, Stage.KEYS, data)


def test_a_cohort_with_a_stranger_is_refused(sums: Sums) -> None:
    more = Session.of(sums.run, 1, roster_of([*sums.names, "node-xyz"]))
    said = refusal(sums, Stage.KEYS, Invitation(session=more))
    assert "must be among the approved peers, node-xyz is not" in said


def test_a_cohort_with_another_key_for_a_hospital_is_refused(sums: Sums) -> None:
    one, two, *rest = sums.session().cohort
    stolen = Member(name=two.name, fingerprint=roster_of(["server"]).fingerprints["server"])
    session = Session(run=sums.run, round=1, attempt=1, cohort=(one, stolen, *rest))
    assert "the server names another key for node-001" in refusal(sums, Stage.KEYS, Invitation(session=session))


@pytest.mark.parametrize(
    "other",
    [
        run_of(5, dropouts=1, colluders=0),
        run_of(5, dropouts=0, colluders=1),
        run_of(4, dropouts=0, colluders=1),
        run_of(5, dropouts=1, colluders=1, bits=21),
        run_of(5, dropouts=1, colluders=1, length=6),
        run_of(5, dropouts=1, colluders=1).model_copy(update={"plan_digest": "cd" * 32}),
        run_of(5, dropouts=1, colluders=1).model_copy(update={"run_id": "another"}),
    ],
)
def test_other_terms_than_accepted_are_refused(sums: Sums, other: object) -> None:
    assert other != sums.run
    session = sums.session().model_copy(update={"run": other})
    assert "this node accepted (run)" in refusal(sums, Stage.KEYS, Invitation(session=session))


def test_a_node_is_asked_for_sums_that_it_is_in(sums: Sums) -> None:
    sums.run = run_of(4, colluders=1)
    session = Session.of(sums.run, 1, roster_of(sums.names[1:]))
    assert "node-000, must be in a cohort" in refusal(sums, Stage.KEYS, Invitation(session=session))


def test_a_node_whose_peers_name_another_key_for_it_does_not_begin(sums: Sums) -> None:
    other = SumNode(ME, signer("another"), sums.peers, sums.folder / ME)
    request = Invitation(session=sums.session()).to_bytes()
    with pytest.raises(PrivacyError, match=r"with its newest node\.key\.pub"):
        other.answer(Stage.KEYS, request, sums.run, lambda: sums.vector(ME))
    assert SumRecord(sums.folder / ME, "run").read() is None


def test_a_group_is_large_enough_complete_and_of_different_keys(sums: Sums) -> None:
    step = played_to(sums, Stage.SHARES)
    group = Group.parse(step.requests[ME])
    small = group.model_copy(update={"members": group.members[:3]})
    assert "at least 4 nodes must be left of this round, only 3 advertised" in refusal(sums, Stage.SHARES, small)
    for members in (group.members[1:], group.members[::-1], (*group.members[:2], *group.members[1:])):
        said = refusal(sums, Stage.SHARES, group.model_copy(update={"members": members}))
        assert "each node once, in order, and this one as it is" in said
    keys = group.members[1]
    twin = sign_keys(
        signer("node-002"),
        step.session,
        "node-002",
        channel_key=keys.channel_key,
        mask_key=keys.mask_key,
        commitment=keys.commitment,
    )
    assert "two are alike" in refusal(sums, Stage.SHARES, with_keys(group, "node-002", lambda _: twin))


# Shares and vectors


def test_shares_that_were_changed_or_sealed_to_another_do_not_open(sums: Sums) -> None:
    step = played_to(sums, Stage.VECTOR)
    mine, others = (Delivery.parse(step.requests[name]) for name in (ME, "node-002"))
    flipped = mine.sealed["node-001"][:-1] + bytes([mine.sealed["node-001"][-1] ^ 1])
    for wrong in (flipped, others.sealed["node-001"], mine.sealed["node-002"]):
        request = mine.model_copy(update={"sealed": {**mine.sealed, "node-001": wrong}})
        assert "the shares of node-001 do not open" in refusal(sums, Stage.VECTOR, request)
    assert sums.computed == {}


def test_different_groups_shown_to_two_nodes_are_noticed_before_a_vector_is_computed(sums: Sums) -> None:
    step = played_to(sums, Stage.SHARES)
    group = Group.parse(step.requests[ME])
    fewer = group.model_copy(update={"members": group.members[:4]})
    replies = {name: sums.answer(Stage.SHARES, name, group.to_bytes()) for name in sums.names[1:]}
    reply = sums.answer(Stage.SHARES, ME, fewer.to_bytes())
    requests = take_shares(step, replies).requests
    sealed = {name: Delivery.parse(requests["node-004"]).sealed["node-001"] for name in sums.names[1:4]}
    delivery = Delivery(session=step.session.digest, sealed=sealed)
    assert "was shown other keys" in refusal(sums, Stage.VECTOR, delivery)
    assert reply not in replies.values()
    assert sums.computed == {}


def test_shares_of_too_few_or_of_strangers_are_refused(sums: Sums) -> None:
    step = played_to(sums, Stage.VECTOR)
    delivery = Delivery.parse(step.requests[ME])
    few = dict(list(delivery.sealed.items())[:2])
    assert "only 3 shared" in refusal(sums, Stage.VECTOR, delivery.model_copy(update={"sealed": few}))
    strange = {**delivery.sealed, "node-xyz": delivery.sealed["node-001"]}
    assert "node-xyz is none" in refusal(sums, Stage.VECTOR, delivery.model_copy(update={"sealed": strange}))


def test_stages_come_in_their_order(sums: Sums) -> None:
    steps = {stage: played_to(Sums(sums.folder / stage, sums.run, sums.names), stage) for stage in Stage}
    sums.answer(Stage.KEYS, ME, steps[Stage.KEYS].requests[ME])
    for stage in list(Stage)[2:]:
        assert "must follow one for shares" in refusal(sums, stage, steps[stage].requests[ME])


# Survivors


def survivors(step: SumRound, names: Collection[str]) -> Survivors:
    return Survivors(session=step.session.digest, names=tuple(names))


def test_two_survivor_sets_shown_to_two_halves_are_never_unmasked(tmp_path: Path) -> None:
    """The largest threshold that is safe, and the server's best split: each half one signature short."""
    sums = Sums(tmp_path, run_of(8, dropouts=3), names_of(8))
    step = played_to(sums, Stage.AGREEMENT)
    halves = {sums.names[0]: sums.names[:5], sums.names[7]: sums.names[3:]}
    signed = {}
    for asked in sums.names:
        shown = halves[sums.names[0]] if asked in sums.names[:4] else halves[sums.names[7]]
        reply = sums.answer(Stage.AGREEMENT, asked, survivors(step, shown).to_bytes())
        signed[asked] = Agreement.parse(reply).signed
    for name in sums.names:
        own = sums.names[:4] if name in sums.names[:4] else sums.names[4:]
        few = Agreements(session=step.session.digest, signed=tuple(signed[one] for one in own))
        assert "at least 5 nodes must have signed the survivors" in refusal(sums, Stage.REVEAL, few, name)
        mixed = Agreements(session=step.session.digest, signed=tuple(signed.values()))
        assert "the server may have shown two sets" in refusal(sums, Stage.REVEAL, mixed, name)


def test_the_word_of_a_node_that_was_shown_other_sharers_does_not_count(sums: Sums) -> None:
    step = played_to(sums, Stage.VECTOR)
    for name, sent in step.requests.items():
        delivery = Delivery.parse(sent)
        if name == ME:
            fewer = {peer: one for peer, one in delivery.sealed.items() if peer != "node-004"}
            delivery = delivery.model_copy(update={"sealed": fewer})
        sums.answer(Stage.VECTOR, name, delivery.to_bytes())
    asked = survivors(step, sums.names[:4]).to_bytes()
    replies = [sums.answer(Stage.AGREEMENT, name, asked) for name in sums.names[:4]]
    signed = tuple(Agreement.parse(reply).signed for reply in replies)
    request = Agreements(session=step.session.digest, signed=signed)
    assert "node-000 must have signed the same survivors" in refusal(sums, Stage.REVEAL, request, "node-001")
    assert "node-001 must have signed the same survivors" in refusal(sums, Stage.REVEAL, request, ME)


def test_a_node_agrees_to_one_set_of_survivors_and_reveals_one_kind_of_share(sums: Sums) -> None:
    step = played_to(sums, Stage.AGREEMENT, without=["node-004"])
    agreed = take_agreements(step, sums.ask()(Stage.AGREEMENT, step.requests))
    other = survivors(step, [ME, "node-001", "node-002", "node-004"])
    assert "one request for agreement is answered" in refusal(sums, Stage.AGREEMENT, other)
    reply = Revealed.parse(sums.answer(Stage.REVEAL, ME, agreed.requests[ME]))
    assert sorted(reply.self_masks) == sums.names[:4]
    assert sorted(reply.mask_keys) == ["node-004"]
    signed = Agreements.parse(agreed.requests[ME]).signed
    again = Agreements(session=step.session.digest, signed=signed[::-1])
    assert "one request for reveal is answered" in refusal(sums, Stage.REVEAL, again)
    assert "one request for agreement is answered" in refusal(sums, Stage.AGREEMENT, other)


def test_survivors_are_enough_sharers_with_this_node_among_them(sums: Sums) -> None:
    step = played_to(sums, Stage.AGREEMENT)
    few, without_me, strange = sums.names[:3], sums.names[1:], [*sums.names[:4], "node-xyz"]
    assert "only 3 sent masked vectors" in refusal(sums, Stage.AGREEMENT, survivors(step, few))
    for names in (without_me, strange, sums.names[::-1], [ME, *sums.names[:4]]):
        said = refusal(sums, Stage.AGREEMENT, survivors(step, names))
        assert "survivors must be nodes that shared their secrets" in said


def test_nothing_is_revealed_on_the_word_of_too_few_or_of_the_same_node_again(sums: Sums) -> None:
    step = played_to(sums, Stage.REVEAL)
    signed = Agreements.parse(step.requests[ME]).signed
    assert len(signed) == 4
    for few in (signed[:3], (*signed[:3], signed[0]), ()):
        request = Agreements(session=step.session.digest, signed=few)
        assert "at least 4 nodes must have signed" in refusal(sums, Stage.REVEAL, request)
    own_word = signed[0].model_copy(update={"name": "node-004"})
    request = Agreements(session=step.session.digest, signed=(own_word, *signed[1:]))
    assert "node-004 must have signed the same survivors" in refusal(sums, Stage.REVEAL, request)


# What is remembered


def test_a_repeated_request_gets_the_same_bytes_and_nothing_is_computed_again(sums: Sums) -> None:
    sums.durable = True
    masked_sum(sums.session(), sums.peers, sums.ask())
    for stage in set(Stage) - {Stage.VECTOR}:
        assert sums.answer(stage, ME, sums.asked[stage, ME]) == sums.seen[stage, ME]
    assert "they are gone" in refusal(sums, Stage.VECTOR, sums.asked[Stage.VECTOR, ME])
    assert sums.computed == dict.fromkeys(sums.names, 1)


def test_a_masked_vector_is_sent_again_as_it_was_until_shares_were_revealed(sums: Sums) -> None:
    played_to(sums, Stage.REVEAL)
    sent = sums.seen[Stage.VECTOR, ME]
    assert sums.answer(Stage.VECTOR, ME, sums.asked[Stage.VECTOR, ME]) == sent
    assert sums.computed == dict.fromkeys(sums.names, 1)
    delivery = Delivery.parse(sums.asked[Stage.VECTOR, ME])
    fewer = delivery.model_copy(update={"sealed": dict(list(delivery.sealed.items())[:3])})
    assert "one request for vector is answered" in refusal(sums, Stage.VECTOR, fewer)
    for path in (sums.folder / ME).glob("*.vector"):
        path.write_bytes(sent[:-1])
    assert "the same bytes or not at all" in refusal(sums, Stage.VECTOR, sums.asked[Stage.VECTOR, ME])


def test_of_two_processes_that_compute_at_once_one_vector_is_sent(sums: Sums) -> None:
    request = played_to(sums, Stage.VECTOR).requests[ME]
    inner: list[bytes] = []

    def meanwhile() -> np.ndarray:
        inner.append(sums.answer(Stage.VECTOR, ME, request))  # the message came twice, and the other was quicker
        return np.full(5, 9, np.int64)

    assert sums.node(ME).answer(Stage.VECTOR, request, sums.run, meanwhile) == inner[0]


def test_a_round_may_be_tried_again_until_a_vector_was_sent(sums: Sums) -> None:
    played_to(sums, Stage.VECTOR)
    assert sums.answer(Stage.KEYS, ME, Invitation(session=sums.session(attempt=2)).to_bytes())
    assert "sessions follow each other" in refusal(sums, Stage.KEYS, Invitation(session=sums.session()))
    played_to(sums, Stage.AGREEMENT, sums.session(attempt=3))
    said = refusal(sums, Stage.KEYS, Invitation(session=sums.session(attempt=4)))
    assert "which is summed once or never" in said
    found = masked_sum(sums.session(2), sums.peers, sums.ask())
    assert np.array_equal(found.values, sums.plain_sum(sums.names))
    assert "sessions follow each other" in refusal(sums, Stage.KEYS, Invitation(session=sums.session(attempt=9)))


def test_nothing_of_one_round_serves_in_another(sums: Sums) -> None:
    first = masked_sum(sums.session(1), sums.peers, sums.ask())
    before = dict(sums.seen)
    second = masked_sum(sums.session(2), sums.peers, sums.ask())
    assert np.array_equal(first.values, second.values)
    for name in sums.names:
        old, new = (Advertisement.parse(seen[Stage.KEYS, name]).keys for seen in (before, sums.seen))
        assert not {old.channel_key, old.mask_key, old.commitment} & {new.channel_key, new.mask_key, new.commitment}
        one, two = (MaskedVector.parse(seen[Stage.VECTOR, name], sums.run.terms) for seen in (before, sums.seen))
        assert not np.array_equal(one.words, two.words)


def test_secrets_are_forgotten_once_shares_were_revealed(sums: Sums) -> None:
    played_to(sums, Stage.REVEAL)
    record = SumRecord(sums.folder / ME, "run")
    kept = record.read()
    assert kept is not None
    assert kept.secrets is not None
    assert len(kept.held) == 5
    step = played_to(sums, Stage.REVEAL)  # the same bytes all the way: these are repetitions
    sums.answer(Stage.REVEAL, ME, step.requests[ME])
    kept = record.read()
    assert kept is not None
    assert (kept.secrets, kept.held, kept.own_shares) == (None, {}, b"")
    files = list((sums.folder / ME).iterdir())
    assert sorted(path.suffix for path in files) == [".json", ".lock"]
    assert all(path.stat().st_mode & 0o077 == 0 for path in files)


def test_a_damaged_record_reveals_nothing(sums: Sums) -> None:
    request = played_to(sums, Stage.REVEAL).requests[ME]
    for path in (sums.folder / ME).glob("*.json"):
        path.write_bytes(path.read_bytes()[:-9])
    assert "cannot be read; take part in another run" in refusal(sums, Stage.REVEAL, request)


def killed(sums: Sums, stage: Stage, request: bytes, when: str) -> None:
    """Have a process of its own answer, and die before or after its record is kept."""
    here = sums.folder
    (here / "request").write_bytes(request)
    (here / "peers").write_text(sums.peers.to_text())
    (here / "key").write_bytes(
        node_key(ME).private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.OpenSSH, serialization.NoEncryption()
        )
    )
    files = [here / ME, here / "key", here / "peers", sums.run.model_dump_json(), here / "request", stage, when]
    command = [sys.executable, "-m", "tests.client.killed_secagg", *map(str, files)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=PATIENCE_S, check=False)
    assert done.returncode == -9, done.stderr


def test_killed_between_record_and_reply_the_same_bytes_are_sent_and_no_others(sums: Sums) -> None:
    step = played_to(sums, Stage.REVEAL, without=["node-004"])
    killed(sums, Stage.REVEAL, step.requests[ME], "after")
    kept = SumRecord(sums.folder / ME, "run").read()
    assert kept is not None
    recorded = kept.answers[Stage.REVEAL].reply
    assert kept.held == {}  # it could not make the reply anew
    signed = Agreements.parse(step.requests[ME]).signed
    other = Agreements(session=step.session.digest, signed=signed[::-1])
    assert "one request for reveal is answered" in refusal(sums, Stage.REVEAL, other)
    assert sums.answer(Stage.REVEAL, ME, step.requests[ME]) == recorded
    assert sorted(Revealed.parse(recorded).mask_keys) == ["node-004"]


def test_killed_before_the_record_a_vector_that_nobody_saw_is_computed_anew(sums: Sums) -> None:
    request = played_to(sums, Stage.VECTOR).requests[ME]
    killed(sums, Stage.VECTOR, request, "before")
    killed(sums, Stage.VECTOR, request, "after")  # with other values than the test's node has
    sent = sums.answer(Stage.VECTOR, ME, request)
    assert sums.computed == {}  # it was recorded, and is not computed again
    assert sums.answer(Stage.VECTOR, ME, request) == sent

"""Which terms and cohorts promise something, and what operators approve."""

from __future__ import annotations

from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from client.keys import PUBLIC_KEY, make_key
from common.errors import ConfigError, PrivacyError
from common.privacy.keys import fingerprint
from common.secagg.roster import Roster, parse_roster, read_roster
from common.secagg.session import Session, SumTerms
from tests.sums import names_of, roster_of, run_of


def is_accepted(nodes: int, dropouts: int, colluders: int) -> bool:
    try:
        SumTerms(nodes=nodes, dropouts=dropouts, colluders=colluders, modulus_bits=20, length=5)
    except PrivacyError:
        return False
    return True


def can_be_split(nodes: int, threshold: int, colluders: int) -> bool:
    """Whether two sets of so many nodes share nobody but colluders: tried out, not computed from the bound."""
    honest = nodes - colluders
    return any(
        first + colluders >= threshold and (honest - first) + colluders >= threshold for first in range(honest + 1)
    )


def test_terms_are_accepted_just_where_no_server_can_split_the_survivors() -> None:
    for nodes in range(3, 30):
        for colluders in range(nodes):
            for dropouts in range(nodes):
                safe = any(
                    not can_be_split(nodes, threshold, colluders) for threshold in range(1, nodes - dropouts + 1)
                )
                alone = nodes - colluders < 2
                assert is_accepted(nodes, dropouts, colluders) == (safe and not alone), (nodes, dropouts, colluders)


def test_the_threshold_is_the_least_that_is_safe_for_the_cohort_at_hand() -> None:
    for members in range(5, 30):
        terms = run_of(5, dropouts=1, colluders=1).terms
        assert not can_be_split(members, terms.threshold_of(members), 1)
        assert can_be_split(members, terms.threshold_of(members) - 1, 1)


def test_refused_terms_say_how_many_drop_outs_are_safe() -> None:
    with pytest.raises(PrivacyError, match="with 8 nodes and 2 colluders at most 2 drop-outs are safe, got 3"):
        run_of(8, dropouts=3, colluders=2)


def test_a_larger_cohort_needs_more_nodes_than_the_terms_alone_say() -> None:
    session = Session.of(run_of(5, dropouts=2), 1, roster_of(names_of(9)))
    assert (session.terms.survivors, session.threshold, session.needed) == (3, 5, 5)


def test_a_cohort_smaller_than_agreed_is_refused() -> None:
    with pytest.raises(PrivacyError, match="a cohort must have at least 5 nodes, got 4"):
        Session.of(run_of(5), 1, roster_of(names_of(4)))


def test_a_cohort_names_each_node_and_key_once() -> None:
    session = Session.of(run_of(3), 1, roster_of(names_of(3)))
    one, two, three = session.cohort
    twin = three.model_copy(update={"fingerprint": two.fingerprint})
    for cohort in ((one, two, two), (two, one, three), (one, two, twin)):
        with pytest.raises(PrivacyError, match="each node and key once"):
            Session(run=session.run, round=1, attempt=1, cohort=cohort)


def test_whatever_differs_makes_another_session() -> None:
    roster = roster_of(names_of(4))
    sessions = [
        Session.of(run_of(3), 1, roster),
        Session.of(run_of(3), 2, roster),
        Session.of(run_of(3), 1, roster, attempt=2),
        Session.of(run_of(3, length=6), 1, roster),
        Session.of(run_of(3, bits=21), 1, roster),
        Session.of(run_of(3), 1, roster_of(names_of(3))),
        Session.of(run_of(3).model_copy(update={"run_id": "other"}), 1, roster),
        Session.of(run_of(3).model_copy(update={"plan_digest": "cd" * 32}), 1, roster),
    ]
    assert len({session.digest for session in sessions}) == len(sessions)


def test_the_peers_file_is_the_hospitals_public_key_files(tmp_path: Path) -> None:
    text = "# exchanged by telephone\n\n"
    for name in ("south", "north"):
        (tmp_path / name).mkdir()
        make_key(tmp_path / name, name)
        text += (tmp_path / name / PUBLIC_KEY).read_text()
    (tmp_path / "peers").write_text(text)
    roster = read_roster(tmp_path / "peers")
    assert sorted(roster.keys) == ["north", "south"]
    assert roster.fingerprints["north"] == fingerprint((tmp_path / "north" / PUBLIC_KEY).read_text())
    assert roster.fingerprints["north"] in roster.in_words()
    again = parse_roster(roster.to_text())
    assert again == roster
    assert again.digest == roster.digest != Roster({"north": roster.keys["north"]}).digest


def test_what_is_no_peers_file_is_refused_in_a_sentence(tmp_path: Path) -> None:
    key = roster_of(["north"]).keys["north"]
    other = Ed25519PrivateKey.generate().public_key().public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH).decode()
    for text, words in {
        "": "got 0",
        key: "got 2 words",
        f"{key} north\n{key} north": "'north' again",
        f"{key} north\n{key} south": "one for two",
        f"{key} no/rth": "got 'no/rth'",
        f"{other} north": "ECDSA key on P-384",
        "ecdsa-sha2-nistp384 AAAA north": "OpenSSH public key",
    }.items():
        with pytest.raises(ConfigError, match=words) as caught:
            parse_roster(text)
        assert "\n" not in str(caught.value)
    for path in (tmp_path / "none", tmp_path):
        with pytest.raises(ConfigError, match="cannot be read"):
            read_roster(path)
    (tmp_path / "large").write_bytes(b"#" * 1_000_000)
    with pytest.raises(ConfigError, match="it is larger"):
        read_roster(tmp_path / "large")

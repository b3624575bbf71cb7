"""A backbone that a server sends: whole and checked, or nothing of it; interrupted anywhere, it goes on."""

from __future__ import annotations

import hashlib
import json
import shutil
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest
from flwr.app import ConfigRecord, Message, RecordDict
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import fedgraft
from client import backbone_receiving
from client.approvals import Approvals, keep_approvals, read_approvals
from client.backbone_receiving import BACKBONES, PROGRESS, receive
from client.node_config import NODE_TOML
from common import wire
from common.backbones.package import FACTS, WEIGHTS, PackageFacts, check_bytes
from common.backbones.parcel import Contents, Parcel, Part, parcel_of
from common.errors import BackboneMismatchError, ConfigError, PrivacyError, ProtocolError
from common.messages import Holding
from simulations.engine import task_identity
from tests.client.test_own_node import CONFIG
from tests.federations import small_offer

LIMIT = 10_000_000


def make_package(folder: Path, size: int = 5_000) -> Parcel:
    """A package whose bytes are right, and whose network nobody builds."""
    folder.mkdir(parents=True)
    content = {
        WEIGHTS: bytes(number * 7 % 251 for number in range(size)),
        "vocabulary.txt": b"",
        "words.txt": b"a b c\n",
    }
    for name, data in content.items():
        (folder / name).write_bytes(data)
    facts = PackageFacts(
        format=1,
        name="of the test",
        builder={},
        stages=["stem"],
        preprocessing={},
        licence="none",
        trained_on="nothing",
        centred_on="",
        files={name: hashlib.sha256(data).hexdigest() for name, data in content.items()},
    ).sealed()
    (folder / FACTS).write_bytes(facts.serialised())
    parcel = parcel_of(f"package/{folder}", facts.digest)
    assert parcel is not None
    return parcel


@pytest.fixture(scope="module")
def parcel(tmp_path_factory: pytest.TempPathFactory) -> Parcel:
    return make_package(tmp_path_factory.mktemp("server") / "packed")


@pytest.fixture
def folder(parcel: Parcel, tmp_path: Path) -> Path:
    """A node that awaits the package."""
    keep_approvals(tmp_path, Approvals().awaiting(parcel.contents.digest, LIMIT))
    return tmp_path


def row(parcel: Parcel) -> bytes:
    return b"".join((parcel.folder / name).read_bytes() for name, _ in parcel.contents.files)


def piece(parcel: Parcel, offset: int, size: int) -> Part:
    return Part(parcel.contents, offset, row(parcel)[offset : offset + size])


def receive_all(parcel: Parcel, data: bytes, step: int, folder: Path) -> None:
    for held in range(0, len(data), step):
        receive(Part(parcel.contents, held, data[held : held + step]), folder)


def is_clean(folder: Path) -> bool:
    """Whether nothing of a backbone is there."""
    return not list((folder / BACKBONES).glob("*")) and not list((folder / BACKBONES).glob(".*"))


def arrived(folder: Path, parcel: Parcel) -> bool:
    """Whether the package is there, whole, approved and for its owner's eyes only."""
    place = folder / BACKBONES / parcel.contents.digest
    approvals = read_approvals(folder)
    modes = {stat.S_IMODE(path.stat().st_mode) for path in place.iterdir()}
    return (
        check_bytes(place).digest == parcel.contents.digest
        and {path.name: path.read_bytes() for path in place.iterdir()}
        == {path.name: path.read_bytes() for path in parcel.folder.iterdir()}
        and modes == {0o600}
        and stat.S_IMODE(place.stat().st_mode) == 0o700
        and approvals.backbones == {parcel.contents.digest: f"package/{place}"}
        and approvals.awaited == {}
    )


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_cut_anywhere_interrupted_anywhere_and_repeated_it_arrives(
    data: st.DataObject, parcel: Parcel, tmp_path: Path
) -> None:
    folder = tmp_path / "node"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    keep_approvals(folder, Approvals().awaiting(parcel.contents.digest, LIMIT))
    total, held = parcel.contents.total, 0
    box = folder / BACKBONES / f".{parcel.contents.digest}"
    while held < total:
        size = data.draw(st.integers(400, total))
        part = piece(parcel, held, size)
        event = data.draw(st.sampled_from(["comes", "comes", "is asked", "is repeated", "crashes before the note"]))
        if event == "is asked":
            assert receive(piece(parcel, 0, 0), folder).received == held
            continue
        note = (box / PROGRESS).read_bytes() if (box / PROGRESS).exists() else None
        said = receive(part, folder)
        assert said == Holding(parcel.contents.digest, held + len(part.data))
        if event == "is repeated":
            assert receive(part, folder) == said
        if event == "crashes before the note" and said.received < total and note is not None:
            (box / PROGRESS).write_bytes(note)
            with (box / WEIGHTS).open("ab") as file:
                file.write(b"half a piece")
            assert receive(piece(parcel, 0, 0), folder).received == held
            continue
        held = said.received
    assert arrived(folder, parcel)
    assert receive(piece(parcel, 0, 10), folder).received == total


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_any_corrupted_byte_is_found_and_nothing_is_kept(data: st.DataObject, parcel: Parcel, folder: Path) -> None:
    total = parcel.contents.total
    wrong = data.draw(st.integers(0, total - 1))
    spoilt = bytearray(row(parcel))
    spoilt[wrong] ^= 1 << data.draw(st.integers(0, 7))
    step = data.draw(st.integers(500, total))
    with pytest.raises(ProtocolError, match=r"got other bytes|got something else"):
        receive_all(parcel, bytes(spoilt), step, folder)
    assert is_clean(folder)
    assert read_approvals(folder).backbones == {}
    assert parcel.contents.digest in read_approvals(folder).awaited


def test_pieces_out_of_order_are_refused(parcel: Parcel, folder: Path) -> None:
    receive(piece(parcel, 0, 2000), folder)
    with pytest.raises(ProtocolError, match="from 2000 on, got some from 2001"):
        receive(piece(parcel, 2001, 100), folder)
    assert is_clean(folder)


def test_more_than_was_announced_is_refused(parcel: Parcel, folder: Path) -> None:
    total = parcel.contents.total
    receive(piece(parcel, 0, total - 10), folder)
    with pytest.raises(ProtocolError, match="got more"):
        receive(Part(parcel.contents, total - 10, bytes(11)), folder)
    assert is_clean(folder)


def test_other_contents_than_before_begin_anew(parcel: Parcel, folder: Path) -> None:
    receive(piece(parcel, 0, 2000), folder)
    files = tuple((name, size + (name == WEIGHTS)) for name, size in parcel.contents.files)
    assert receive(Part(Contents(parcel.contents.digest, files), 0, b""), folder).received == 0


def test_the_facts_are_checked_before_anything_else_is_taken(parcel: Parcel, folder: Path) -> None:
    first = parcel.contents.files[0][1]
    with pytest.raises(ProtocolError, match="facts of a package first"):
        receive(Part(parcel.contents, 0, b"{" + bytes(first - 1)), folder)
    assert is_clean(folder)


def test_a_package_with_another_digest_is_refused(parcel: Parcel, folder: Path, tmp_path: Path) -> None:
    other = make_package(tmp_path / "other", size=4_000)
    lie = Contents(parcel.contents.digest, other.contents.files)
    with pytest.raises(ProtocolError, match="got other bytes"):
        receive(Part(lie, 0, row(other)), folder)
    assert is_clean(folder)


def test_a_digest_that_nobody_approved_is_refused(parcel: Parcel, tmp_path: Path) -> None:
    with pytest.raises(PrivacyError, match="nobody approved"):
        receive(piece(parcel, 0, 100), tmp_path)
    assert not (tmp_path / BACKBONES).exists()


def test_more_than_the_operator_allowed_is_refused(parcel: Parcel, tmp_path: Path) -> None:
    keep_approvals(tmp_path, Approvals().awaiting(parcel.contents.digest, 1000))
    with pytest.raises(PrivacyError, match="the operator allowed 1000"):
        receive(piece(parcel, 0, 100), tmp_path)


def test_the_room_on_the_disk_is_looked_at_first(parcel: Parcel, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backbone_receiving, "ROOM_BYTES", 1 << 60)
    with pytest.raises(ConfigError, match="free some space"):
        receive(piece(parcel, 0, 100), folder)


def test_a_crash_between_the_rename_and_the_approval_costs_nothing(parcel: Parcel, folder: Path) -> None:
    receive(piece(parcel, 0, parcel.contents.total), folder)
    keep_approvals(folder, Approvals().awaiting(parcel.contents.digest, LIMIT))
    assert receive(piece(parcel, 0, 0), folder).received == parcel.contents.total
    assert arrived(folder, parcel)


def test_an_offer_of_an_awaited_backbone_says_that_it_is_lacking() -> None:
    model = small_offer().model
    with pytest.raises(BackboneMismatchError, match="not here yet"):
        Approvals().awaiting(model.backbone_digest, 1).own(model)


@pytest.fixture
def identity() -> Iterator[None]:
    with task_identity():
        yield


def message(body: object, data: object = b"") -> Message:
    config = ConfigRecord({wire.TASK: json.dumps(body), **({} if data is None else {wire.DATA: data})})  # type: ignore[dict-item]
    return Message(RecordDict({wire.CONFIG: config}), 2, wire.QUERY_BACKBONE)


def test_a_piece_survives_its_message(parcel: Parcel, identity: None) -> None:
    part = piece(parcel, 100, 50)
    assert wire.decode_part(Message(RecordDict({wire.CONFIG: wire.encode_part(part)}), 2, wire.QUERY_BACKBONE)) == part


GOOD = {"digest": "ab" * 32, "files": [[FACTS, 10], [WEIGHTS, 10]], "offset": 0}


@pytest.mark.parametrize(
    ("change", "data"),
    [
        ({"digest": "../" * 21 + "a"}, b""),
        ({"files": [[FACTS, 10], ["../../node.key", 10]]}, b""),
        ({"files": [[FACTS, 10], [".progress.json", 10]]}, b""),
        ({"files": [[FACTS, 10], [WEIGHTS, -1]]}, b""),
        ({"files": [[FACTS, 10], [WEIGHTS, 1], [WEIGHTS, 1]]}, b""),
        ({"files": [[WEIGHTS, 10], [FACTS, 10]]}, b""),
        ({"files": [[FACTS, 10], *([f"f{number}", 1] for number in range(64))]}, b""),
        ({"files": [[FACTS, 17 << 20], [WEIGHTS, 10]]}, b""),
        ({"offset": -1}, b""),
        ({"offset": "0"}, b""),
        ({"extra": 1}, b""),
        ({}, "text"),
        ({}, None),
        ({}, bytes((8 << 20) + 1)),
    ],
)
def test_a_message_that_is_no_piece_is_refused(change: dict[str, object], data: object, identity: None) -> None:
    assert wire.decode_part(message(GOOD)).contents.total == 20
    with pytest.raises(ProtocolError, match="expected a piece of a backbone"):
        wire.decode_part(message({**GOOD, **change}, data))


def test_the_server_reads_its_package_as_one_row(parcel: Parcel) -> None:
    total = parcel.contents.total
    assert parcel.part(0).data == row(parcel)
    assert parcel.part(total - 3).data == row(parcel)[-3:]
    assert parcel.contents.files[0][0] == FACTS
    assert parcel.contents.files[-1][0] == WEIGHTS
    assert parcel_of("pixels/8", "ab" * 32) is None
    with pytest.raises(ConfigError, match="was changed while the run began"):
        parcel_of(f"package/{parcel.folder}", "ab" * 32)


def test_the_operator_approves_by_digest(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / NODE_TOML).write_text(CONFIG)
    digest, home = "cd" * 32, ("--home", str(tmp_path))
    approve = ["node", "approve", "backbone"]
    assert fedgraft.main([*approve, "--digest", digest.upper(), "--size-limit", "5", *home]) == 0
    assert read_approvals(tmp_path).awaited == {digest: 5_000_000}
    assert fedgraft.main(["node", "approve", "list", *home]) == 0
    assert "awaited from the server, at most 5 MB" in capsys.readouterr().out
    for wrong in (["--digest", "xyz"], [], ["pixels/8", "--digest", digest]):
        assert fedgraft.main([*approve, *wrong, *home]) != 0

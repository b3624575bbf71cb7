"""A backbone that a server sends: whole and checked, or nothing of it; interrupted anywhere, it goes on."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import signal
import stat
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import pytest
from flwr.app import ConfigRecord, Message, RecordDict
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import fedgraft
from client import backbone_receiving
from client.approvals import Approvals, keep_approvals, read_approvals
from client.backbone_receiving import open_receiver, receive
from client.last_look import Speaker
from client.node_config import NODE_TOML
from client.node_folder import PAUSED
from client.sent_backbones import BACKBONES, LOCK, box_of, note_of, place_of
from common import paths, wire
from common.backbones import parcel as parcels
from common.backbones.controls import load_reference
from common.backbones.package_facts import FACTS, WEIGHTS, PackageFacts
from common.backbones.parcel import Contents, Parcel, Part, parcel_of
from common.errors import BackboneMismatchError, ConfigError, PrivacyError, ProtocolError
from common.messages import Holding
from simulations.engine import task_identity
from tests.client.test_own_node import CONFIG
from tests.federations import small_offer

LIMIT, PIECE = 10_000_000, 1024


def make_package(folder: Path, size: int = 5_000, family: str | None = "torchvision") -> Parcel:
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
        builder={} if family is None else {"family": family},
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


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parcels, "PIECE_BYTES", PIECE)


@pytest.fixture(scope="module")
def parcel(tmp_path_factory: pytest.TempPathFactory) -> Parcel:
    return make_package(tmp_path_factory.mktemp("server") / "packed")


@pytest.fixture
def folder(parcel: Parcel, tmp_path: Path) -> Path:
    """A node that awaits the package."""
    keep_approvals(tmp_path, Approvals().with_sent(parcel.contents.digest, LIMIT))
    return tmp_path


def row(parcel: Parcel) -> bytes:
    return b"".join((parcel.folder / name).read_bytes() for name, _ in parcel.contents.files)


def piece(parcel: Parcel, number: int) -> Part:
    return parcel.part(number * PIECE)


def ask(parcel: Parcel) -> Part:
    return Part(parcel.contents, 0, b"")


def pieces(parcel: Parcel) -> int:
    return -(-parcel.contents.total // PIECE)


def receive_all(parcel: Parcel, folder: Path, data: bytes | None = None) -> None:
    data = row(parcel) if data is None else data
    for held in range(0, len(data), PIECE):
        receive(Part(parcel.contents, held, data[held : held + PIECE]), folder)


def is_clean(folder: Path) -> bool:
    """Whether nothing of a backbone is there."""
    return {path.name for path in (folder / BACKBONES).glob("*")} | {
        path.name for path in (folder / BACKBONES).glob(".*")
    } <= {LOCK}


def arrived(folder: Path, parcel: Parcel) -> bool:
    """Whether the package is there, whole, for its owner's eyes only, used by its digest, and nothing is left over."""
    place = place_of(folder, parcel.contents.digest)
    modes = {stat.S_IMODE(path.stat().st_mode) for path in place.iterdir()}
    return (
        {path.name: path.read_bytes() for path in place.iterdir()}
        == {path.name: path.read_bytes() for path in parcel.folder.iterdir()}
        and modes == {0o600}
        and stat.S_IMODE(place.stat().st_mode) == 0o700
        and {path.name for path in place.parent.iterdir()} == {LOCK, place.name}
        and owned(folder, parcel) == f"package/{place}"
    )


def owned(folder: Path, parcel: Parcel) -> str:
    """What the node calls the backbone."""
    model = small_offer().model.model_copy(update={"backbone_digest": parcel.contents.digest})
    return read_approvals(folder).own(model, folder).backbone


EVENTS = ("comes", "is asked", "is repeated", "is early", "crashes before the note", "is bitten off")


@settings(max_examples=8, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(events=st.lists(st.sampled_from(EVENTS), max_size=12))
def test_interrupted_anywhere_repeated_and_disordered_it_arrives(
    events: list[str], parcel: Parcel, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.mktemp("node")
    keep_approvals(folder, Approvals().with_sent(parcel.contents.digest, LIMIT))
    digest, held = parcel.contents.digest, 0
    note, weights = note_of(folder, digest), box_of(folder, digest) / WEIGHTS
    events = [*events, *["comes"] * pieces(parcel)]
    while held < pieces(parcel):
        event, before = events.pop(0), note.read_bytes() if note.exists() else None
        if event == "is asked":
            assert receive(ask(parcel), folder) == Holding(digest, held * PIECE)
        elif event == "is early" and held + 1 < pieces(parcel):
            assert receive(piece(parcel, held + 1), folder) == Holding(digest, held * PIECE)
        elif event == "crashes before the note" and before is not None and held + 1 < pieces(parcel):
            receive(piece(parcel, held), folder)
            note.write_bytes(before)
            weights.write_bytes(weights.read_bytes() + b"half a piece")
            assert receive(ask(parcel), folder) == Holding(digest, held * PIECE)
        elif event == "is bitten off" and before is not None and held > 2:
            weights.write_bytes(weights.read_bytes()[: -PIECE // 2])
            assert receive(ask(parcel), folder) == Holding(digest, 0)
            held, events = 0, ["comes"] * pieces(parcel)
        else:
            said = receive(piece(parcel, held), folder)
            held += 1
            assert said == Holding(digest, min(held * PIECE, parcel.contents.total))
            if event == "is repeated":
                assert receive(piece(parcel, held - 1), folder) == said
    assert arrived(folder, parcel)
    assert receive(piece(parcel, 0), folder).received == parcel.contents.total


@settings(max_examples=8, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(where=st.floats(0, 1, exclude_max=True), bit=st.integers(0, 7))
def test_any_corrupted_byte_is_found_and_nothing_is_kept(where: float, bit: int, parcel: Parcel, folder: Path) -> None:
    spoilt = bytearray(row(parcel))
    spoilt[int(where * len(spoilt))] ^= 1 << bit
    with pytest.raises(ProtocolError, match=r"got other bytes|got something else"):
        receive_all(parcel, folder, bytes(spoilt))
    assert is_clean(folder)
    with pytest.raises(BackboneMismatchError, match="not here yet"):
        owned(folder, parcel)


def test_more_or_less_than_a_piece_is_refused_before_anything_is_written(parcel: Parcel, folder: Path) -> None:
    data, total = row(parcel), parcel.contents.total
    last = (pieces(parcel) - 1) * PIECE
    for offset, some in (
        (0, data[: PIECE + 1]),
        (0, data[:-1][:7]),
        (1, data[1 : PIECE + 1]),
        (last, data[last:] + b"x"),
    ):
        with pytest.raises(ProtocolError, match="got more or less"):
            receive(Part(parcel.contents, offset, some), folder)
    with pytest.raises(ProtocolError, match="got more or less"):
        receive(Part(parcel.contents, total + PIECE - total % PIECE, bytes(PIECE)), folder)
    assert not (folder / BACKBONES).exists()


def test_other_contents_than_before_begin_anew(parcel: Parcel, folder: Path) -> None:
    receive(piece(parcel, 0), folder)
    files = tuple((name, size + (name == WEIGHTS)) for name, size in parcel.contents.files)
    assert receive(Part(Contents(parcel.contents.digest, files), 0, b""), folder).received == 0


def test_the_facts_are_checked_before_anything_else_is_taken(parcel: Parcel, folder: Path) -> None:
    assert parcel.contents.files[0][1] < PIECE
    with pytest.raises(ProtocolError, match="facts of a package first"):
        receive(Part(parcel.contents, 0, b"{" + bytes(PIECE - 1)), folder)
    assert is_clean(folder)


def test_a_package_with_another_digest_is_refused(parcel: Parcel, folder: Path, tmp_path: Path) -> None:
    other = make_package(tmp_path / "other", size=4_000)
    lie = Parcel(other.folder, Contents(parcel.contents.digest, other.contents.files))
    with pytest.raises(ProtocolError, match="got other bytes"):
        receive_all(lie, folder)
    assert is_clean(folder)


@pytest.mark.parametrize("family", ["module", "of the future", None])
def test_a_package_that_calls_code_of_its_own_is_refused_though_its_digest_was_approved(
    family: str | None, tmp_path: Path
) -> None:
    parcel, folder = make_package(tmp_path / "packed", family=family), tmp_path / "node"
    folder.mkdir()
    keep_approvals(folder, Approvals().with_sent(parcel.contents.digest, LIMIT))
    with pytest.raises(PrivacyError, match="those alone can be sent"):
        receive_all(parcel, folder)
    assert is_clean(folder)
    shutil.copytree(parcel.folder, place_of(folder, parcel.contents.digest))  # a broken app puts it there
    with pytest.raises(PrivacyError, match="those alone can be sent"):
        owned(folder, parcel)


def test_a_digest_that_nobody_approved_is_refused(parcel: Parcel, tmp_path: Path) -> None:
    with pytest.raises(PrivacyError, match="nobody approved"):
        receive(piece(parcel, 0), tmp_path)
    assert not (tmp_path / BACKBONES).exists()


def test_more_than_the_operator_allowed_is_refused(parcel: Parcel, tmp_path: Path) -> None:
    keep_approvals(tmp_path, Approvals().with_sent(parcel.contents.digest, parcel.contents.total - 1))
    with pytest.raises(PrivacyError, match="the operator allowed"):
        receive(piece(parcel, 0), tmp_path)
    assert not (tmp_path / BACKBONES).exists()


def test_the_room_on_the_disk_is_looked_at_first(
    parcel: Parcel, folder: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(backbone_receiving, "ROOM_BYTES", 1 << 60)
    with pytest.raises(ConfigError, match="free some space"):
        receive(piece(parcel, 0), folder)
    assert is_clean(folder)
    assert "bytes of free disk for a backbone" in caplog.text


def test_a_crash_between_the_check_and_the_rename_or_after_it_costs_nothing(parcel: Parcel, folder: Path) -> None:
    digest, total = parcel.contents.digest, parcel.contents.total
    receive_all(parcel, folder)
    note, text = note_of(folder, digest), json.dumps({"files": parcel.contents.files, "held": total})
    note.write_text(text)
    (note.parent / f".{note.name}.half").write_text(text[:9])  # of a process killed while it wrote the note
    assert not arrived(folder, parcel)
    assert receive(ask(parcel), folder).received == total  # after it
    assert arrived(folder, parcel)
    note.write_text(text)
    place_of(folder, digest).rename(box_of(folder, digest))
    assert receive(ask(parcel), folder).received == total
    assert arrived(folder, parcel)


def test_what_was_changed_since_it_came_is_not_used_and_comes_again(parcel: Parcel, folder: Path) -> None:
    receive_all(parcel, folder)
    weights = place_of(folder, parcel.contents.digest) / WEIGHTS
    weights.write_bytes(weights.read_bytes()[:-1] + b"x")
    with pytest.raises(ConfigError, match="a byte of it has changed"):
        load_reference(owned(folder, parcel))
    assert receive(ask(parcel), folder).received == 0
    receive_all(parcel, folder)
    assert arrived(folder, parcel)
    (place_of(folder, parcel.contents.digest) / FACTS).write_text("{}")
    with pytest.raises(ConfigError, match="withdraw its approval"):
        owned(folder, parcel)


def test_two_that_send_at_once_do_not_disturb_each_other(parcel: Parcel, folder: Path) -> None:
    """Each sends from where the node said it was; flock keeps threads apart as it does processes."""

    def send(_: int) -> None:
        held = receive(ask(parcel), folder).received
        while held < parcel.contents.total:
            held = receive(parcel.part(held), folder).received

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(send, range(4)))
    assert arrived(folder, parcel)


def test_killed_at_any_moment_it_goes_on(parcel: Parcel, folder: Path) -> None:
    """Each time a process of its own takes pieces and is killed without a word; what it had is never sent twice."""
    told = [0]
    for number in (1, 1, 2, 1):
        reader, writer = os.pipe()
        child = os.fork()
        if child == 0:
            with suppress(BaseException):
                held = receive(ask(parcel), folder).received
                while True:
                    held = receive(parcel.part(held), folder).received
                    os.write(writer, b".")
            os._exit(1)
        for _ in range(number):
            assert os.read(reader, 1)
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        os.close(reader)
        os.close(writer)
        told.append(receive(ask(parcel), folder).received)
        assert told[-1] >= min(told[-2] + number * PIECE, parcel.contents.total)
    held = told[-1]
    while held < parcel.contents.total:
        held = receive(parcel.part(held), folder).received
    assert arrived(folder, parcel)


def test_a_paused_node_takes_nothing(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(paths.NODE_FOLDER, str(folder))
    (folder / NODE_TOML).write_text(CONFIG)
    assert open_receiver().speaker == Speaker("st-mary", 60)
    (folder / PAUSED).touch()
    with pytest.raises(PrivacyError, match="paused"):
        open_receiver()


@pytest.fixture
def identity() -> Iterator[None]:
    with task_identity():
        yield


def message(body: object, data: object = b"") -> Message:
    config = ConfigRecord({wire.TASK: json.dumps(body), **({} if data is None else {wire.DATA: data})})  # type: ignore[dict-item]
    return Message(RecordDict({wire.CONFIG: config}), 2, wire.QUERY_BACKBONE)


def test_a_piece_survives_its_message(parcel: Parcel, identity: None) -> None:
    part = piece(parcel, 1)
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
        ({}, bytes(21)),
        ({}, bytes(19)),
        ({"offset": 20}, bytes(20)),
        ({"offset": 1}, b""),
    ],
)
def test_a_message_that_is_no_piece_is_refused(change: dict[str, object], data: object, identity: None) -> None:
    assert wire.decode_part(message(GOOD)).contents.total == 20
    with pytest.raises(ProtocolError, match="expected a piece of a backbone"):
        wire.decode_part(message({**GOOD, **change}, data))


def test_the_server_reads_its_package_as_one_row(parcel: Parcel) -> None:
    total = parcel.contents.total
    assert b"".join(piece(parcel, number).data for number in range(pieces(parcel))) == row(parcel)
    assert len(piece(parcel, pieces(parcel) - 1).data) == total % PIECE
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
    assert read_approvals(tmp_path).sent == {digest: 5_000_000}
    assert fedgraft.main(["node", "approve", "list", *home]) == 0
    assert f"backbone  {digest}  sent by the coordinator, at most 5 MB" in capsys.readouterr().out
    for wrong in (["--digest", "xyz"], [], ["pixels/8", "--digest", digest]):
        assert fedgraft.main([*approve, *wrong, *home]) != 0
    place_of(tmp_path, digest).mkdir(parents=True)
    assert fedgraft.main(["node", "approve", "withdraw", digest[:8], *home]) == 0
    assert "what was sent of it is deleted" in capsys.readouterr().out
    assert not place_of(tmp_path, digest).exists()
    assert read_approvals(tmp_path) == Approvals()


def test_the_last_approval_of_a_backbone_counts() -> None:
    digest = "cd" * 32
    sent, own = Approvals().with_sent(digest, 5), Approvals().with_backbone(digest, "package/mine")
    assert sent.with_backbone(digest, "package/mine") == own
    assert own.with_sent(digest, 5) == sent
    assert sent.without(digest) == Approvals()

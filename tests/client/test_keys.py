"""A node's key is rotated: an auditor with the old one can follow, and a crash leaves a key that works."""

from __future__ import annotations

import json
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from client.keys import HISTORY, KEY, NEXT_KEY, OLD_KEYS, PUBLIC_KEY, left_over, make_key, rotate_key
from common import durable
from common.errors import BrokenChainError, FederationError, PrivacyError
from common.privacy.entries import GENESIS, LedgerEntry, make_entry
from common.privacy.export import FORMAT, ROTATED_FORMAT, export_ledger, read_export, verify_signature
from common.privacy.key_history import Rotation, check_history, keep_rotations, read_rotations, rotate
from common.privacy.keys import load_private, load_public, openssh

STEPS = 9  # four files, each written and renamed, and the rename that makes the new key the node's
ENTRIES: list[LedgerEntry] = [
    make_entry(0, GENESIS, "opened", {"dataset_id": "xrays", "delta": 1e-5, "epsilon_cap": 1.0})
]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    place = tmp_path / "node"
    place.mkdir()
    make_key(place, "north")
    return place


@pytest.fixture
def first(folder: Path, tmp_path: Path) -> Path:
    """The first public key, as an auditor keeps it."""
    (tmp_path / "first.pub").write_bytes((folder / PUBLIC_KEY).read_bytes())
    return tmp_path / "first.pub"


def public(folder: Path) -> str:
    return openssh(load_private(folder / KEY).public_key())


def exported(folder: Path) -> Path:
    out = folder / "out.json"
    export_ledger(ENTRIES, out, private_key=folder / KEY, rotations=read_rotations(folder / HISTORY))
    return out


def test_an_auditor_with_the_first_key_follows_to_the_newest(folder: Path, first: Path) -> None:
    old = exported(folder).read_bytes()
    assert json.loads(old)["format"] == FORMAT
    for _ in range(2):
        rotate_key(folder, "north")
    found = read_export(exported(folder))
    assert (found.format, len(found.rotations), found.public_key) == (ROTATED_FORMAT, 2, public(folder))
    assert verify_signature(found, [first]) == first
    assert verify_signature(found, [folder / PUBLIC_KEY]) == folder / PUBLIC_KEY
    (folder / "old.json").write_bytes(old)
    kept = list((folder / OLD_KEYS).iterdir())
    assert len(kept) == 2
    assert verify_signature(read_export(folder / "old.json"), kept) in kept
    assert not any("PRIVATE" in path.read_text() for path in kept)
    assert stat.S_IMODE((folder / KEY).stat().st_mode) == 0o600


def test_a_stolen_key_vouches_for_nothing(folder: Path, first: Path) -> None:
    rotate_key(folder, "north")
    rotate_key(folder, "north", compromised=True)
    found = read_export(exported(folder))
    assert not found.rotations
    with pytest.raises(PrivacyError, match="signed by one of the given keys"):
        verify_signature(found, [first])


def test_the_key_before_does_not_sign_for_the_key_after(folder: Path, first: Path) -> None:
    """A new key's owner cannot claim a history that the old key did not sign."""
    stranger = folder.parent / "stranger"
    stranger.mkdir()
    make_key(stranger, "x")
    honest = rotate(load_private(folder / KEY), load_private(stranger / KEY))
    rotate_key(folder, "north")
    for spoiled in (
        {**honest.to_dict(), "next": public(folder)},
        {**honest.to_dict(), "by_previous": honest.to_dict()["by_next"]},
        {**honest.to_dict(), "at": "2020-01-01T00:00:00+00:00"},
        {**honest.to_dict(), "more": ""},
        {},
    ):
        with pytest.raises(PrivacyError, match="must be signed by the old key and the new one"):
            Rotation.from_dict(spoiled)
    with pytest.raises(PrivacyError, match="end at the key that signed"):
        check_history([honest], public(folder))
    with pytest.raises(PrivacyError, match="must follow each other"):
        check_history([*read_rotations(folder / HISTORY), honest], public(stranger))


@pytest.mark.parametrize(
    "spoil",
    [
        lambda export: export.update(key_history=[]),
        lambda export: export.update(key_history=export["key_history"][1:]),
        lambda export: export.update(key_history=export["key_history"][::-1]),
        lambda export: export.update(format=FORMAT),
        lambda export: export.pop("key_history"),
    ],
)
def test_an_exports_history_is_within_what_is_signed(spoil: Callable[[dict[str, Any]], Any], folder: Path) -> None:
    for _ in range(2):
        rotate_key(folder, "north")
    out = exported(folder)
    found = json.loads(out.read_text())
    spoil(found)
    out.write_text(json.dumps(found, sort_keys=True, separators=(",", ":")) + "\n")
    with pytest.raises(FederationError):
        read_export(out)


@pytest.mark.parametrize("steps", range(STEPS + 1))
def test_a_crash_at_any_step_leaves_a_key_that_works_and_a_rotation_that_is_finished(
    steps: int, folder: Path, first: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Crashes before each write and each rename, those within writes included; the last one comes after the end."""
    left = steps

    class CrashError(BaseException):
        pass

    def counting(real: Callable[..., Any]) -> Callable[..., Any]:
        def step(*arguments: Any, **options: Any) -> Any:
            nonlocal left
            if left == 0:
                raise CrashError
            left -= 1
            return real(*arguments, **options)

        return step

    with monkeypatch.context() as patched:
        patched.setattr(durable, "write_bytes", counting(durable.write_bytes))
        patched.setattr(durable, "sync_folder", lambda _: None)
        patched.setattr(Path, "replace", counting(Path.replace))
        if steps < STEPS:
            with pytest.raises(CrashError):
                rotate_key(folder, "north")
        else:
            rotate_key(folder, "north")
            assert left == 0
    assert verify_signature(read_export(exported(folder)), [first]) == first
    if steps < STEPS:
        assert left_over(folder) == (steps > 1)
        rotate_key(folder, "north")
    assert not left_over(folder)
    assert not (folder / NEXT_KEY).exists()
    assert openssh(load_public(folder / PUBLIC_KEY)) == public(folder) != openssh(load_public(first))
    found = read_export(exported(folder))
    assert len(found.rotations) == 1
    assert verify_signature(found, [first]) == first


def test_a_damaged_history_is_named(folder: Path) -> None:
    (folder / HISTORY).write_text("[1")
    with pytest.raises(FederationError, match="damaged file"):
        rotate_key(folder, "north")
    keep_rotations(folder / HISTORY, [])
    (folder / "x").write_text(json.dumps({"format": ROTATED_FORMAT}))
    with pytest.raises((BrokenChainError, FederationError)):
        read_export(folder / "x")

"""Exports: what was written is what is read, any change is seen, and a signature is that of the key that was given."""

from __future__ import annotations

import base64
import json
import shutil
import subprocess
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.hashes import SHA384
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from common.errors import ConfigError, FederationError, PrivacyError
from common.privacy.canonical import canonical_json
from common.privacy.entries import GENESIS, LedgerEntry, entry_hash, make_entry
from common.privacy.export import FORMAT, export_ledger, read_export, verify_signature
from common.privacy.keys import fingerprint

NOON = datetime(2026, 11, 21, 12, tzinfo=UTC)


def entries(count: int = 3) -> list[LedgerEntry]:
    found = [make_entry(0, GENESIS, "opened", {"dataset_id": "scans", "delta": 1e-5, "epsilon_cap": 8.0})]
    while len(found) < count:
        found.append(make_entry(len(found), found[-1].hash, "cap", {"epsilon_cap": float(len(found))}))
    return found


def key_pair(folder: Path, name: str, key: Any = None) -> Path:
    """Write a key pair as ssh-keygen does, and return the private file; the public one ends in ``.pub``."""
    key = key or ec.generate_private_key(ec.SECP384R1())
    private, public = folder / name, folder / f"{name}.pub"
    openssh = serialization.PrivateFormat.OpenSSH
    private.write_bytes(key.private_bytes(serialization.Encoding.PEM, openssh, serialization.NoEncryption()))
    line = key.public_key().public_bytes(serialization.Encoding.OpenSSH, serialization.PublicFormat.OpenSSH)
    public.write_bytes(line + b" node@hospital\n")
    return private


def public(private: Path) -> Path:
    return private.with_name(private.name + ".pub")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("exports")
    key_pair(place, "node")
    key_pair(place, "other")
    export_ledger(entries(), place / "signed.json", private_key=place / "node", at=NOON)
    return place


def test_what_was_written_is_read(tmp_path: Path) -> None:
    written = export_ledger(entries(), tmp_path / "out.json", at=NOON)
    assert read_export(tmp_path / "out.json") == written
    assert (written.dataset_id, written.at) == ("scans", "2026-11-21T12:00:00+00:00")
    assert (written.chain_head, written.public_key) == (entries()[-1].hash, None)
    assert (tmp_path / "out.json").stat().st_mode & 0o777 == 0o600


def test_the_format_is_fixed_and_checked_with_its_description_alone(folder: Path) -> None:
    """Exports outlive releases: if this fails, the format's number must rise and old files stay readable."""
    value = json.loads((folder / "signed.json").read_text())
    assert set(value) == {"format", "at", "dataset_id", "chain_head", "entries", "public_key", "signature"}
    assert value["format"] == "fedgraft ledger export 1"
    assert value["entries"][0] == {"hash": entries()[0].hash, "text": entries()[0].text}
    signature = base64.b64decode(value.pop("signature"))
    key = serialization.load_ssh_public_key(public(folder / "node").read_bytes())
    assert isinstance(key, ec.EllipticCurvePublicKey)
    key.verify(signature, b"fedgraft ledger export 1\n" + canonical_json(value).encode(), ec.ECDSA(SHA384()))


def test_the_key_that_signed_is_found_among_several(folder: Path) -> None:
    export = read_export(folder / "signed.json")
    assert verify_signature(export, [public(folder / "other"), public(folder / "node")]) == public(folder / "node")


def test_another_key_is_refused_and_named(folder: Path) -> None:
    with pytest.raises(PrivacyError, match=r"but key SHA256:.* signed it"):
        verify_signature(read_export(folder / "signed.json"), [public(folder / "other")])


def test_an_unsigned_export_is_refused_where_a_key_is_given(folder: Path, tmp_path: Path) -> None:
    export = export_ledger(entries(), tmp_path / "out.json")
    with pytest.raises(PrivacyError, match="nobody signed it"):
        verify_signature(export, [public(folder / "node")])


def test_a_signature_of_other_content_is_refused(folder: Path, tmp_path: Path) -> None:
    value = json.loads((folder / "signed.json").read_text())
    value["at"] = "2020-01-01T00:00:00+00:00"
    (tmp_path / "forged.json").write_text(canonical_json(value) + "\n")
    with pytest.raises(PrivacyError, match="changed after it was signed"):
        read_export(tmp_path / "forged.json")


def test_a_signature_cannot_be_claimed_by_another_key(folder: Path, tmp_path: Path) -> None:
    value = json.loads((folder / "signed.json").read_text())
    value["public_key"] = " ".join(public(folder / "other").read_text().split()[:2])
    (tmp_path / "claimed.json").write_text(canonical_json(value) + "\n")
    with pytest.raises(PrivacyError, match="signature"):
        read_export(tmp_path / "claimed.json")


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=150)
@given(st.data())
def test_any_changed_byte_and_any_cut_is_seen(folder: Path, tmp_path: Path, data: st.DataObject) -> None:
    whole = (folder / "signed.json").read_bytes()
    at = data.draw(st.integers(0, len(whole) - 1))
    put = data.draw(st.binary(max_size=2).filter(lambda put: put != whole[at : at + 1]))
    end = data.draw(st.sampled_from([whole[at + 1 :], b""]))
    changed = whole[:at] + put + end
    if changed != whole:
        (tmp_path / "changed.json").write_bytes(changed)
        with pytest.raises(FederationError):
            read_export(tmp_path / "changed.json")


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "something else"),
        (b"hello", "something else"),
        (b"\xff\xfe", "no text"),
        (b"{}", "has None"),
        (b'{"format": "fedgraft ledger export 2"}', "export 2"),
        (b'{"format": "fedgraft led', "cut off"),
        (b'{"format":' + b"[" * 100_000, "cut off"),
    ],
)
def test_what_is_no_export_is_said_to_be_none(tmp_path: Path, content: bytes, said: str) -> None:
    (tmp_path / "file").write_bytes(content)
    with pytest.raises(FederationError, match=said):
        read_export(tmp_path / "file")


@pytest.mark.parametrize(
    "change",
    [
        {"entries": []},
        {"entries": 3},
        {"entries": [{"text": "\ud800", "hash": ""}]},
        {"chain_head": "00"},
        {"dataset_id": "others"},
        {"at": 3},
        {"signature": "AA=="},
        {"public_key": "ecdsa-sha2-nistp384 AAAA"},
        {"public_key": "\ud800", "signature": "AA=="},
        {"public_key": [1], "signature": "AA=="},
        {"entries": [{"text": "[" * 100_000, "hash": entry_hash("[" * 100_000)}]},
        {"entries": [{"text": [1], "hash": [1]}]},
        {"entries": {"text": 1}},
        {"entries": [{"text": entry.text, "hash": entry.hash} for entry in entries()[:2]]},
    ],
)
def test_canonical_bytes_with_wrong_content_are_refused(tmp_path: Path, change: dict[str, object]) -> None:
    value = json.loads(export_ledger(entries(), tmp_path / "out.json").to_text())
    (tmp_path / "out.json").write_text(canonical_json({**value, **change}) + "\n")
    with pytest.raises(FederationError):
        read_export(tmp_path / "out.json")


@pytest.mark.parametrize("broken", [[], entries()[1:], [entries()[0], entries()[2]]])
def test_a_broken_chain_is_not_exported(tmp_path: Path, broken: list[LedgerEntry]) -> None:
    with pytest.raises(PrivacyError, match="hash chain"):
        export_ledger(broken, tmp_path / "out.json")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "key",
    [
        ed25519.Ed25519PrivateKey.generate(),
        ec.generate_private_key(ec.SECP256R1()),
        rsa.generate_private_key(65537, 2048),
    ],
    ids=["ed25519", "P-256", "RSA"],
)
def test_a_key_of_another_type_is_refused(tmp_path: Path, folder: Path, key: Any) -> None:
    private = key_pair(tmp_path, "wrong", key)
    with pytest.raises(ConfigError, match=r"expected an ECDSA key on P-384.*ssh-keygen -t ecdsa -b 384"):
        export_ledger(entries(), tmp_path / "out.json", private_key=private)
    with pytest.raises(ConfigError, match="expected an ECDSA key on P-384"):
        verify_signature(read_export(folder / "signed.json"), [public(private)])


def test_a_file_that_is_no_key_is_refused(tmp_path: Path, folder: Path) -> None:
    (tmp_path / "text").write_text("hello")
    with pytest.raises(ConfigError, match="private key"):
        export_ledger(entries(), tmp_path / "out.json", private_key=public(folder / "node"))
    for wrong in (tmp_path / "text", folder / "node"):
        with pytest.raises(ConfigError, match=r"\.pub file"):
            verify_signature(read_export(folder / "signed.json"), [wrong])
    with pytest.raises(ConfigError, match="readable file"):
        verify_signature(read_export(folder / "signed.json"), [tmp_path / "missing.pub"])


@pytest.mark.skipif(shutil.which("ssh-keygen") is None, reason="needs ssh-keygen")
def test_a_key_with_a_passphrase_is_refused(tmp_path: Path) -> None:
    key = tmp_path / "locked"
    subprocess.run(["ssh-keygen", "-q", "-t", "ecdsa", "-b", "384", "-N", "secret", "-f", key], check=True)
    with pytest.raises(ConfigError, match="without a passphrase"):
        export_ledger(entries(), tmp_path / "out.json", private_key=key)


def test_an_export_replaces_no_ledger_and_no_key(tmp_path: Path) -> None:
    (tmp_path / "ledger.sqlite").write_bytes(b"SQLite format 3\0 and so on")
    key = key_pair(tmp_path, "node")
    (tmp_path / "result.json").write_text('{"format": "another"}')
    (tmp_path / "list.json").write_text("[]")
    (tmp_path / "deep.json").write_text('{"format":' + "[" * 100_000)
    others = ("ledger.sqlite", "result.json", "list.json", "deep.json")
    for place in (*(tmp_path / name for name in others), key):
        with pytest.raises(ConfigError, match="must replace nothing but an export"):
            export_ledger(entries(), place, private_key=key)
    export_ledger(entries(2), tmp_path / "out.json")
    assert len(export_ledger(entries(3), tmp_path / "out.json").entries) == 3


@pytest.mark.skipif(shutil.which("ssh-keygen") is None, reason="needs ssh-keygen")
def test_keys_of_ssh_keygen_are_taken_and_named_as_it_names_them(tmp_path: Path) -> None:
    key = tmp_path / "node"
    subprocess.run(["ssh-keygen", "-q", "-t", "ecdsa", "-b", "384", "-N", "", "-f", key], check=True)
    export = export_ledger(entries(), tmp_path / "out.json", private_key=key)
    assert verify_signature(read_export(tmp_path / "out.json"), [public(key)]) == public(key)
    said = subprocess.run(["ssh-keygen", "-lf", public(key)], check=True, capture_output=True, text=True).stdout
    assert export.public_key is not None
    assert fingerprint(export.public_key) == said.split()[1]
    assert export.signed_bytes.startswith(FORMAT.encode())

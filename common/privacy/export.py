"""A ledger as one file that can be carried out of the hospital: all entries, the chain's head, the time, a signature.

The file is one line of canonical JSON with ``format``, ``at`` (UTC, when it was made), ``dataset_id``, ``chain_head``,
``entries`` (``text`` and ``hash`` of each, in order), ``public_key`` (OpenSSH, null where unsigned) and ``signature``
(base64, null where unsigned). What is signed is everything but ``signature``, as canonical JSON after a tag
(``fedgraft ledger export 1``, newline): ECDSA on P-384 with SHA-384, DER, by the kind of key that Flower's SuperNodes
have (``common.privacy.keys``).

Where the key followed others, the format is ``fedgraft ledger export 2`` (the tag, too), and ``key_history`` holds the
rotations that lead to it (``common.privacy.key_history``), within what is signed.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePublicKey

from common.durable import write_bytes
from common.errors import ConfigError, PrivacyError
from common.privacy.canonical import canonical_json
from common.privacy.entries import LedgerEntry, broken_chain, verify_chain
from common.privacy.key_history import Rotation, check_history, leading_to
from common.privacy.keys import fingerprint, fits, load_private, load_public, openssh, parse_public, sign

FORMAT = "fedgraft ledger export 1"
ROTATED_FORMAT = "fedgraft ledger export 2"
_KEYS = {"format", "at", "dataset_id", "chain_head", "entries", "public_key", "signature"}
_ALL_KEYS = {FORMAT: _KEYS, ROTATED_FORMAT: _KEYS | {"key_history"}}


@dataclass(frozen=True)
class LedgerExport:
    """A ledger as it was at one time.

    Attributes:
        dataset_id: of the ledger.
        at: when the export was made, UTC, ISO 8601.
        entries: all of them, their chain whole.
        public_key: of whoever signed it, OpenSSH; None where nobody did. By itself it proves nothing: anybody has one.
        signature: DER; None where unsigned.
        rotations: of keys, which lead to ``public_key``; empty where it is the first, or vouched for by none.
    """

    dataset_id: str
    at: str
    entries: tuple[LedgerEntry, ...]
    public_key: str | None = None
    signature: bytes | None = None
    rotations: tuple[Rotation, ...] = ()

    @property
    def format(self) -> str:
        """Of the file."""
        return ROTATED_FORMAT if self.rotations else FORMAT

    @property
    def chain_head(self) -> str:
        """Hash of the last entry: keep it, so that an older copy of the ledger is noticed."""
        return self.entries[-1].hash

    @property
    def signed_bytes(self) -> bytes:
        """What the signature is over."""
        return f"{self.format}\n{canonical_json(self._body())}".encode()

    def to_text(self) -> str:
        """The file's content."""
        signature = None if self.signature is None else base64.b64encode(self.signature).decode()
        return canonical_json({**self._body(), "signature": signature}) + "\n"

    def _body(self) -> dict[str, Any]:
        history = {"key_history": [one.to_dict() for one in self.rotations]} if self.rotations else {}
        return {
            **history,
            "format": self.format,
            "at": self.at,
            "dataset_id": self.dataset_id,
            "chain_head": self.chain_head,
            "entries": [{"text": entry.text, "hash": entry.hash} for entry in self.entries],
            "public_key": self.public_key,
        }


def export_ledger(
    entries: Sequence[LedgerEntry],
    out: Path,
    *,
    private_key: Path | None = None,
    at: datetime | None = None,
    rotations: Sequence[Rotation] = (),
) -> LedgerExport:
    """Write a ledger's entries as one file, mode 0600, whole or not at all.

    Args:
        entries: of one ledger, from the first on (see ``entries.read_entries``).
        out: the file; an earlier export there is replaced.
        private_key: an OpenSSH key file without a passphrase, ECDSA on P-384; None leaves the export unsigned.
        at: the time; by default now.
        rotations: of the node's keys; those that lead to this one go with it.

    Returns:
        What was written.

    Raises:
        PrivacyError: the chain is broken, or there is none.
        ConfigError: the key is not usable, or ``out`` cannot be written, or is something else than an export.
    """
    verify_chain(entries)
    dataset_id = _dataset_id(entries)
    key = None if private_key is None else load_private(private_key)
    _check_place(out)
    when = (at or datetime.now(UTC)).astimezone(UTC).isoformat(timespec="seconds")
    export = LedgerExport(dataset_id, when, tuple(entries))
    if key is not None:
        public = openssh(key.public_key())
        export = replace(export, public_key=public, rotations=leading_to(rotations, public))
        export = replace(export, signature=sign(key, export.signed_bytes))
    write_bytes(out, export.to_text().encode(), mode=0o600)
    return export


def read_export(path: Path) -> LedgerExport:
    """Read an export and check all that can be checked without a key from elsewhere.

    Returns:
        The export: its bytes canonical, its chain whole, and its signature, where it has one, made by the key that it
        names. Whose key that is, ``verify_signature`` says.

    Raises:
        PrivacyError: the file is cut off, or was changed after it was written.
        ConfigError: it cannot be read, or is no export.
    """
    try:
        text = path.read_bytes().decode()
    except OSError as error:
        raise ConfigError(f"an export must be readable, got {path} ({error.strerror}); name another file") from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"expected an export of a ledger, but {path} holds no text; name another file") from error
    export = _parse(path, text)
    if export.to_text() != text:
        raise broken_chain(f"the export {path} is not as it was written")
    if export.public_key is not None:
        _verify(export, parse_public(export.public_key.encode(errors="replace"), f"the key in {path}"), path.name)
    return export


def verify_signature(export: LedgerExport, public_keys: Sequence[Path]) -> Path:
    """Check that one of these keys signed an export.

    Args:
        export: from ``read_export``.
        public_keys: OpenSSH ``.pub`` files that came from the hospitals, not with the export.

    Returns:
        The file of the key that did, or that named, through its successors, the key that did.

    Raises:
        PrivacyError: the export is not signed, or by another key, which no given key leads to.
        ConfigError: a key cannot be read, or is of another type.
    """
    known = {openssh(load_public(path)): path for path in public_keys}
    what = f"the export of data set {export.dataset_id!r}"
    if export.public_key is None:
        raise PrivacyError(
            f"{what} must be signed by one of the given keys, but nobody signed it; ask for a signed one"
        )
    vouching = [key for key in (export.public_key, *(one.previous for one in export.rotations)) if key in known]
    if not vouching:
        raise PrivacyError(
            f"{what} must be signed by one of the given keys, but key {fingerprint(export.public_key)} signed it; ask "
            "the hospital for its key, or for another export"
        )
    _verify(export, parse_public(export.public_key.encode(), what), what)
    check_history(export.rotations, export.public_key)
    return known[vouching[0]]


def _parse(path: Path, text: str) -> LedgerExport:
    if not text.startswith("{"):
        raise ConfigError(f"expected an export of a ledger, but {path} is something else; name another file")
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise broken_chain(f"the export {path} is cut off or was changed") from error
    if set(value) != _ALL_KEYS.get(str(value.get("format"))):
        raise ConfigError(
            f"expected a file with format {FORMAT!r}, but {path} has {value.get('format')!r}; name another file, or "
            "use the version of fedgraft that wrote it"
        )
    try:
        rows = value["entries"]
        entries = tuple(LedgerEntry(position, row["text"], row["hash"]) for position, row in enumerate(rows))
        signature = None if value["signature"] is None else base64.b64decode(value["signature"], validate=True)
        signed = (value["public_key"] is None, signature is None)
        verify_chain(entries)
        rotations = tuple(Rotation.from_dict(dict(one)) for one in value.get("key_history", ()))
    except (LookupError, TypeError, ValueError) as error:
        raise broken_chain(f"the export {path} is not as it was written") from error
    if signed[0] != signed[1] or not isinstance(value["public_key"], str | None) or not isinstance(value["at"], str):
        raise broken_chain(f"the export {path} is not as it was written")
    if bool(rotations) != (value["format"] == ROTATED_FORMAT):
        raise broken_chain(f"the export {path} is not as it was written")
    check_history(rotations, str(value["public_key"]))
    if _dataset_id(entries) != value["dataset_id"] or entries[-1].hash != value["chain_head"]:
        raise broken_chain(f"the export {path} lacks entries that its head counts")
    return LedgerExport(value["dataset_id"], value["at"], entries, value["public_key"], signature, rotations)


def _dataset_id(entries: Sequence[LedgerEntry]) -> str:
    name = entries[0].body.get("dataset_id") if entries else None
    if not isinstance(name, str):
        raise broken_chain("it does not begin with the entry that opens a ledger")
    return name


def _check_place(out: Path) -> None:
    """Refuse to replace a ledger, a key, or whatever else is no export."""
    try:
        text = out.read_bytes()
        ours = not text or (text.startswith(b"{") and json.loads(text).get("format") in _ALL_KEYS)
    except FileNotFoundError:
        return
    except (OSError, ValueError, RecursionError):
        ours = False
    if not ours:
        raise ConfigError(f"an export must replace nothing but an export, but {out} is another; choose another file")


def _verify(export: LedgerExport, key: EllipticCurvePublicKey, what: str) -> None:
    if not fits(key, export.signature or b"", export.signed_bytes):
        raise PrivacyError(
            f"the signature of {what} must fit its content, but it does not, so it was changed after it was signed; "
            "ask the hospital for another export"
        )

"""A ledger as one file that can be carried out of the hospital: all entries, the chain's head, the time, a signature.

The file is one line of canonical JSON with ``format``, ``at`` (UTC, when it was made), ``dataset_id``, ``chain_head``,
``entries`` (``text`` and ``hash`` of each, in order), ``public_key`` (OpenSSH, null where unsigned) and ``signature``
(base64, null where unsigned). What is signed is everything but ``signature``, as canonical JSON after a tag
(``fedgraft ledger export 1``, newline): ECDSA on P-384 with SHA-384, by the kind of key that Flower's SuperNodes have
(``ssh-keygen -t ecdsa -b 384``).
"""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.hashes import SHA384

from common.durable import write_bytes
from common.errors import ConfigError, PrivacyError
from common.privacy.canonical import canonical_json
from common.privacy.entries import LedgerEntry, broken_chain, verify_chain

__all__ = ["FORMAT", "LedgerExport", "export_ledger", "fingerprint", "read_export", "verify_signature"]

FORMAT = "fedgraft ledger export 1"
_KEYS = {"format", "at", "dataset_id", "chain_head", "entries", "public_key", "signature"}
_KEY_HELP = "make one by ssh-keygen -t ecdsa -b 384"
_SQLITE = b"SQLite format 3\0"


@dataclass(frozen=True)
class LedgerExport:
    """A ledger as it was at one time.

    Attributes:
        dataset_id: of the ledger.
        at: when the export was made, UTC, ISO 8601.
        entries: all of them, their chain whole.
        public_key: of whoever signed it, OpenSSH; None where nobody did. By itself it proves nothing: anybody has one.
        signature: DER; None where unsigned.
    """

    dataset_id: str
    at: str
    entries: tuple[LedgerEntry, ...]
    public_key: str | None = None
    signature: bytes | None = None

    @property
    def chain_head(self) -> str:
        """Hash of the last entry: keep it, so that an older copy of the ledger is noticed."""
        return self.entries[-1].hash

    @property
    def signed_bytes(self) -> bytes:
        """What the signature is over."""
        return f"{FORMAT}\n{canonical_json(self._body())}".encode()

    def to_text(self) -> str:
        """The file's content."""
        signature = None if self.signature is None else base64.b64encode(self.signature).decode()
        return canonical_json({**self._body(), "signature": signature}) + "\n"

    def _body(self) -> dict[str, Any]:
        return {
            "format": FORMAT,
            "at": self.at,
            "dataset_id": self.dataset_id,
            "chain_head": self.chain_head,
            "entries": [{"text": entry.text, "hash": entry.hash} for entry in self.entries],
            "public_key": self.public_key,
        }


def export_ledger(
    entries: Sequence[LedgerEntry], out: Path, *, private_key: Path | None = None, at: datetime | None = None
) -> LedgerExport:
    """Write a ledger's entries as one file, mode 0600, whole or not at all.

    Args:
        entries: of one ledger, from the first on (see ``entries.read_entries``).
        out: the file; an earlier export there is replaced.
        private_key: an OpenSSH key file without a passphrase, ECDSA on P-384; None leaves the export unsigned.
        at: the time; by default now.

    Returns:
        What was written.

    Raises:
        PrivacyError: the chain is broken, or there is none.
        ConfigError: the key is not usable, or ``out`` cannot be written or is a ledger.
    """
    verify_chain(entries)
    dataset_id = _dataset_id(entries)
    key = None if private_key is None else _load_private(private_key)
    if _is_ledger(out):
        raise ConfigError(f"an export must not replace a ledger, but {out} is one; choose another file with --out")
    when = (at or datetime.now(UTC)).astimezone(UTC).isoformat(timespec="seconds")
    export = LedgerExport(dataset_id, when, tuple(entries), None if key is None else _openssh(key.public_key()))
    if key is not None:
        signature = key.sign(export.signed_bytes, ec.ECDSA(SHA384()))
        export = LedgerExport(dataset_id, when, export.entries, export.public_key, signature)
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
        _verify(export, _parse_public(export.public_key.encode(), f"the key in {path}"), path.name)
    return export


def verify_signature(export: LedgerExport, public_keys: Sequence[Path]) -> Path:
    """Check that one of these keys signed an export.

    Args:
        export: from ``read_export``.
        public_keys: OpenSSH ``.pub`` files that came from the hospitals, not with the export.

    Returns:
        The file of the key that did.

    Raises:
        PrivacyError: the export is not signed, or by another key.
        ConfigError: a key cannot be read, or is of another type.
    """
    known = {_openssh(_load_public(path)): path for path in public_keys}
    what = f"the export of data set {export.dataset_id!r}"
    if export.public_key is None:
        raise PrivacyError(
            f"{what} must be signed by one of the given keys, but nobody signed it; ask for a signed one"
        )
    if export.public_key not in known:
        raise PrivacyError(
            f"{what} must be signed by one of the given keys, but key {fingerprint(export.public_key)} signed it; ask "
            "the hospital for its key, or for another export"
        )
    _verify(export, _load_public(known[export.public_key]), what)
    return known[export.public_key]


def fingerprint(public_key: str) -> str:
    """Name an OpenSSH key as ``ssh-keygen -lf`` does."""
    digest = hashlib.sha256(base64.b64decode(public_key.split()[1])).digest()
    return "SHA256:" + base64.b64encode(digest).decode().rstrip("=")


def _parse(path: Path, text: str) -> LedgerExport:
    if not text.startswith("{"):
        raise ConfigError(f"expected an export of a ledger, but {path} is something else; name another file")
    try:
        value = json.loads(text)
    except ValueError as error:
        raise broken_chain(f"the export {path} is cut off or was changed") from error
    if value.get("format") != FORMAT or set(value) != _KEYS:
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
    except (LookupError, TypeError, ValueError) as error:
        raise broken_chain(f"the export {path} is not as it was written") from error
    if signed[0] != signed[1] or not isinstance(value["public_key"], str | None) or not isinstance(value["at"], str):
        raise broken_chain(f"the export {path} is not as it was written")
    if _dataset_id(entries) != value["dataset_id"] or entries[-1].hash != value["chain_head"]:
        raise broken_chain(f"the export {path} lacks entries that its head counts")
    return LedgerExport(value["dataset_id"], value["at"], entries, value["public_key"], signature)


def _dataset_id(entries: Sequence[LedgerEntry]) -> str:
    name = entries[0].body.get("dataset_id") if entries else None
    if not isinstance(name, str):
        raise broken_chain("it does not begin with the entry that opens a ledger")
    return name


def _is_ledger(path: Path) -> bool:
    try:
        with path.open("rb") as file:
            return file.read(len(_SQLITE)) == _SQLITE
    except OSError:
        return False


def _verify(export: LedgerExport, key: ec.EllipticCurvePublicKey, what: str) -> None:
    try:
        key.verify(export.signature or b"", export.signed_bytes, ec.ECDSA(SHA384()))
    except InvalidSignature as error:
        raise PrivacyError(
            f"the signature of {what} must fit its content, but it does not, so it was changed after it was signed; "
            "ask the hospital for another export"
        ) from error


def _load_private(path: Path) -> ec.EllipticCurvePrivateKey:
    try:
        key = serialization.load_ssh_private_key(_read_key(path), password=None)
    except (ValueError, TypeError, UnsupportedAlgorithm) as error:
        raise ConfigError(
            f"expected an OpenSSH private key without a passphrase, got {path} ({error}); {_KEY_HELP}"
        ) from error
    if not isinstance(key, ec.EllipticCurvePrivateKey) or not isinstance(key.curve, ec.SECP384R1):
        raise _wrong_type(str(path))
    return key


def _load_public(path: Path) -> ec.EllipticCurvePublicKey:
    return _parse_public(_read_key(path), str(path))


def _parse_public(data: bytes, name: str) -> ec.EllipticCurvePublicKey:
    try:
        key = serialization.load_ssh_public_key(data)
    except (ValueError, TypeError, UnsupportedAlgorithm) as error:
        raise ConfigError(
            f"expected an OpenSSH public key, as ssh-keygen writes it into its .pub file, got {name}; give that file"
        ) from error
    if not isinstance(key, ec.EllipticCurvePublicKey) or not isinstance(key.curve, ec.SECP384R1):
        raise _wrong_type(name)
    return key


def _read_key(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise ConfigError(f"a key must be a readable file, got {path} ({error.strerror}); name another") from error


def _wrong_type(name: str) -> ConfigError:
    return ConfigError(f"expected an ECDSA key on P-384, as SuperNodes have, but {name} is another; {_KEY_HELP}")


def _openssh(key: ec.EllipticCurvePublicKey) -> str:
    """Write a public key as in a ``.pub`` file, without a comment."""
    return key.public_bytes(serialization.Encoding.OpenSSH, serialization.PublicFormat.OpenSSH).decode()

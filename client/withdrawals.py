"""Who has withdrawn: ids and records that no later round may see, as keyed hashes beside the data set's ledger.

Two files, mode 0600: ``ID.withdrawn.json`` holds when somebody was forgotten, the hashes of what the operator named,
and those of the records' contents; ``ID.withdrawn.key`` is what the hashes are keyed by. So neither holds a name, nodes
that share a ledger share what is withdrawn from its data, and a record stays out under another file name too.
"""

from __future__ import annotations

import hmac
import os
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cached_property
from hashlib import sha256
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, StringConstraints, ValidationError

from client.node_config import NodeConfig
from common import durable
from common.data.local import LocalData
from common.errors import ConfigError, PrivacyError
from common.locks import alone
from common.strict import Strict

KEY_BYTES = 32
NAMED = ("patient", "group", "file")  # columns by which an operator may name records, now and in later data

_Hash = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]
_RESTORE = "restore both files from a backup: without them, nobody knows who has withdrawn"


class Withdrawal(Strict):
    """What one command withdrew: hashes only.

    Attributes:
        at: when, UTC.
        names: of patients, groups and files.
        records: of contents.
    """

    at: str
    names: list[_Hash]
    records: list[_Hash]


class _Listed(Strict):
    format: Literal[1] = 1
    key_check: str = ""
    withdrawn: list[Withdrawal] = Field(default_factory=list)


@dataclass(frozen=True)
class Withdrawals:
    """All that was ever withdrawn from a data set.

    Attributes:
        key: of the hashes; empty where nobody has withdrawn.
        listed: in the order of time.
        version: another one whenever something is added; empty where nobody has withdrawn.
    """

    key: bytes = b""
    listed: tuple[Withdrawal, ...] = ()
    version: str = ""

    @cached_property
    def _names(self) -> frozenset[str]:
        return frozenset(one for entry in self.listed for one in entry.names)

    @cached_property
    def _records(self) -> frozenset[str]:
        return frozenset(one for entry in self.listed for one in entry.records)

    def names(self, kind: str, name: str) -> bool:
        """Whether this patient, group or file is listed."""
        return bool(self.listed) and _of_name(self.key, kind, name) in self._names

    def holds(self, digests: NDArray[np.uint8]) -> NDArray[np.bool_]:
        """Which records, by the digests of their contents (N, 32), are listed, shape (N,)."""
        if not self._records:
            return np.zeros(len(digests), dtype=np.bool_)
        return np.array([_of_record(self.key, digest.tobytes()) in self._records for digest in digests], dtype=np.bool_)

    def applies(self, data: LocalData) -> NDArray[np.bool_]:
        """Which records of a data set are withdrawn, by name or by content, shape (N,).

        It depends on each record alone, so that what holds for one record more or less holds without them, too.
        """
        if not self.listed:
            return np.zeros(len(data), dtype=np.bool_)
        withdrawn = self.holds(data.record_digests())
        for kind in NAMED:
            column = getattr(data, kind)
            if column is not None:
                unique, of_record = np.unique(column, return_inverse=True)
                withdrawn |= np.array([self.names(kind, str(name)) for name in unique], dtype=np.bool_)[of_record]
        return withdrawn


def withdrawals_file(folder: Path, config: NodeConfig) -> Path:
    """Where the list of a node's data set is: beside its ledger."""
    return folder / Path(config.data.ledgers).expanduser() / f"{config.data.id}.withdrawn.json"


def read_withdrawals(path: Path) -> Withdrawals:
    """Read what was withdrawn; nothing where there is no list.

    Raises:
        PrivacyError: the list or its key is lost, damaged, or not the other's.
    """
    key = _key_file(path)
    try:
        text = path.read_bytes()
    except FileNotFoundError:
        if key.exists():
            raise PrivacyError(
                f"expected the list of who has withdrawn in {path}, found its key only; {_RESTORE}"
            ) from None
        return Withdrawals()
    except OSError as error:
        raise PrivacyError(f"the list of who has withdrawn must be readable, got: {error}; make it so") from error
    try:
        listed = _Listed.model_validate_json(text)
    except ValidationError as error:
        raise PrivacyError(f"the list of who has withdrawn in {path} is damaged; {_RESTORE}") from error
    if not listed.withdrawn:
        return Withdrawals()
    secret = _read_key(key)
    if listed.key_check != _check(secret):
        raise PrivacyError(f"{key} is not the key of {path}; {_RESTORE}")
    return Withdrawals(secret, tuple(listed.withdrawn), sha256(text).hexdigest())


def withdraw(path: Path, names: Sequence[tuple[str, str]], digests: NDArray[np.uint8]) -> Withdrawals:
    """Add to the list, durably; a crash leaves the old one or the new one.

    Args:
        path: of the list; its folder is made.
        names: kind (one of ``NAMED``) and name of whoever or whatever is withdrawn.
        digests: of the contents of their records, shape (N, 32).

    Raises:
        PrivacyError: what is there cannot be read.
        ConfigError: it cannot be written.
    """
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"the folder {path.parent} cannot be made ({error.strerror}); see data.ledgers") from error
    with alone(path.with_suffix(".lock")):
        before = read_withdrawals(path)
        key = before.key or _make_key(path)
        added = Withdrawal(
            at=datetime.now(UTC).isoformat(timespec="seconds"),
            names=sorted({_of_name(key, kind, name) for kind, name in names}),
            records=sorted({_of_record(key, digest.tobytes()) for digest in digests}),
        )
        listed = _Listed(key_check=_check(key), withdrawn=[*before.listed, added])
        durable.write_json(path, listed.model_dump(), mode=0o600)
        return read_withdrawals(path)


def _make_key(path: Path) -> bytes:
    """Make the key of the first list; an empty list comes before it, as a key alone means that a list was lost."""
    key = _key_file(path)
    if key.exists():
        return _read_key(key)
    durable.write_json(path, _Listed().model_dump(), mode=0o600)
    made = os.urandom(KEY_BYTES)
    durable.write_bytes(key, made, mode=0o600)
    return made


def _read_key(path: Path) -> bytes:
    try:
        key = path.read_bytes()
    except OSError as error:
        raise PrivacyError(f"expected the key of who has withdrawn in {path}: {error.strerror}; {_RESTORE}") from error
    if len(key) != KEY_BYTES:
        raise PrivacyError(f"expected {KEY_BYTES} bytes in {path}, found {len(key)}; {_RESTORE}")
    return key


def _key_file(path: Path) -> Path:
    return path.with_suffix(".key")


def _check(key: bytes) -> str:
    return _hash(key, b"check")


def _of_name(key: bytes, kind: str, name: str) -> str:
    return _hash(key, f"{kind}\n{unicodedata.normalize('NFC', name)}".encode(errors="surrogateescape"))


def _of_record(key: bytes, digest: bytes) -> str:
    return _hash(key, b"record\n" + digest)


def _hash(key: bytes, message: bytes) -> str:
    return hmac.digest(key, message, "sha256").hex()

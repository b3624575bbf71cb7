"""How a node's keys followed each other, so that who has an old public key can follow to the newest.

Each rotation is a statement ``{format, at, previous, next}``, signed by both keys: the old one names its successor, the
new one shows that it is in the same hands. Signatures are as in ``common.privacy.keys``, over a tag (``fedgraft key
rotation 1``, newline) and the canonical JSON of the statement, in base64. A key that may be in other hands names no
successor: whoever has it could name his own.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePrivateKey

from common import durable
from common.errors import ConfigError, PrivacyError
from common.privacy.canonical import canonical_json
from common.privacy.keys import fits, openssh, parse_public, sign

FORMAT = "fedgraft key rotation 1"
_KEYS = {"format", "at", "previous", "next", "by_previous", "by_next"}


@dataclass(frozen=True)
class Rotation:
    """One key took another's place.

    Attributes:
        at: when, UTC, ISO 8601; the node's word.
        previous: the old public key, OpenSSH.
        next: the new one.
        by_previous: signature by the old key, DER.
        by_next: signature by the new key, DER.
    """

    at: str
    previous: str
    next: str
    by_previous: bytes
    by_next: bytes

    def to_dict(self) -> dict[str, str]:
        """Plain values; ``from_dict`` reads them back."""
        signatures = {"by_previous": self.by_previous, "by_next": self.by_next}
        coded = {name: base64.b64encode(value).decode() for name, value in signatures.items()}
        return {**_statement(self.at, self.previous, self.next), **coded}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Rotation:
        """Read a rotation and verify both signatures.

        Raises:
            PrivacyError: it is none, or a key did not sign it.
        """
        try:
            if (
                set(values) != _KEYS
                or values["format"] != FORMAT
                or not all(isinstance(x, str) for x in values.values())
            ):
                raise ValueError("no rotation")
            coded = [base64.b64decode(values[name], validate=True) for name in ("by_previous", "by_next")]
            found = cls(values["at"], values["previous"], values["next"], *coded)
            data = _signed_bytes(found.at, found.previous, found.next)
            keys = [parse_public(key.encode(), "a rotated key") for key in (found.previous, found.next)]
            plain = [openssh(key) for key in keys] == [found.previous, found.next]
            if not plain or not all(fits(key, made, data) for key, made in zip(keys, coded, strict=True)):
                raise ValueError("not signed")
        except (ValueError, TypeError, ConfigError) as error:
            raise PrivacyError(
                "a change of keys must be signed by the old key and the new one, but one is not; ask the hospital for "
                "its new public key"
            ) from error
        return found


def rotate(old: EllipticCurvePrivateKey, new: EllipticCurvePrivateKey, at: datetime | None = None) -> Rotation:
    """State that one key takes another's place."""
    when = (at or datetime.now(UTC)).astimezone(UTC).isoformat(timespec="seconds")
    previous, following = openssh(old.public_key()), openssh(new.public_key())
    data = _signed_bytes(when, previous, following)
    return Rotation(when, previous, following, sign(old, data), sign(new, data))


def leading_to(rotations: Sequence[Rotation], public_key: str) -> tuple[Rotation, ...]:
    """The rotations up to the one that brought a key; none where none did."""
    for count, rotation in enumerate(rotations, start=1):
        if rotation.next == public_key:
            return tuple(rotations[:count])
    return ()


def check_history(rotations: Sequence[Rotation], public_key: str) -> None:
    """Make sure that rotations follow each other and lead to a key.

    Raises:
        PrivacyError: they do not.
    """
    ends = [rotation.next for rotation in rotations]
    begins = [rotation.previous for rotation in rotations]
    if rotations and (begins[1:] != ends[:-1] or ends[-1] != public_key):
        raise PrivacyError(
            "changes of keys must follow each other and end at the key that signed, but they do not; ask the hospital "
            "for another export"
        )


def read_rotations(path: Path) -> list[Rotation]:
    """Read a node's rotations; none where there is no file.

    Raises:
        ConfigError: the file is damaged.
        PrivacyError: a rotation is not signed by both of its keys.
    """
    try:
        listed = json.loads(path.read_bytes())
        return [Rotation.from_dict(dict(one)) for one in listed]
    except FileNotFoundError:
        return []
    except (OSError, ValueError, TypeError, RecursionError) as error:
        raise ConfigError(f"expected changes of keys in {path}, got a damaged file; restore or remove it") from error


def keep_rotations(path: Path, rotations: Sequence[Rotation]) -> None:
    """Write a node's rotations, durably."""
    durable.write_bytes(path, (json.dumps([one.to_dict() for one in rotations], indent=2) + "\n").encode())


def _statement(at: str, previous: str, following: str) -> dict[str, str]:
    return {"format": FORMAT, "at": at, "previous": previous, "next": following}


def _signed_bytes(at: str, previous: str, following: str) -> bytes:
    return f"{FORMAT}\n{canonical_json(_statement(at, previous, following))}".encode()

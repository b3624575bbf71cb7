"""Files sealed at rest: AES-256-GCM from ``cryptography``, with a key that lies in a file of its own.

What is sealed is bound to a name: bytes that were changed, moved to another place or sealed with another key do not
open.
"""

from __future__ import annotations

import os
import stat
from dataclasses import dataclass, field
from pathlib import Path

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from common import durable
from common.errors import ConfigError

KEY_BYTES, NONCE_BYTES = 32, 12
_TAG = b"fedgraft sealed 1\n"


class SealBrokenError(Exception):
    """Bytes do not open: they were changed or moved, or the key is another one."""


@dataclass(frozen=True)
class Seal:
    """A key, and what is done with it.

    >>> seal = Seal(bytes(32))
    >>> seal.open(seal.close(b"features", "a place"), "a place")
    b'features'

    Attributes:
        key: 32 bytes.
    """

    key: bytes = field(repr=False)

    def close(self, data: bytes, name: str) -> bytes:
        """Encrypt up to 2 GiB, to be opened under the same name."""
        nonce = os.urandom(NONCE_BYTES)
        return nonce + AESGCM(self.key).encrypt(nonce, data, _TAG + name.encode())

    def open(self, sealed: bytes | memoryview, name: str) -> bytes:
        """Decrypt what was closed under this name.

        Raises:
            SealBrokenError: it is not that, or was changed.
        """
        try:
            return AESGCM(self.key).decrypt(sealed[:NONCE_BYTES], sealed[NONCE_BYTES:], _TAG + name.encode())
        except (InvalidTag, ValueError) as error:
            raise SealBrokenError from error


def read_seal(path: Path) -> Seal:
    """Read a key file.

    Raises:
        ConfigError: it is missing, others can read it, or it is no key.
    """
    try:
        mode, key = stat.S_IMODE(path.stat().st_mode), path.read_bytes()
    except OSError as error:
        raise ConfigError(
            f"expected the cache's key in {path}, got: {error.strerror}; bring it back, or make one with "
            "`fedgraft node cache-key`"
        ) from error
    if mode & 0o077:
        raise ConfigError(f"others can read the key {path}; run chmod 600 on it")
    if len(key) != KEY_BYTES:
        raise ConfigError(f"expected a key of {KEY_BYTES} bytes in {path}, found {len(key)}; restore it")
    return Seal(key)


def make_seal(path: Path) -> None:
    """Make a key file, mode 0600.

    Raises:
        ConfigError: there is one already, or it cannot be written.
    """
    if path.exists():
        raise ConfigError(f"{path} exists already; what it sealed would be lost with it, so move it away yourself")
    durable.write_bytes(path, AESGCM.generate_key(8 * KEY_BYTES), mode=0o600)

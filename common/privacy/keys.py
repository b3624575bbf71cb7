"""Keys by which files are signed: ECDSA on P-384 with SHA-384, in OpenSSH's form (``ssh-keygen -t ecdsa -b 384``)."""

from __future__ import annotations

import base64
import hashlib
from pathlib import Path

from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.hashes import SHA384

from common.errors import ConfigError

__all__ = ["fingerprint", "fits", "load_private", "load_public", "openssh", "parse_public", "sign"]

_KEY_HELP = "make one by ssh-keygen -t ecdsa -b 384"


def load_private(path: Path) -> ec.EllipticCurvePrivateKey:
    """Read a private key.

    Args:
        path: an OpenSSH key file without a passphrase.

    Raises:
        ConfigError: it cannot be read, or is of another type.
    """
    try:
        key = serialization.load_ssh_private_key(_read(path), password=None)
    except (ValueError, TypeError, UnsupportedAlgorithm) as error:
        raise ConfigError(f"expected an OpenSSH private key without a passphrase, got {path}; {_KEY_HELP}") from error
    if not isinstance(key, ec.EllipticCurvePrivateKey) or not isinstance(key.curve, ec.SECP384R1):
        raise _wrong_type(str(path))
    return key


def load_public(path: Path) -> ec.EllipticCurvePublicKey:
    """Read an OpenSSH ``.pub`` file; errors as in ``load_private``."""
    return parse_public(_read(path), str(path))


def parse_public(data: bytes, name: str) -> ec.EllipticCurvePublicKey:
    """Read a public key's bytes; ``name`` says in errors where they came from."""
    try:
        key = serialization.load_ssh_public_key(data)
    except (ValueError, TypeError, UnsupportedAlgorithm) as error:
        raise ConfigError(
            f"expected an OpenSSH public key, as ssh-keygen writes it into its .pub file, got {name}; give that file"
        ) from error
    if not isinstance(key, ec.EllipticCurvePublicKey) or not isinstance(key.curve, ec.SECP384R1):
        raise _wrong_type(name)
    return key


def openssh(key: ec.EllipticCurvePublicKey) -> str:
    """Write a public key as in a ``.pub`` file, without a comment."""
    return key.public_bytes(serialization.Encoding.OpenSSH, serialization.PublicFormat.OpenSSH).decode()


def fingerprint(public_key: str) -> str:
    """Name an OpenSSH key as ``ssh-keygen -lf`` does."""
    digest = hashlib.sha256(base64.b64decode(public_key.split()[1])).digest()
    return "SHA256:" + base64.b64encode(digest).decode().rstrip("=")


def sign(key: ec.EllipticCurvePrivateKey, data: bytes) -> bytes:
    """Sign bytes; the signature is DER, as ``openssl dgst -sha384 -verify`` reads it."""
    return key.sign(data, ec.ECDSA(SHA384()))


def fits(key: ec.EllipticCurvePublicKey, signature: bytes, data: bytes) -> bool:
    """Whether a key made this signature over these bytes."""
    try:
        key.verify(signature, data, ec.ECDSA(SHA384()))
    except InvalidSignature:
        return False
    return True


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise ConfigError(f"a key must be a readable file, got {path} ({error.strerror}); name another") from error


def _wrong_type(name: str) -> ConfigError:
    return ConfigError(f"expected an ECDSA key on P-384, as SuperNodes have, but {name} is another; {_KEY_HELP}")

"""The node's key: made once, rotated so that every crash leaves a key that works and a rotation that can be finished.

Private halves lie in a folder of their own, which is hidden from the app whole, whatever is made or renamed in it.

The order of a rotation: the new private key beside the old one; the statement that both signed; the rename that makes
the new key the node's; its public half. Of an old key only the public half is kept, below ``old-keys/``.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec

from common import durable
from common.locks import alone
from common.privacy.key_history import keep_rotations, leading_to, read_rotations, rotate
from common.privacy.keys import fingerprint, load_private, openssh

PRIVATE_KEYS = "keys"
KEY, NEXT_KEY, PUBLIC_KEY = f"{PRIVATE_KEYS}/node.key", f"{PRIVATE_KEYS}/node.key.next", "node.key.pub"
OLD_KEYS, HISTORY = "old-keys", "key-history.json"


@dataclass(frozen=True)
class Rotated:
    """What a rotation did.

    Attributes:
        old: fingerprint of the key before.
        new: fingerprint of the key now.
        finished: whether an earlier rotation, which was interrupted, was finished instead of beginning another.
    """

    old: str
    new: str
    finished: bool


def make_key(folder: Path, name: str) -> None:
    """Make a node's first key, unless there is one; the private half comes last."""
    if not (folder / KEY).exists():
        key = ec.generate_private_key(ec.SECP384R1())
        _keep_public(folder, key, name)
        with durable.told(folder / KEY):
            (folder / PRIVATE_KEYS).mkdir(mode=0o700, exist_ok=True)
        durable.write_bytes(folder / KEY, _private(key), mode=0o600)


def rotate_key(folder: Path, name: str, *, compromised: bool = False) -> Rotated:
    """Give a node a new key, or finish the rotation that was interrupted.

    Args:
        folder: of the node.
        name: of the node, a comment in the public key's file.
        compromised: the old key may be in other hands: it names no successor, and no key before it does.

    Raises:
        ConfigError: the old key cannot be read, or nothing can be written; the old key is still the node's then.
        PrivacyError: the changes of keys on disk were altered.
    """
    with alone(folder / f"{KEY}.lock"):
        old = load_private(folder / KEY)
        if left_over(folder) and not (folder / NEXT_KEY).exists() and not compromised:  # crashed after the rename
            _keep_public(folder, old, name)
            known = read_rotations(folder / HISTORY)
            before = known[-1].previous if known else openssh(old.public_key())
            return Rotated(fingerprint(before), _print_of(old), finished=True)
        finished = (folder / NEXT_KEY).exists()
        if not finished:
            durable.write_bytes(folder / NEXT_KEY, _private(ec.generate_private_key(ec.SECP384R1())), mode=0o600)
        new = load_private(folder / NEXT_KEY)
        _keep_old(folder, old, name)
        known = list(leading_to(read_rotations(folder / HISTORY), openssh(old.public_key())))
        keep_rotations(folder / HISTORY, [] if compromised else [*known, rotate(old, new)])
        (folder / NEXT_KEY).replace(folder / KEY)
        durable.sync_folder(folder / PRIVATE_KEYS)
        _keep_public(folder, new, name)
        return Rotated(_print_of(old), _print_of(new), finished)


def left_over(folder: Path) -> bool:
    """Whether a rotation was interrupted, so that `rotate_key` would finish it."""
    public = openssh(load_private(folder / KEY).public_key())
    path = folder / PUBLIC_KEY
    return (folder / NEXT_KEY).exists() or not path.exists() or path.read_text().split()[:2] != public.split()


def _keep_old(folder: Path, key: ec.EllipticCurvePrivateKey, name: str) -> None:
    place = folder / OLD_KEYS
    place.mkdir(mode=0o700, exist_ok=True)
    short = _print_of(key).removeprefix("SHA256:").replace("/", "_")
    durable.write_bytes(place / f"{short}.pub", f"{openssh(key.public_key())} {name}\n".encode())


def _keep_public(folder: Path, key: ec.EllipticCurvePrivateKey, name: str) -> None:
    durable.write_bytes(folder / PUBLIC_KEY, f"{openssh(key.public_key())} {name}\n".encode())


def _print_of(key: ec.EllipticCurvePrivateKey) -> str:
    return fingerprint(openssh(key.public_key()))


def _private(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.OpenSSH, serialization.NoEncryption()
    )

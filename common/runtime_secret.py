"""A secret between the two programs of a side, so that no other user of the machine is handed a task of theirs.

They talk over the loopback, which every user of a machine can reach. With Flower's ``--superexec-auth-secret-file``
only who can read this file is given a task, and with it the token that all further calls about that task need.
"""

from __future__ import annotations

import secrets
from pathlib import Path

from common import durable

SECRET = "runtime.secret"
OPTION = "--superexec-auth-secret-file"
SECRET_BYTES = 32


def make_secret(folder: Path) -> None:
    """Write a secret, mode 0600, unless there is one.

    It is kept: a second start, which is refused, must not take the secret from programs that run.
    """
    path = folder / SECRET
    if path.exists() and path.stat().st_size == SECRET_BYTES:
        path.chmod(0o600)
    else:
        durable.write_bytes(path, secrets.token_bytes(SECRET_BYTES), mode=0o600)


def secret_options(folder: Path) -> list[str]:
    """What both programs are told."""
    return [OPTION, str(folder / SECRET)]

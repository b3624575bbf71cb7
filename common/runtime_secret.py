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


def draw_secret(folder: Path) -> None:
    """Write a new secret, mode 0600; once, before the programs are started."""
    durable.write_bytes(folder / SECRET, secrets.token_bytes(SECRET_BYTES), mode=0o600)


def secret_options(folder: Path) -> list[str]:
    """What both programs are told."""
    return [OPTION, str(folder / SECRET)]

"""Which hospital has which key, as the operators told each other: the peers file, and what is read of it.

The file is the public key files of the hospitals (``node.key.pub``), one after the other: a line is a key in OpenSSH's
form and the node's name. No server makes it true: an operator approves it after comparing fingerprints with the other
hospitals, and a node takes nobody's signature whose key is not in it.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from common.errors import ConfigError
from common.privacy.canonical import sha256_hex
from common.privacy.keys import fingerprint, openssh, parse_public

NAME = r"^[0-9A-Za-z][0-9A-Za-z._-]{0,63}$"
MOST_NODES = 200
MOST_BYTES = 1024 * MOST_NODES

_HELP = "put the node.key.pub of every hospital into it, one a line"


@dataclass(frozen=True)
class Roster:
    """The hospitals' public keys.

    Attributes:
        keys: name of a node to its key, OpenSSH, without a comment.
    """

    keys: dict[str, str]

    def __post_init__(self) -> None:
        """Refuse a roster in which a key or a name stands for two."""
        if not 1 <= len(self.keys) <= MOST_NODES:
            raise ConfigError(f"expected the keys of 1 to {MOST_NODES} nodes, got {len(self.keys)}; {_HELP}")
        if odd := [name for name in self.keys if not re.fullmatch(NAME, name)]:
            raise ConfigError(f"expected the name of a node behind its key, got {odd[0]!r}; {_HELP}")
        if len(set(self.keys.values())) != len(self.keys):
            raise ConfigError(f"expected a key of its own for each node, got one for two; {_HELP}")
        for name, key in self.keys.items():
            if openssh(parse_public(key.encode(), name)) != key:
                raise ConfigError(f"expected the key of {name} as OpenSSH writes it, got another form; {_HELP}")

    @cached_property
    def fingerprints(self) -> dict[str, str]:
        """Of each node's key, as ``ssh-keygen -lf`` names it."""
        return {name: fingerprint(key) for name, key in sorted(self.keys.items())}

    @cached_property
    def digest(self) -> str:
        """SHA-256, in hex, over names and keys in the order of the names."""
        return sha256_hex("fedgraft peers 1", *(part for pair in sorted(self.keys.items()) for part in pair))

    def in_words(self) -> str:
        """What an operator compares with the other hospitals: a name and a fingerprint a line."""
        return "\n".join(f"{name:<24} {print_}" for name, print_ in self.fingerprints.items())

    def to_text(self) -> str:
        """The peers file; ``parse_roster`` reads it back."""
        return "".join(f"{key} {name}\n" for name, key in sorted(self.keys.items()))


def parse_roster(text: str, name: str = "the peers file") -> Roster:
    """Read a peers file's text; empty lines and lines that begin with # say nothing.

    Raises:
        ConfigError: a line is no key with a name, or a name or key is there twice.
    """
    lines = [line.split() for line in text.splitlines() if line.strip() and not line.lstrip().startswith("#")]
    if odd := [line for line in lines if len(line) != 3]:
        raise ConfigError(f"expected type, key and name in each line of {name}, got {len(odd[0])} words; {_HELP}")
    pairs = [(node, f"{kind} {key}") for kind, key, node in lines]
    if twice := _twice(node for node, _ in pairs):
        raise ConfigError(f"expected each node once in {name}, got {twice!r} again; leave out its old key")
    return Roster(dict(pairs))


def read_roster(path: Path) -> Roster:
    """Read a peers file.

    Raises:
        ConfigError: it cannot be read, or is none.
    """
    try:
        with path.open("rb") as file:
            data = file.read(MOST_BYTES + 1)
        text = data.decode()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"expected the hospitals' keys in {path}, it cannot be read; {_HELP}") from error
    if len(data) > MOST_BYTES:
        raise ConfigError(f"expected the keys of at most {MOST_NODES} nodes in {path}, it is larger; {_HELP}")
    return parse_roster(text, str(path))


def _twice(names: Iterable[str]) -> str | None:
    seen: set[str] = set()
    for name in names:
        if name in seen:
            return name
        seen.add(name)
    return None

"""What a node may be called: by its operator, by the coordinator, and in the names of files."""

from __future__ import annotations

import re

from common.errors import ConfigError

NODE_NAME = r"^[0-9A-Za-z][0-9A-Za-z._-]{0,63}$"
WORDS = "a name of letters, digits, dots, dashes and underscores, at most 64"


def check_node_name(name: str) -> None:
    """Refuse a name that no ``node.toml`` can have.

    >>> check_node_name("st-mary")

    Raises:
        ConfigError: it is another.
    """
    if re.fullmatch(NODE_NAME, name) is None or name.endswith("\n"):
        raise ConfigError(f"expected {WORDS}, got {name!r}; give the one in the hospital's node.toml")

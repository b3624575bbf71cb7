"""TOML as it is read from a file."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Any

from common.errors import ConfigError


def parse_toml(text: str, path: Path) -> dict[str, Any]:
    r"""Read TOML.

    >>> parse_toml("[federation]\nnodes = 3", Path("run.toml"))
    {'federation': {'nodes': 3}}

    Args:
        text: the whole content.
        path: of the file that it is from, for errors.

    Raises:
        ConfigError: it is not TOML, or nests too deeply to be read.
    """
    try:
        return tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"expected TOML in {path}: {error}; correct that line") from None
    except RecursionError:
        raise ConfigError(f"expected TOML in {path}: its brackets nest too deeply; take some out") from None

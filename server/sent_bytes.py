"""How many bytes of a backbone a run has sent, counted in its folder, so that a resumed run goes on counting."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

from common.errors import ConfigError

SENT = "backbone-sent.jsonl"


def note_sent(folder: Path, sent: Mapping[str, int]) -> None:
    """Note what is sent, node name to bytes, before it is.

    Raises:
        ConfigError: it cannot be written.
    """
    some = {name: size for name, size in sent.items() if size}
    if not some:
        return
    try:
        with (folder / SENT).open("a") as file:
            file.write(json.dumps(some) + "\n")
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        raise ConfigError(f"could not write {folder / SENT}: {error.strerror}; free some space") from error


def bytes_sent(folder: Path) -> int:
    """To all nodes of a run together."""
    if not (folder / SENT).exists():
        return 0
    total = 0
    for line in (folder / SENT).read_text().splitlines():
        with suppress(json.JSONDecodeError):  # what a crash cut short
            total += sum(json.loads(line).values())
    return total

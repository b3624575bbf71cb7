"""How many bytes of a backbone a run has sent, counted in its folder, so that a resumed run goes on counting."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from common.durable import append_line, read_lines

SENT = "backbone-sent.jsonl"


def note_sent(folder: Path, sent: Mapping[str, int]) -> None:
    """Note what is sent, node name to bytes, before it is.

    Raises:
        ConfigError: it cannot be written.
    """
    if some := {name: size for name, size in sent.items() if size}:
        append_line(folder / SENT, some)


def bytes_sent(folder: Path) -> int:
    """To all nodes of a run together."""
    return sum(sum(line.values()) for line in read_lines(folder / SENT))

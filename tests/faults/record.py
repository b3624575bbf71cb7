"""What was played, when, and on how many nodes: kept in ``played.json``, from which the table is written."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from common import durable
from tests.faults.matrix import FULL
from tests.faults.outcome import Row

RECORD = Path(__file__).with_name("played.json")
PAGE = Path(__file__).parents[2] / "docs" / "faults.md"
BEGIN, END = "<!-- begin: python -m tests.faults --update-docs -->\n", "<!-- end -->\n"


@dataclass(frozen=True)
class Played:
    """A fault that held.

    Attributes:
        date: of that day.
        nodes: that the federation had.
        rows: of the table.
    """

    date: str
    nodes: int
    rows: Sequence[Row]


def read() -> dict[str, Played]:
    """What was played so far, by the name of the fault."""
    found: Mapping[str, Any] = json.loads(RECORD.read_text(encoding="utf-8")) if RECORD.exists() else {}
    return {name: Played(one["date"], one["nodes"], [Row(**row) for row in one["rows"]]) for name, one in found.items()}


def keep(played: Mapping[str, Played]) -> None:
    """Put faults that held in the place of what was known of them, in the record and in the page."""
    known = read() | dict(played)
    ordered = {fault.name: known[fault.name] for fault in FULL if fault.name in known}
    text = json.dumps({name: asdict(one) for name, one in ordered.items()}, indent=1, ensure_ascii=False)
    durable.write_bytes(RECORD, f"{text}\n".encode())
    durable.write_bytes(PAGE, updated(PAGE.read_text(encoding="utf-8"), table(ordered)).encode())


def table(played: Mapping[str, Played]) -> str:
    """The rows, in the order of the matrix, and the faults that have none."""
    lines = ["| fault | what the user sees | the model | paid in excess | played |", "|---|---|---|---|---|"]
    for one in played.values():
        for row in one.rows:
            cells = (row.fault, row.sees, row.outcome, row.excess, f"{one.date}, {one.nodes} nodes")
            lines.append("| " + " | ".join(cell.replace("|", "/") for cell in cells) + " |")
    missing = [fault.name for fault in FULL if fault.name not in played]
    rest = f"\nWritten, but not played to its end: {', '.join(missing)}.\n" if missing else ""
    return "\n".join(lines) + "\n" + rest


def updated(page: str, rows: str) -> str:
    """The page with another table."""
    before, _, rest = page.partition(BEGIN)
    return before + BEGIN + rows + END + rest.partition(END)[2]

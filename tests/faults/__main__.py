"""All faults, on one federation of five nodes, and the table of ``docs/faults.md``; about half an hour.

Usage: ``python -m tests.faults [--update-docs] [FAULT ...]``
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
import traceback
from collections.abc import Sequence
from pathlib import Path

from tests.faults.federation import Federation
from tests.faults.matrix import FULL, NODES, Fault
from tests.faults.outcome import Row

PAGE = Path(__file__).parents[2] / "docs" / "faults.md"
BEGIN, END = "<!-- begin: python -m tests.faults --update-docs -->\n", "<!-- end -->\n"


def table(rows: Sequence[tuple[Row, float]]) -> str:
    """The rows as a table, with the seconds that the fault's run took."""
    lines = ["| fault | what the user sees | the model | paid in excess | s |", "|---|---|---|---|---|"]
    for row, seconds in rows:
        cells = (row.fault, row.sees, row.outcome, row.excess, f"{seconds:.0f}")
        lines.append("| " + " | ".join(cell.replace("|", "/") for cell in cells) + " |")
    return "\n".join(lines) + "\n"


def updated(page: str, rows: str) -> str:
    """The page with another table."""
    before, _, rest = page.partition(BEGIN)
    return before + BEGIN + rows + END + rest.partition(END)[2]


def play(faults: Sequence[Fault], folder: Path, nodes: int) -> tuple[list[tuple[Row, float]], list[str]]:
    """Play faults one after the other, going on after one that failed; returns the rows, and what failed."""
    rows, failed = list[tuple[Row, float]](), list[str]()
    with Federation(folder) as federation:
        federation.join(NODES[:nodes])
        assert federation.online(list(federation.homes))
        print("online", file=sys.stderr, flush=True)
        for fault in faults:
            began = time.monotonic()
            try:
                found = fault.play(federation)
            except Exception:
                traceback.print_exc()
                failed.append(fault.name)
                federation.recover()
                continue
            finally:
                print(f"{fault.name:16} {time.monotonic() - began:6.1f} s", file=sys.stderr, flush=True)
            rows += [(row, time.monotonic() - began) for row in found]
            print(table(rows), flush=True)
    return rows, failed


def main() -> int:
    """Play what is named, or all."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--update-docs", action="store_true")
    parser.add_argument("--keep", type=Path, help="a new folder, which is not deleted")
    parser.add_argument("faults", nargs="*", help="by default all")
    parser.add_argument("--nodes", type=int, default=len(NODES))
    options = parser.parse_args()
    by_name = {fault.name: fault for fault in FULL}
    chosen = [by_name[name] for name in options.faults or by_name]
    with tempfile.TemporaryDirectory() as scratch:
        folder = options.keep or Path(scratch)
        folder.mkdir(exist_ok=True)
        rows, failed = play(chosen, folder, options.nodes)
    if options.update_docs and not failed and (chosen, options.nodes) == (list(FULL), len(NODES)):
        PAGE.write_text(updated(PAGE.read_text(encoding="utf-8"), table(rows)), encoding="utf-8")
    print(f"failed: {', '.join(failed)}" if failed else "all held", file=sys.stderr)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())

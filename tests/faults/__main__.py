"""All faults, or those that are named, on one federation; the table of ``docs/faults.md``. About an hour for all.

Usage: ``python -m tests.faults [--update-docs] [--nodes 3] [FAULT ...]``
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
import traceback
from collections.abc import Sequence
from datetime import date
from pathlib import Path

from tests.faults import record
from tests.faults.federation import Federation
from tests.faults.matrix import FULL, NODES, Fault
from tests.faults.record import Played


def play(faults: Sequence[Fault], folder: Path, nodes: int, *, update: bool) -> list[str]:
    """Play faults one after the other, going on after one that failed; returns those."""
    failed = list[str]()
    with Federation(folder) as federation:
        federation.join(NODES[:nodes])
        assert federation.online(list(federation.homes))
        for fault in faults:
            began = time.monotonic()
            try:
                rows = fault.play(federation)
            except Exception:
                traceback.print_exc()
                failed.append(fault.name)
                federation.recover()
                continue
            finally:
                print(f"{fault.name:16} {time.monotonic() - began:6.1f} s", file=sys.stderr, flush=True)
            played = {fault.name: Played(date.today().isoformat(), nodes, rows)}
            print(record.table(played).partition("\n\n")[0], flush=True)
            if update:
                record.keep(played)
    return failed


def main() -> int:
    """Play what is named, or all."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--update-docs", action="store_true", help="the rows of other faults stay, with their date")
    parser.add_argument("--keep", type=Path, help="a new folder, which is not deleted")
    parser.add_argument("faults", nargs="*", help=f"by default all: {', '.join(fault.name for fault in FULL)}")
    parser.add_argument("--nodes", type=int, default=len(NODES))
    options = parser.parse_args()
    by_name = {fault.name: fault for fault in FULL}
    if unknown := sorted({*options.faults} - {*by_name}):
        parser.error(f"no such faults: {', '.join(unknown)}")
    with tempfile.TemporaryDirectory() as scratch:
        folder = options.keep or Path(scratch)
        folder.mkdir(exist_ok=True)
        chosen = [by_name[name] for name in options.faults or by_name]
        failed = play(chosen, folder, options.nodes, update=options.update_docs)
    print(f"failed: {', '.join(failed)}" if failed else "all held", file=sys.stderr)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())

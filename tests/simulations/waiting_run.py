"""``python -m tests.simulations.waiting_run ROUND simulate …``: a run that waits, in that round, to be killed.

A round in process takes milliseconds: without this, a busy machine could let the run end before the blow comes.
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Sequence

import fedgraft
from server.checkpoints import RunStore

asked = RunStore.note_asked


def main(last: int, arguments: list[str]) -> int:
    """Run the command, and stop for ever once the nodes of that round are noted."""

    def note_asked(self: RunStore, round_: int, names: Sequence[str]) -> None:
        asked(self, round_, names)
        if round_ == last:
            threading.Event().wait()

    RunStore.note_asked = note_asked  # type: ignore[method-assign]
    return fedgraft.main(arguments)


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1]), sys.argv[2:]))

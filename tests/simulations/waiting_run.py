"""``python -m tests.simulations.waiting_run ROUND simulate …``: a run that waits, in that round, to be killed.

A round in process takes milliseconds: without this, a busy machine could let the run end before the blow comes.
"""

from __future__ import annotations

import sys
import threading

import fedgraft
from server.checkpoints import Checkpoint, RunStore

save = RunStore.save


def main(last: int, arguments: list[str]) -> int:
    """Run the command, and stop for ever before the nodes are asked for that round."""

    def save_and_wait(self: RunStore, checkpoint: Checkpoint) -> None:
        save(self, checkpoint)
        if checkpoint.round == last - 1:
            threading.Event().wait()

    RunStore.save = save_and_wait  # type: ignore[method-assign]
    return fedgraft.main(arguments)


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1]), sys.argv[2:]))

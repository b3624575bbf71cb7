"""Run by ``test_secagg_node``, as ``python -m tests.client.killed_secagg``: a node that is killed as it answers.

Arguments: the folder of the record, the node's key file, the peers file, the run as JSON, the request's file, the
stage, and when to die: ``before`` or ``after`` the record is kept.
"""

from __future__ import annotations

import os
import signal
import sys
from functools import partial
from pathlib import Path

import numpy as np

from client.secagg_node import SumNode
from client.secagg_record import Kept, SumRecord
from common.privacy.keys import load_private, sign
from common.secagg.messages import Stage
from common.secagg.roster import read_roster
from common.secagg.session import SumRun


def main(folder: str, key: str, peers: str, run: str, request: str, stage: str, when: str) -> None:
    """Answer, and die."""
    keep = SumRecord.keep

    def dying(self: SumRecord, kept: Kept) -> None:
        if when == "after":
            keep(self, kept)
        os.kill(os.getpid(), signal.SIGKILL)

    SumRecord.keep = dying  # type: ignore[method-assign]
    node = SumNode("node-000", partial(sign, load_private(Path(key))), read_roster(Path(peers)), Path(folder))
    parsed = SumRun.model_validate_json(run)
    node.answer(Stage(stage), Path(request).read_bytes(), parsed, lambda: np.full(parsed.terms.length, 7, np.int64))


if __name__ == "__main__":
    main(*sys.argv[1:])

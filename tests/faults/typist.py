"""Types commands of the sources that ``PYTHONPATH`` names, one after the other, in a process that has torch already.

It reads a line of JSON, the arguments, and writes one: the exit status, and what was said.
"""

from __future__ import annotations

import io
import json
import os
import sys
from contextlib import redirect_stderr, redirect_stdout


def main() -> None:
    """Type until there is nothing more to type."""
    sys.path.pop(0)  # this script's own folder
    import fedgraft

    answers = os.fdopen(os.dup(1), "w")
    for line in sys.stdin:
        said = io.StringIO()
        with redirect_stdout(said), redirect_stderr(said):
            status = fedgraft.main(json.loads(line))
        print(json.dumps([status, said.getvalue()]), file=answers, flush=True)


if __name__ == "__main__":
    main()

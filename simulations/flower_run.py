"""Starts a SuperLink for one run, waits for it, and becomes the ``flwr run`` that uses it.

``flwr run`` starts one by itself, but gives it 15 seconds, which a busy machine needs for the imports alone.

Usage: ``python -m simulations.flower_run LOG SUPERLINK… -- FLWR-RUN…``: the SuperLink's log and two command lines, the
first of which must name ``--port``.
"""

from __future__ import annotations

import http
import http.client
import os
import subprocess
import sys
import time
from pathlib import Path

START_S = 300.0
ANSWER_S = 5.0
POLL_S = 0.1


def wait_for(link: subprocess.Popen[bytes], port: str, log: Path) -> None:
    """Wait until a SuperLink answers on its port.

    Raises:
        SystemExit: it ended before, or says nothing for `START_S`.
    """
    deadline = time.monotonic() + START_S
    while not _answers(port):
        if link.poll() is not None:
            sys.exit(f"the SuperLink ended with status {link.returncode} before it answered; see {log}")
        if time.monotonic() > deadline:
            sys.exit(f"the SuperLink did not answer within {START_S:.0f} s; see {log}")
        time.sleep(POLL_S)


def _answers(port: str) -> bool:
    connection = http.client.HTTPConnection("127.0.0.1", int(port), timeout=ANSWER_S)  # it knows of no proxy
    try:
        connection.request("GET", "/health")
        return connection.getresponse().status == http.HTTPStatus.OK
    except (OSError, http.client.HTTPException):
        return False
    finally:
        connection.close()


if __name__ == "__main__":
    log, between = Path(sys.argv[1]), sys.argv.index("--")
    superlink, run = sys.argv[2:between], sys.argv[between + 1 :]
    with log.open("wb") as output:
        link = subprocess.Popen(superlink, stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT)
    wait_for(link, superlink[superlink.index("--port") + 1], log)
    os.execv(run[0], run)

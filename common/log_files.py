"""Logs of programs: what they say is read from a pipe and written into files of bounded size, with a few old ones.

A program that wrote into its file by itself would go on writing into it for months; renamed, it would still grow. Here
the reader changes files between two lines, so that none is lost or cut.
"""

from __future__ import annotations

import logging
import os
import threading
from io import TextIOWrapper
from logging.handlers import RotatingFileHandler
from pathlib import Path
from typing import IO

LOG_BYTES, OLD_FILES = 10_000_000, 3
LONGEST_LINE = 65_536
DRAIN_S = 2.0


class LogFile(RotatingFileHandler):
    """A file for lines: ``name.log``, and ``name.log.1`` to ``.3`` before it, mode 0600.

    Args:
        path: of the newest file.
        bytes_: of each file, about.
    """

    def __init__(self, path: Path, bytes_: int = LOG_BYTES) -> None:
        super().__init__(
            path, maxBytes=bytes_, backupCount=OLD_FILES, encoding="utf-8", errors="surrogateescape", delay=True
        )
        self.terminator = ""

    def write(self, line: bytes) -> None:
        """Append one line, its end included."""
        text = line.decode("utf-8", "surrogateescape")
        self.handle(logging.LogRecord("", logging.INFO, "", 0, text, None, None))

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802 (logging's name)
        """Drop the line: a full disk must not stop the program that speaks."""

    def _open(self) -> TextIOWrapper:
        descriptor = os.open(self.baseFilename, os.O_CREAT | os.O_APPEND | os.O_WRONLY, 0o600)
        os.fchmod(descriptor, 0o600)
        return TextIOWrapper(os.fdopen(descriptor, "ab"), encoding=self.encoding, errors=self.errors)


def copy_lines(pipe: IO[bytes], log: LogFile) -> threading.Thread:
    """Write what comes out of a pipe into a log, until its other end is closed; in a thread of its own."""

    def copy() -> None:
        with pipe:
            for line in iter(lambda: pipe.readline(LONGEST_LINE), b""):
                log.write(line)

    thread = threading.Thread(target=copy, daemon=True)
    thread.start()
    return thread

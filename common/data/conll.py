"""Words and tags in CoNLL's columns."""

from __future__ import annotations

import re
from itertools import islice
from pathlib import Path
from typing import Any

from common.data.rows import Rows, read_text, rows_of_objects
from common.errors import ConfigError

SUFFIXES = (".conll", ".iob", ".iob2", ".bio")
MAYBE = (".tsv", ".txt")

_TAG = re.compile(r"O|[BIESLU]-\S+")
_DOCUMENT = "-DOCSTART-"
_SNIFFED = 200


def is_conll(path: Path) -> bool:
    """Whether a file is meant as CoNLL: by its suffix, or ``.tsv`` and ``.txt`` whose last columns are tags."""
    if path.suffix.lower() in SUFFIXES:
        return True
    if path.suffix.lower() not in MAYBE:
        return False
    try:
        with path.open(encoding="utf-8", errors="replace") as stream:
            lines = [line.split() for line in islice(stream, _SNIFFED) if line.strip() and not _is_comment(line)]
    except OSError:
        return False
    return bool(lines) and all(len(parts) > 1 and _TAG.fullmatch(parts[-1]) for parts in lines)


def read_conll(path: Path) -> Rows:
    """Read a word and its tag from the first and the last column; a blank line ends a sentence.

    Columns are parted by tabs or spaces. Comments (``# …`` before a sentence) are left out; ``-DOCSTART-`` lines part
    documents, whose sentences stay together in a hold-out.

    Returns:
        Rows with the columns ``tokens`` and ``tags``, and ``group`` where documents are marked.

    Raises:
        ConfigError: lines of different numbers of columns, or no sentence.
    """
    sentences: list[tuple[str, dict[str, Any]]] = []
    widths: set[int] = set()
    document, fresh = 0, True
    for number, line in enumerate(read_text(path).split("\n"), 1):
        parts = line.rstrip("\r").split("\t") if "\t" in line else line.split()
        if not line.strip() or parts[0] == _DOCUMENT:
            document, fresh = document + (parts[:1] == [_DOCUMENT]), True
            continue
        if fresh and _is_comment(line):
            continue
        widths.add(len(parts))
        if len(widths) > 1 or len(parts) < 2 or not parts[0].strip() or not parts[-1].strip():
            raise ConfigError(
                f"{path}, line {number} must hold a word and its tag in as many columns as the lines before, got "
                f"{len(parts)}; part them by a tab, sentences by a blank line"
            )
        if fresh:
            group = {"group": f"{path.name} {document}"} if document else {}
            sentences.append((f"{path}, line {number}", {"tokens": [], "tags": [], **group}))
        sentences[-1][1]["tokens"].append(parts[0].strip())
        sentences[-1][1]["tags"].append(parts[-1].strip())
        fresh = False
    if not sentences:
        raise ConfigError(f"{path} must hold at least one sentence, got none; check that this is the right file")
    return rows_of_objects(sentences)


def _is_comment(line: str) -> bool:
    """Whether a line is a note, rather than the word # with its tag."""
    return line.startswith("# ") and not _TAG.fullmatch(line.split()[-1])

"""Logs have a bound, lose no line when files change, and are for their owner only."""

from __future__ import annotations

import os
import stat
from pathlib import Path

from common.log_files import OLD_FILES, LogFile, copy_lines


def in_order(path: Path) -> list[Path]:
    """The files of a log, oldest first."""
    found = [path.with_name(f"{path.name}.{number}") for number in range(OLD_FILES, 0, -1)]
    return [one for one in [*found, path] if one.exists()]


def copied(text: bytes, log: LogFile) -> None:
    read, write = os.pipe()
    reader = copy_lines(os.fdopen(read, "rb"), log)
    with os.fdopen(write, "wb") as pipe:
        pipe.write(text)
    reader.join(60)
    log.close()


def test_no_line_is_lost_or_cut_when_files_change(tmp_path: Path) -> None:
    text = b"".join(b"line %d \xff\n" % number for number in range(300)) + b"the end"
    copied(text, LogFile(tmp_path / "x.log", 1500))
    files = in_order(tmp_path / "x.log")
    assert len(files) > 2
    assert b"".join(path.read_bytes() for path in files) == text
    assert all(path.read_bytes().endswith(b"\n") for path in files[:-1])


def test_it_has_a_bound_and_keeps_the_newest(tmp_path: Path) -> None:
    text = b"".join(b"%06d\n" % number for number in range(5000))
    copied(text, LogFile(tmp_path / "x.log", 1000))
    files = in_order(tmp_path / "x.log")
    assert len(files) == len(list(tmp_path.iterdir())) == OLD_FILES + 1
    assert all(path.stat().st_size <= 1000 for path in files)
    assert text.endswith(b"".join(path.read_bytes() for path in files))


def test_it_is_for_its_owner_only_and_goes_on_where_it_was(tmp_path: Path) -> None:
    path = tmp_path / "x.log"
    path.write_text("before\n")
    path.chmod(0o644)
    copied(b"one\n" * 100, LogFile(path, 300))
    assert b"".join(one.read_bytes() for one in in_order(path)) == b"before\n" + b"one\n" * 100
    assert {stat.S_IMODE(one.stat().st_mode) for one in in_order(path)[1:]} == {0o600}


def test_a_line_without_end_is_cut_into_pieces(tmp_path: Path) -> None:
    copied(b"x" * 200_000, LogFile(tmp_path / "x.log", 150_000))
    assert b"".join(path.read_bytes() for path in in_order(tmp_path / "x.log")) == b"x" * 200_000


def test_a_disk_that_takes_nothing_stops_nobody(tmp_path: Path) -> None:
    copied(b"one\n" * 10_000, LogFile(tmp_path / "missing" / "x.log"))
    assert not (tmp_path / "missing").exists()

"""Files survive a full disk and a kill."""

from __future__ import annotations

import os
import signal
import stat
import subprocess
import sys
import time
from pathlib import Path

import pytest

from common.durable import append_line, read_lines, write_bytes, write_json
from common.errors import ConfigError
from tests.processes import wait_until

LIMITED = """
import resource, signal, sys
from pathlib import Path
from common.durable import write_bytes
from common.errors import ConfigError
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
try:
    write_bytes(Path(sys.argv[1]), b"n" * 5000)
except ConfigError as error:
    print(error)
    sys.exit(2)
"""

WRITING = """
import sys
from pathlib import Path
from common.durable import write_bytes
content = 0
while True:
    write_bytes(Path(sys.argv[1]), bytes([content % 256]) * 200_000)
    content += 1
"""


def test_the_new_content_replaces_the_old(tmp_path: Path) -> None:
    path = tmp_path / "file"
    write_bytes(path, b"old")
    write_bytes(path, b"new", mode=0o600)
    assert path.read_bytes() == b"new"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert [entry.name for entry in tmp_path.iterdir()] == ["file"]


def test_a_file_that_does_not_fit_leaves_the_old_one_and_nothing_beside_it(tmp_path: Path) -> None:
    path = tmp_path / "file"
    write_bytes(path, b"old")
    child = subprocess.run([sys.executable, "-c", LIMITED, path], capture_output=True, text=True, check=False)
    assert child.returncode == 2
    assert "could not write" in child.stdout
    assert "free some space" in child.stdout
    assert path.read_bytes() == b"old"
    assert [entry.name for entry in tmp_path.iterdir()] == ["file"]


def test_a_killed_writer_leaves_a_whole_file(tmp_path: Path) -> None:
    path = tmp_path / "file"
    child = subprocess.Popen([sys.executable, "-c", WRITING, path])
    try:
        assert wait_until(path.exists)
        time.sleep(0.2)
    finally:
        os.kill(child.pid, signal.SIGKILL)
        child.wait()
    content = path.read_bytes()
    assert len(content) == 200_000
    assert len(set(content)) == 1


def test_a_missing_folder_is_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"could not write .* choose a writable folder"):
        write_bytes(tmp_path / "absent" / "file", b"")


def test_not_a_number_never_reaches_a_file(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="Out of range float"):
        write_json(tmp_path / "file", {"accuracy": float("nan")})
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("torn", [b'{"a": 2', b'{"a": "\xc3', b"\0\0\0"])
def test_a_line_that_was_cut_short_spoils_no_other(tmp_path: Path, torn: bytes) -> None:
    path = tmp_path / "lines.jsonl"
    append_line(path, {"a": 1})
    path.write_bytes(path.read_bytes() + torn)
    append_line(path, {"a": 3})
    append_line(path, {"a": 4}, synced=False)
    assert read_lines(path) == [{"a": 1}, {"a": 3}, {"a": 4}]


def test_a_line_that_lost_its_end_alone_is_whole(tmp_path: Path) -> None:
    path = tmp_path / "lines.jsonl"
    path.write_text('{"a": 1}')
    append_line(path, {"a": 2})
    assert read_lines(path) == [{"a": 1}, {"a": 2}]


def test_a_file_that_is_not_there_has_no_lines(tmp_path: Path) -> None:
    assert read_lines(tmp_path / "absent") == []


def test_not_a_number_never_reaches_a_line(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="Out of range float"):
        append_line(tmp_path / "lines.jsonl", {"loss": float("nan")})
    assert list(tmp_path.iterdir()) == []

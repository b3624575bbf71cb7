"""What stands between a bundle that somebody hands out and its code: its digest, and its own place."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
import time
from pathlib import Path

import pytest
from flwr.supercore.constant import TaskType
from flwr.supercore.superexec.executor.types import ExecutionSpec

from common.ports import free_port
from common.task_end import tell_failed
from common.warm_executor import ForkingExecutor, approved_only, confined
from tests.processes import PATIENCE_S


def a_task() -> ExecutionSpec:
    """A task of a SuperNode that is not there."""
    return ExecutionSpec(
        task_type=TaskType.CLIENT_APP,
        runtime_api_address=f"127.0.0.1:{free_port()}",
        token="token",
        insecure=True,
        root_certificates_path=None,
        runtime_dependency_install=False,
        parent_pid=None,
        suppress_output=False,
        task_id=1,
    )


def test_only_approved_bytes_are_unpacked(tmp_path: Path) -> None:
    approved, unpacked = tmp_path / "approved.json", list[bytes]()
    approved.write_text(json.dumps({"apps": {hashlib.sha256(b"good").hexdigest(): "looked at"}}))
    install = approved_only(unpacked.append, approved)
    install(b"good")
    with pytest.raises(PermissionError, match="not approved"):
        install(b"bad")
    approved.write_text('{"apps": {}}')  # taken back
    with pytest.raises(PermissionError):
        install(b"good")
    approved.unlink()
    with pytest.raises(OSError, match="No such file"):
        install(b"good")
    assert unpacked == [b"good"]


@pytest.mark.parametrize("named", ["apps/../../elsewhere.abc", "../apps/other", "apps/deep/er", "/tmp/dropped"])
def test_an_app_is_found_in_its_own_place_only(named: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    home = tmp_path / "home"
    (home / "apps").mkdir(parents=True)
    monkeypatch.setenv("FLWR_HOME", str(home))
    assert confined(lambda: home / "apps" / "fedgraft")() == home / "apps" / "fedgraft"
    with pytest.raises(PermissionError, match="named as its bundle is"):
        confined(lambda: home / named)()


@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_an_app_that_ends_badly_is_told_of_at_once_and_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without Flower's folder an app cannot even be started: its process ends with status 1."""
    monkeypatch.delenv("FLWR_HOME", raising=False)
    told, task = list[ExecutionSpec](), a_task()
    executor = ForkingExecutor(tmp_path / "approved.json", told.append)
    executor.launch(task)
    deadline = time.monotonic() + PATIENCE_S
    while not told and time.monotonic() < deadline:
        executor.reconcile()
        time.sleep(0.01)
    executor.reconcile()
    assert told == [task]


def test_nobody_to_tell_is_no_error() -> None:
    assert not tell_failed(a_task())


UNPACKED = """
import os, sys
from pathlib import Path

folder = Path(sys.argv[1])
os.environ["FLWR_HOME"] = str(folder / "flwr")
from flwr.cli.build import build_fab_from_disk
from flwr.cli.install import install_from_fab

from common.bundle import assemble
from common.precompiled import Precompiled
from common.warm_executor import BUNDLED, unpacking

compiled = Precompiled.installed(BUNDLED)
compiled.load("common.wire")
loaded = sys.modules["common.wire"]
unpack = unpacking(install_from_fab, compiled)

app = assemble(folder / "app")
place = unpack(build_fab_from_disk(app), skip_prompt=True)
assert [path.name for path in place.iterdir()] == ["pyproject.toml"], "nothing of it is imported from there"
assert place.parent == folder / "flwr" / "apps" and sys.modules["common.wire"] is loaded

with (app / "common" / "errors.py").open("a") as file:
    file.write("OTHER = 1")
place = unpack(build_fab_from_disk(app), skip_prompt=True)
assert (place / "common" / "wire.py").is_file() and "common.wire" not in sys.modules
sys.path.insert(0, str(place))
import common.errors, common.wire
assert common.errors.OTHER == 1 and common.wire is not loaded
assert {Path(module.__file__).parents[1] for module in (common.errors, common.wire)} == {place}
"""


def test_a_bundle_of_the_installed_sources_is_not_unpacked_and_any_other_is(tmp_path: Path) -> None:
    done = subprocess.run([sys.executable, "-c", UNPACKED, tmp_path], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr

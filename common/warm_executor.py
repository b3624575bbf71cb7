"""Starts the apps of a federation in processes forked from one that has imported torch already.

Flower's SuperExec starts a new Python for each message, which imports torch and Flower for seconds; a fork takes
milliseconds. A bundle runs only if the operator has approved the SHA-256 of its bytes, whoever hands them out, and each
time those bytes are looked at. One that holds the installed sources, byte for byte, runs as they were imported before
the fork; of any other the code comes from what Flower unpacks, into a folder of its own, as if a new process had
started.

Usage: ``python -m common.warm_executor APPROVED APP`` and then Flower's arguments ``--runtime-api-address``,
``--superexec-auth-secret-file``, and ``--root-certificates`` or ``--insecure``. APPROVED is a JSON file whose ``apps``
has the digests as keys; APP is the module of the installed app that is imported before the fork.
"""

from __future__ import annotations

from common.supervisor import end_with_parent

if __name__ == "__main__":
    end_with_parent()  # before anything takes time

import argparse
import atexit
import gc
import hashlib
import importlib
import io
import json
import logging
import os
import shutil
import sys
import tempfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

from flwr.app import Error
from flwr.cli.config_utils import get_fab_metadata
from flwr.common.config import get_project_dir
from flwr.supercore.auth import add_superexec_auth_secret_args, load_superexec_auth_secret
from flwr.supercore.constant import TaskType
from flwr.supercore.runtime import RuntimeHttpClient
from flwr.supercore.superexec import run_superexec as superexec
from flwr.supercore.superexec.executor.types import ExecutionSpec, LaunchResult
from flwr.superlink.cli import flwr_serverapp
from flwr.supernode.cli import flwr_clientapp

from common.patience import patient
from common.precompiled import Precompiled
from common.short_waits import wait_less
from common.task_end import tell_failed

BUNDLED = ("common", "client", "server")
PROJECT = "pyproject.toml"
AHEAD = (  # what the app imports where it is needed: once here, and it is there in all forks
    "dp_accounting.pld.privacy_loss_distribution",
    "dp_accounting.rdp.rdp_privacy_accountant",
    "opacus.validators",
    "scipy.optimize",
    "scipy.special",
    "scipy.stats",
)
APPS: dict[TaskType, Callable[[], None]] = {
    TaskType.CLIENT_APP: flwr_clientapp,
    TaskType.SERVER_APP: flwr_serverapp,
}
RUNNERS = ("flwr.supernode.runtime.run_clientapp", "flwr.superlink.runtime.run_serverapp")
FINDERS = ("flwr.clientapp.utils", "flwr.superlink.runtime.run_serverapp")
SCRATCH = "apps-"
ASKED_FOR_EVER = ("AcquireTask", "SendTaskHeartbeat")
ASKED_AGAIN = ("GetNodes", "PushMessages", "PushObject", "PullObject", "ConfirmMessageReceived", "PushLogs")
TRIES = 10  # each waits up to half a minute, and ends a run where it fails

log = logging.getLogger("fedgraft.executor")


class ForkingExecutor:
    """Flower's ``Executor``: forks for each task instead of starting a program.

    Args:
        approved: the file with the digests of the bundles that may run.
        tell: is called for a task whose process ended badly.
        app: module of the installed app, to be imported now; without one, each fork imports its own.
    """

    def __init__(self, approved: Path, tell: Callable[[ExecutionSpec], object], app: str | None = None) -> None:
        self._approved = approved
        self._precompiled = Precompiled.installed(BUNDLED)
        if app is not None:
            self._precompiled.load(app)
        self._tell = tell
        self._children: dict[int, ExecutionSpec] = {}

    def get_eligible_capacity(
        self, supported_task_types: set[TaskType], *, insecure: bool = False, root_certificates_path: str | None = None
    ) -> tuple[set[TaskType], set[str]]:
        """Apps of servers and nodes, at any time."""
        return supported_task_types & set(APPS), set()

    def wait_for_capacity(
        self,
        task_type: TaskType | None = None,
        *,
        fab_hash: str | None = None,
        insecure: bool = False,
        root_certificates_path: str | None = None,
    ) -> None:
        """There is always room."""

    def launch(self, spec: ExecutionSpec) -> LaunchResult:
        """Fork, and run the app in the child."""
        parent = os.getpid()
        try:
            child = os.fork()
        except OSError as error:
            return LaunchResult.failed(str(error))
        if child == 0:
            _become(spec, self._approved, self._precompiled, parent)
        self._children[child] = spec
        return LaunchResult.accepted()

    def reconcile(self) -> None:
        """Bury children that have ended, and tell of those that did not end well."""
        for child, spec in list(self._children.items()):
            buried, status = os.waitpid(child, os.WNOHANG)
            if buried:
                del self._children[child]
                if status != 0:
                    self._tell(spec)

    def close(self) -> None:
        """Children end with their tasks, or with this process."""


def approved_only(install: Callable[..., Any], approved: Path) -> Callable[..., Any]:
    """Flower's installation of a bundle, for those bytes only whose SHA-256 is in the file at that moment."""

    def checked(content: bytes, *arguments: Any, **options: Any) -> Any:
        digest = hashlib.sha256(content).hexdigest()
        if digest not in json.loads(approved.read_bytes())["apps"]:
            log.warning("refused the app with SHA-256 %s: nobody approved it here", digest)
            raise PermissionError("this app is not approved")
        return install(content, *arguments, **options)

    return checked


def unpacking(install: Callable[..., Any], precompiled: Precompiled) -> Callable[..., Any]:
    """Flower's installation of a bundle; of one whose code was imported before the fork, it is what Flower reads."""

    def unpack(content: bytes, *arguments: Any, **options: Any) -> Any:
        if not precompiled.is_all_of(content):
            precompiled.use()
            return install(content, *arguments, **options)
        place = get_project_dir(*get_fab_metadata(content), hashlib.sha256(content).hexdigest())
        place.mkdir(parents=True)
        with zipfile.ZipFile(io.BytesIO(content)) as bundle:
            (place / PROJECT).write_bytes(bundle.read(PROJECT))
        return place

    return unpack


def confined(find: Callable[..., Path]) -> Callable[..., Path]:
    """Flower's way to the folder of an app, refusing one beside those that this process has unpacked."""

    def checked(*arguments: Any) -> Path:
        found = find(*arguments)
        if found.resolve().parent.parent != Path(os.environ["FLWR_HOME"]).resolve():
            raise PermissionError("an app must be named as its bundle is")
        return found

    return checked


def _become(spec: ExecutionSpec, approved: Path, precompiled: Precompiled, parent: int) -> None:
    """Run an app as its own program would, and end."""
    status, scratch = 1, None
    try:
        end_with_parent(parent)
        scratch = tempfile.mkdtemp(prefix=SCRATCH, dir=os.environ["FLWR_HOME"])
        os.environ["FLWR_HOME"] = scratch
        _confine(approved, precompiled)
        tls = ["--insecure"] if spec.insecure else ["--root-certificates", str(spec.root_certificates_path)]
        sys.argv = ["app", "--runtime-api-address", spec.runtime_api_address, "--token", spec.token, *tls]
        APPS[spec.task_type]()
        status = 0
    except SystemExit as error:
        status = error.code if isinstance(error.code, int) else 1
    except BaseException:
        log.exception("an app could not be started")
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        if scratch is not None:
            shutil.rmtree(scratch, ignore_errors=True)
        os._exit(status)


def _confine(approved: Path, precompiled: Precompiled) -> None:
    """Put the approval in, and keep the text of what goes wrong from leaving (flwr is pinned for it)."""
    for name in RUNNERS:
        module = importlib.import_module(name)
        _replace(module, "install_from_fab", approved_only(unpacking(module.install_from_fab, precompiled), approved))
    for name in FINDERS:
        module = importlib.import_module(name)
        _replace(module, "get_project_dir", confined(module.get_project_dir))
    _replace(importlib.import_module(RUNNERS[0]), "Error", lambda code, reason: Error(code, "the app failed"))


def _replace(module: ModuleType | type, name: str, value: object) -> None:
    if not hasattr(module, name):
        raise RuntimeError(f"expected flwr 1.39, whose {module.__name__} has {name}")
    setattr(module, name, value)


def main() -> None:
    """Ask a SuperLink or a SuperNode for tasks until its process ends."""
    parser = argparse.ArgumentParser()
    parser.add_argument("approved", type=Path)
    parser.add_argument("app")
    parser.add_argument("--runtime-api-address", required=True)
    parser.add_argument("--root-certificates")
    parser.add_argument("--insecure", action="store_true")
    parser.add_argument("--health-server-address")
    add_superexec_auth_secret_args(parser)
    options = parser.parse_args()
    home = Path(os.environ["FLWR_HOME"])
    home.mkdir(parents=True, exist_ok=True)
    for left in home.glob(f"{SCRATCH}*"):  # by apps that were killed
        shutil.rmtree(left, ignore_errors=True)
    wait_less()
    for name in AHEAD:
        importlib.import_module(name)
    executor = ForkingExecutor(options.approved, tell_failed, options.app)
    gc.collect()
    gc.freeze()  # or each fork would copy the pages of all that is here when it collects
    atexit.register(gc.unfreeze)  # or libraries would complain of what is left at the end
    _replace(superexec, "get_executor", lambda *_, **__: executor)
    for name in ASKED_FOR_EVER:
        _replace(RuntimeHttpClient, name, patient(getattr(RuntimeHttpClient, name)))
    for name in ASKED_AGAIN:
        _replace(RuntimeHttpClient, name, patient(getattr(RuntimeHttpClient, name), tries=TRIES))
    superexec.run_superexec(
        runtime_api_address=options.runtime_api_address,
        insecure=options.insecure,
        root_certificates_path=options.root_certificates,
        health_server_address=options.health_server_address,
        superexec_auth_secret=load_superexec_auth_secret(options.superexec_auth_secret_file),
        runtime_dependency_install=False,
    )


if __name__ == "__main__":
    main()

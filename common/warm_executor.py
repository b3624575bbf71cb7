"""Starts the apps of a federation in processes forked from one that has imported torch already.

Flower's SuperExec starts a new Python for each message, which imports torch and Flower for seconds; a fork takes
milliseconds. The app's own code still comes from the bundle that Flower unpacks, as if a new process had started.

Usage: ``python -m common.warm_executor`` with Flower's arguments ``--runtime-api-address``, ``--parent-pid``, and
``--root-certificates`` or ``--insecure``.
"""

from __future__ import annotations

import argparse
import logging
import os
import sys
from collections.abc import Callable

import opacus.validators  # noqa: F401 (imported here, once, for all)
import torch  # noqa: F401
from flwr.supercore.constant import TaskType
from flwr.supercore.superexec import run_superexec as superexec
from flwr.supercore.superexec.executor.types import ExecutionSpec, LaunchResult
from flwr.superlink.cli import flwr_serverapp
from flwr.supernode.cli import flwr_clientapp

OURS = ("common", "client", "server", "simulations")
APPS: dict[TaskType, Callable[[], None]] = {
    TaskType.CLIENT_APP: flwr_clientapp,
    TaskType.SERVER_APP: flwr_serverapp,
}

log = logging.getLogger("fedgraft.executor")


class ForkingExecutor:
    """Flower's ``Executor``: forks for each task instead of starting a program."""

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
        try:
            child = os.fork()
        except OSError as error:
            return LaunchResult.failed(str(error))
        if child == 0:
            _become(spec)
        return LaunchResult.accepted()

    def reconcile(self) -> None:
        """Bury children that have ended."""
        try:
            while os.waitpid(-1, os.WNOHANG)[0]:
                pass
        except ChildProcessError:
            pass

    def close(self) -> None:
        """Children end with their tasks, or with this process."""


def _become(spec: ExecutionSpec) -> None:
    """Run an app as its own program would, and end."""
    status = 1
    try:
        for name in [name for name in sys.modules if name.partition(".")[0] in OURS]:
            del sys.modules[name]
        tls = ["--insecure"] if spec.insecure else ["--root-certificates", str(spec.root_certificates_path)]
        parent = ["--parent-pid", str(os.getppid())]
        sys.argv = ["app", "--runtime-api-address", spec.runtime_api_address, "--token", spec.token, *tls, *parent]
        APPS[spec.task_type]()
        status = 0
    except SystemExit as error:
        status = error.code if isinstance(error.code, int) else 1
    except BaseException:
        log.exception("an app could not be started")
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


def main() -> None:
    """Ask a SuperLink or a SuperNode for tasks until its process ends."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--runtime-api-address", required=True)
    parser.add_argument("--root-certificates")
    parser.add_argument("--insecure", action="store_true")
    parser.add_argument("--parent-pid", type=int)
    options = parser.parse_args()
    executor = ForkingExecutor()
    setattr(superexec, "get_executor", lambda *_, **__: executor)  # noqa: B010 (Flower's factory knows only its own)
    superexec.run_superexec(
        runtime_api_address=options.runtime_api_address,
        insecure=options.insecure,
        root_certificates_path=options.root_certificates,
        parent_pid=options.parent_pid,
        runtime_dependency_install=False,
    )


if __name__ == "__main__":
    main()

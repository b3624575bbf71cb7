"""The Ray engine: the same two apps, started by ``flwr run``, every node's messages handled by Ray's workers.

The run has a SuperLink, ports and a Flower home of its own, so that it meets no other one on the machine. It runs in a
folder of its own, so that every process imports the app from the bundle. When `run_on_ray` ends, in whatever way,
`simulations.keeper` ends those processes.
"""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import tomli_w

from common import errors
from common.bundle import assemble
from common.config import RunConfig, to_flat
from common.errors import ConfigError, FederationError
from common.paths import RUN_FOLDER
from common.supervisor import without_proxy
from server.run_folder import FAILURE
from simulations.keeper import ENDED

LOG = "flower.log"
SUPERLINK_LOG = "superlink.log"
POLL_S = 0.2
QUERY_TIMEOUT_S = 300.0  # a busy machine needs a minute for the imports alone
STOP_TIMEOUT_S = 30.0
NODES_A_WORKER = 4  # at least; one starts in seconds, and a message takes milliseconds
LONGEST_TEMPORARY = 20  # characters; Ray puts sockets far below it, and their paths end at 107


def run_on_ray(
    config: RunConfig,
    run_folder: Path,
    nodes: int,
    *,
    app: Callable[[Path], object] = assemble,
) -> None:
    """Run a federation through ``flwr run`` on Ray, and wait for its end.

    Args:
        config: of the run; ``data.source`` absolute or built in.
        run_folder: exists; the apps find it in ``FEDGRAFT_RUN_FOLDER``. Flower's logs go to
            ``flower.log`` and ``superlink.log`` in it.
        nodes: how many to simulate.
        app: writes the Flower app into a folder that it makes; ours by default.

    Guarantees:
        No process that was started is alive afterwards (on Linux), also after an interrupt, and shortly after this
        process is killed.

    Raises:
        FederationError: of the kind and with the words that the ServerApp left in ``failure.json``; else, what Flower
            says about the failure.
    """
    run_folder = run_folder.resolve()
    (run_folder / FAILURE).unlink(missing_ok=True)
    with _launched(config, run_folder, nodes, app) as flower:
        while flower.runs() and not (run_folder / FAILURE).exists():
            time.sleep(POLL_S)
        status = None if (run_folder / FAILURE).exists() else flower.status()
    raise_failure(status, run_folder)


@dataclass(frozen=True)
class _Flower:
    """A ``flwr run`` under its keeper."""

    keeper: subprocess.Popen[bytes]
    environment: Mapping[str, str]
    scratch: Path

    def runs(self) -> bool:
        """Tell whether ``flwr run``, which follows the run to its end, is still there."""
        return self.keeper.poll() is None and not (self.scratch / ENDED).exists()

    def status(self) -> Mapping[str, str] | None:
        """Return how the run ended, in the SuperLink's words; None where none began.

        Raises:
            FederationError: the SuperLink does not answer.
        """
        while run := self._first_run():
            if run["status"].startswith("finished"):
                return run
            time.sleep(POLL_S)
        return None

    def _first_run(self) -> dict[str, str] | None:
        """Ask the SuperLink for its only run."""
        try:
            answer = subprocess.run(
                [_program("flwr", self.environment), "ls", "own", "--format", "json"],
                env=dict(self.environment),
                cwd=self.scratch,
                capture_output=True,
                text=True,
                timeout=QUERY_TIMEOUT_S,
                check=False,
            )
        except subprocess.TimeoutExpired as error:
            raise FederationError(
                f"the run on Ray ended, and its SuperLink did not say how within {QUERY_TIMEOUT_S:.0f} s; run it again "
                "with --resume"
            ) from error
        runs = json.loads(answer.stdout).get("runs") if answer.returncode == 0 else None
        return dict(runs[0]) if runs else None


@contextmanager
def _launched(config: RunConfig, run_folder: Path, nodes: int, app: Callable[[Path], object]) -> Iterator[_Flower]:
    """Start ``flwr run``; at the end of the block, end all that it started."""
    scratch = _scratch_folder()
    app(scratch / "app")
    (port,) = free_ports(1)
    environment = _prepare(scratch, config, run_folder, port)
    federation = f"num-supernodes={nodes} client-resources-num-cpus=1 init-args-num-cpus={workers(nodes)}"
    arguments = [str(scratch / "app"), "--run-config", str(scratch / "run.toml"), "--federation-config", federation]
    run = [_program("flwr", environment), "run", *arguments, "--stream"]
    log = str(run_folder / SUPERLINK_LOG)
    command = [sys.executable, "-m", "simulations.flower_run", log, *_superlink(environment, port), "--", *run]
    keeper = subprocess.Popen(
        [sys.executable, "-m", "simulations.keeper", str(scratch), str(run_folder / LOG), *command],
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        env=environment,
        cwd=scratch / "work",
        start_new_session=True,  # Ctrl-C is for us; the keeper acts when we close its standard input
    )
    try:
        yield _Flower(keeper, environment, scratch)
    finally:
        with suppress(subprocess.TimeoutExpired):  # then it goes on alone
            keeper.communicate(timeout=STOP_TIMEOUT_S)
        shutil.rmtree(scratch, ignore_errors=True)


def workers(nodes: int) -> int:
    """Processes that play the nodes: as many as cores, but no more than are worth their start (780 MB each)."""
    return max(1, min(os.cpu_count() or 1, nodes // NODES_A_WORKER))


def _scratch_folder() -> Path:
    """Make a folder whose path is short enough for Ray's sockets."""
    usual = tempfile.gettempdir()
    return Path(tempfile.mkdtemp(prefix="fedgraft-", dir=usual if len(usual) <= LONGEST_TEMPORARY else "/tmp"))


def _prepare(scratch: Path, config: RunConfig, run_folder: Path, port: int) -> dict[str, str]:
    """Write the app's configuration and Flower's into ``scratch``; return the environment to start it in."""
    (scratch / "work").mkdir()
    (scratch / "run.toml").write_text(tomli_w.dumps(to_flat(config)), encoding="utf-8")
    home = scratch / "flwr"
    home.mkdir()
    own = {"address": f"127.0.0.1:{port}", "insecure": True}
    connections = {"default": "own", "own": own}
    (home / "config.toml").write_text(tomli_w.dumps({"superlink": connections}), encoding="utf-8")
    programs = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)])
    return {
        **without_proxy(os.environ),
        "PATH": programs,
        RUN_FOLDER: str(run_folder),
        "FLWR_HOME": str(home),
        "FLWR_TELEMETRY_ENABLED": "0",
        "FLWR_DISABLE_UPDATE_CHECK": "1",
        "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1",
        "FLWR_SUPEREXEC_TASK_POLL_INTERVAL": "0.1",
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",  # else a warning each time
        "RAY_TMPDIR": str(scratch),
    }


def _superlink(environment: Mapping[str, str], port: int) -> list[str]:
    """Return the command of a SuperLink for simulations, as ``flwr run`` starts it."""
    command = [_program("flower-superlink", environment), "--insecure", "--simulation", "--isolation", "subprocess"]
    return [*command, "--host", "127.0.0.1", "--port", str(port)]


def free_ports(count: int) -> list[int]:
    """Find ports that nobody listens on."""
    with ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for item in sockets:
            item.bind(("127.0.0.1", 0))
        return [item.getsockname()[1] for item in sockets]


def _program(name: str, environment: Mapping[str, str]) -> str:
    """Find one of Flower's commands beside this Python, or elsewhere on the path."""
    found = shutil.which(name, path=environment["PATH"])
    if found is None:
        raise ConfigError(f"expected the command {name} beside Python, but there is none; reinstall fedgraft")
    return found


def raise_failure(status: Mapping[str, str] | None, run_folder: Path) -> None:
    """Raise what the ServerApp left, or what Flower says, unless the run was completed.

    Args:
        status: ``status`` and ``status-details`` as the SuperLink reports them; None where no run began.
        run_folder: holds Flower's log, and ``failure.json`` if the ServerApp wrote one.

    Raises:
        FederationError: of the kind that ``failure.json`` names, or itself.
    """
    failure = run_folder / FAILURE
    if failure.exists():
        said = json.loads(failure.read_text())
        kinds = {name: kind for name, kind in vars(errors).items() if isinstance(kind, type)}
        raise kinds.get(said["kind"], FederationError)(said["message"])
    if status is None:
        raise FederationError(
            f"flwr run could not start the run: {_last_words(run_folder / LOG)}; see {run_folder / LOG}"
        )
    if status["status"] != "finished:completed":
        raise FederationError(f"the run on Ray failed: {status['status-details']}; see {run_folder / LOG}")


def _last_words(log: Path) -> str:
    """Return the last line of a log that holds words, without the box that Flower draws around errors."""
    lines = [line.strip(" │╭╰─╮╯") for line in log.read_text(errors="replace").splitlines()]
    return next((line for line in reversed(lines) if line), "it said nothing")

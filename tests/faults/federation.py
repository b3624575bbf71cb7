"""A federation of processes made from the copied sources, each node behind a relay of its own."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil

from client.node_config import NODE_TOML
from common.durable import read_lines
from common.supervisor import supervisor_of
from tests.deployment.hospitals import BACKBONE, Hospitals, write_digits
from tests.faults.relay import Relay
from tests.faults.steps import ARMED, arm, armed, copy_sources, held, release
from tests.processes import wait_until

CAP = 10_000.0
LOOK_S = 1.0


@dataclass
class Playing:
    """A run that a command submitted and follows."""

    folder: Path
    typist: subprocess.Popen[str]

    def ended(self) -> tuple[int, str]:
        """Wait for the command, and return its exit status and words."""
        assert self.typist.stdout is not None
        status, said = json.loads(self.typist.stdout.readline())
        return int(status), str(said)

    def finished(self) -> None:
        """Wait for the command, which must succeed."""
        status, said = self.ended()
        assert status == 0, said

    def rounds(self) -> int:
        """Rounds that are done."""
        return len(read_lines(self.folder / "rounds.jsonl"))

    def wait_for_round(self, number: int) -> None:
        """Wait until that many rounds are done."""
        assert wait_until(lambda: self.rounds() >= number), f"{self.folder.name}: {self.rounds()} rounds"


@dataclass
class Federation(Hospitals):
    """Hospitals that run the copied sources; use it as a context manager.

    Attributes:
        homes: of the nodes that were let in, by name.
        relays: of each node.
    """

    homes: dict[str, Path] = field(default_factory=dict)
    relays: dict[str, Relay] = field(default_factory=dict)
    _stack: ExitStack = field(default_factory=ExitStack)

    def __enter__(self) -> Federation:
        """Start the coordinator."""
        sources = copy_sources(self.folder / "sources")
        self.surroundings = {"PYTHONPATH": str(sources)}
        self._typist = self._new_typist()
        try:
            self.coordinate()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        """Stop everything."""
        self._typist.kill()
        self._typist.communicate()
        self.end()
        self._stack.close()

    def recover(self) -> None:
        """After a fault that failed: nothing armed, nothing cut, nothing half typed, everything runs.

        A node that does not come back, since it was not let in again, takes no part in what follows.
        """
        self._typist.kill()
        self._typist.communicate()
        self._typist = self._new_typist()
        for kind, home in (("server", self.server), *(("node", home) for home in self.homes.values())):
            shutil.rmtree(home / ARMED, ignore_errors=True)
            self.set_clock(home, 0)
            if supervisor_of(home) is None:
                self.start(kind, home)
        for relay in self.relays.values():
            relay.mode = "pass"
        if not self.online(list(self.homes)):
            self.homes = {name: home for name, home in self.homes.items() if name in self.connected()}
        assert self.homes, "no node came back"

    def run(self, *arguments: str, home: Path | None = None, status: int = 0) -> str:
        """Type a command of the copied sources."""
        ended, said = self._begin(*arguments, *([] if home is None else ["--home", str(home)])).ended()
        assert ended == status, f"{arguments}: {ended}\n{said}"
        return said

    def type_here(self, *arguments: str, home: Path, status: int = 0) -> str:
        """Type a command in this process, of the sources proper, while the typist follows a run; it submits nothing."""
        return Hospitals.run(self, *arguments, home=home, status=status)

    def join(self, names: Sequence[str], *, records: int = 100, start: bool = True) -> None:
        """Let nodes in, each with records of its own, and start them."""
        for name in names:
            first = len(self.homes) * records
            home = self.admit(
                name, write_digits(self.folder / "data" / name, range(first, first + records)), epsilon=CAP
            )
            self.homes[name] = home
            self.relays[name] = self._stack.enter_context(Relay(self._port()))
            self.edit(name, "# max_clipping_norm", "max_clipping_norm")
            self.edit(name, f"127.0.0.1:{self._port()}", f"127.0.0.1:{self.relays[name].port}")
            if start:
                self.start("node", home)

    def edit(self, name: str, old: str, new: str) -> None:
        """Change a node's ``node.toml``."""
        path = self.homes[name] / NODE_TOML
        path.write_text(path.read_text().replace(old, new))

    def play(
        self,
        name: str,
        *,
        rounds: int = 4,
        timeout_s: float = 20.0,
        nodes: Sequence[str] = (),
        backbone: str = BACKBONE,
    ) -> Playing:
        """Submit a run and follow it; nothing else can be typed until it has ended."""
        config = self.configuration(
            federation={"nodes": len(nodes) or 3, "rounds": rounds, "round_timeout_s": timeout_s},
            model={"backbone": backbone},
        )
        reached = ("--nodes", ",".join(nodes or self.homes))
        self._begin("server", "run", str(config), "--name", name, *reached, "--home", str(self.server))
        return Playing(self.server / "runs" / name, self._typist)

    def resume(self, name: str) -> Playing:
        """Continue a run and follow it."""
        self._begin("server", "resume", name, "--home", str(self.server))
        return Playing(self.server / "runs" / name, self._typist)

    def online(self, names: Sequence[str]) -> bool:
        """Wait until these nodes are connected, without asking all the time."""
        deadline = time.monotonic() + 300
        while not set(names) <= self.connected():
            if time.monotonic() > deadline:
                return False
            time.sleep(LOOK_S)
        return True

    def connected(self) -> set[str]:
        """Names of the nodes that are connected, asked from this process: the typist may follow a run."""
        try:
            listed = json.loads(self.type_here("server", "nodes", "--json", home=self.server))
        except AssertionError:  # the SuperLink is away
            return set()
        return {one["name"] for one in listed if one["status"] == "online"}

    def process(self, home: Path, words: str) -> psutil.Process:
        """The one process of a node or the coordinator whose command line holds some words."""
        found = self.processes(home, words)
        assert len(found) == 1, found
        return found[0]

    def kill_all(self, home: Path) -> None:
        """Kill a node or the coordinator at once, supervisor first, as a power cut would."""
        above = supervisor_of(home)
        assert above is not None
        for process in (psutil.Process(above), *psutil.Process(above).children(recursive=True)):
            process.kill()
        assert wait_until(lambda: supervisor_of(home) is None)

    def hold(self, name: str, round_: int, step: str = "before-reserve") -> None:
        """Have the app of a node wait at a step of a round of the next run."""
        arm(self.homes[name], step, "hold", round_=round_)

    def reached(self, name: str) -> None:
        """Wait until an app is held."""
        assert wait_until(lambda: held(self.homes[name])), f"{name} was never held"

    def go_on(self, name: str) -> None:
        """Let an app that is held go on."""
        release(self.homes[name])

    def disarmed(self, name: str, step: str) -> None:
        """Wait until a step has been reached."""
        assert wait_until(lambda: step not in armed(self.homes[name])), f"{name} never reached {step}"

    def disarm(self, name: str) -> None:
        """Forget what a node was armed with."""
        shutil.rmtree(self.homes[name] / ARMED, ignore_errors=True)

    def set_clock(self, home: Path, ahead_s: int) -> None:
        """Set the clock of a node or the coordinator so many seconds ahead of the true one, while it runs."""
        new = home / ".clock"
        new.write_text(f"{ahead_s}")
        new.rename(home / "clock")

    def environment(self) -> dict[str, str]:
        """Of what is started."""
        return {**os.environ, **self.surroundings}

    def open_rounds(self, name: str, run_id: str) -> list[int]:
        """The rounds that `fedgraft node status` lists as paid and never released."""
        listed: Mapping[str, Any] = json.loads(self.type_here("node", "status", "--json", home=self.homes[name]))
        return [round_ for one, round_ in listed["open_reservations"] if one == run_id]

    def _port(self) -> int:
        import tomllib

        return int(tomllib.loads((self.server / "server.toml").read_text())["port"])

    def _new_typist(self) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [sys.executable, str(Path(__file__).with_name("typist.py"))],
            env=self.environment(),
            cwd=self.folder,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def _begin(self, *arguments: str) -> Playing:
        assert self._typist.stdin is not None
        self._typist.stdin.write(json.dumps(arguments) + "\n")
        self._typist.stdin.flush()
        return Playing(self.server, self._typist)

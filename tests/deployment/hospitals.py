"""A coordinator and hospitals as operators would run them: their own commands, real processes, TLS on the loopback."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import tomli_w
from PIL import Image

import fedgraft
from client.node_config import NODE_TOML
from common.data import load_source
from common.ports import free_port
from common.supervisor import supervisor_of
from tests.processes import wait_until

BACKBONE = "pixels/8"
LOOK_S = 0.5
PRIVACY = {
    "epsilon": 4.0,
    "delta": 1e-5,
    "clipping_norm": 1.0,
    "sampling_rate": 0.5,
    "unit": "record",
    "trust": "local",
}


@dataclass
class Hospitals:
    """A coordinator's folder and those of nodes, below one folder."""

    folder: Path
    started: list[subprocess.Popen[bytes]] = field(default_factory=list)
    surroundings: dict[str, str] = field(default_factory=dict)  # of what is started, beside the usual environment

    @property
    def server(self) -> Path:
        """The coordinator's folder."""
        return self.folder / "server"

    def run(self, *arguments: str, home: Path | None = None, status: int = 0) -> str:
        """Type a command, and return what it says on both streams; in this process, which has torch already."""
        said = io.StringIO()
        with redirect_stdout(said), redirect_stderr(said):
            ended = fedgraft.main([*arguments, *([] if home is None else ["--home", str(home)])])
        assert ended == status, f"{arguments}: {ended}\n{said.getvalue()}"
        return said.getvalue()

    def coordinate(self) -> None:
        """Make the coordinator and start it."""
        ports = ("--port", str(free_port()), "--control-port", str(free_port()))
        self.run("server", "init", "--name", "127.0.0.1", "--bind", "127.0.0.1", *ports, home=self.server)
        self.start("server", self.server)
        assert wait_until(self._answers, look_s=LOOK_S)

    def admit(self, name: str, data: Path, *, epsilon: float = 8.0, approve: bool = True) -> Path:
        """Make a node, let it in, and return its folder; it is not started."""
        home, join = self.folder / name, self.server / "federation.join"
        options = ("--join", str(join), "--name", name, "--data", str(data), "--epsilon", str(epsilon))
        self.run("node", "init", *options, "--classes", "0,1,2,3,4,5,6,7,8,9", "--size", "100", home=home)
        if approve:
            self.run("node", "approve", "app", home=home)
        self.run("node", "approve", "backbone", BACKBONE, home=home)
        self.run("server", "add-node", name, "--key", str(home / "node.key.pub"), home=self.server)
        return home

    def join_sums(self, home: Path, *, min_colluders: int = 1) -> None:
        """Have a node's operator choose secagg trust beside local trust; before the node is started."""
        path = home / NODE_TOML
        chosen = f'trusts = ["local", "secagg"]\nmin_colluders = {min_colluders}\n'
        path.write_text(path.read_text().replace('# trusts = ["secagg"]', f"{chosen}#", 1))

    def exchange_keys(self, names: Sequence[str]) -> Path:
        """Give every hospital the keys of all, and have their operators approve them; returns the file."""
        path = self.folder / "peers.pub"
        self.run("server", "peers", "--out", str(path), home=self.server)
        for name in names:
            self.run("node", "approve", "peers", str(path), "--yes", home=self.folder / name)
        return path

    def start(self, kind: str, home: Path, *options: str, surroundings: Mapping[str, str] | None = None) -> None:
        """Start a node or the coordinator, with this in its environment, beside the usual."""
        command = [sys.executable, "-m", "fedgraft", kind, "start", "--home", str(home), *options]
        with (home.parent / f"{home.name}.out").open("wb") as log:
            self.started.append(
                subprocess.Popen(
                    command, stdout=log, stderr=log, env={**_environment(), **self.surroundings, **(surroundings or {})}
                )
            )
        assert wait_until(lambda: supervisor_of(home) is not None)

    def online(self, names: Sequence[str]) -> bool:
        """Wait until these nodes are connected."""
        return wait_until(lambda: set(names) <= self.connected(), look_s=LOOK_S)

    def connected(self) -> set[str]:
        """Names of the nodes that are connected."""
        listed = json.loads(self.run("server", "nodes", "--json", home=self.server))
        return {one["name"] for one in listed if one["status"] == "online"}

    def configuration(self, **sections: dict[str, Any]) -> Path:
        """Write a run's configuration."""
        tree: dict[str, dict[str, Any]] = {
            "federation": {"nodes": 3, "rounds": 5},
            "data": {"source": "digits"},
            "model": {"backbone": BACKBONE},
            "privacy": PRIVACY,
        }
        path = self.folder / "run.toml"
        path.write_text(tomli_w.dumps({name: {**part, **sections.get(name, {})} for name, part in tree.items()}))
        return path

    def lines(self, run: str) -> list[dict[str, Any]]:
        """The round log of a run."""
        path = self.server / "runs" / run / "rounds.jsonl"
        return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []

    def raise_cap(self, home: Path, epsilon: float) -> None:
        """Let a node spend more: in its configuration, and by its operator's sign-off."""
        path = home / NODE_TOML
        path.write_text(path.read_text().replace("max_epsilon =", f"max_epsilon = {epsilon} #", 1))
        self.run("node", "ledger", "raise-cap", str(epsilon), "--yes", home=home)

    def status(self, home: Path) -> dict[str, Any]:
        """What a node says of itself."""
        found: dict[str, Any] = json.loads(self.run("node", "status", "--json", home=home))
        return found

    def processes(self, home: Path, words: str) -> list[psutil.Process]:
        """Processes of a node or the coordinator whose command line holds some words."""
        above = supervisor_of(home)
        below = [] if above is None else psutil.Process(above).children(recursive=True)
        alive = [process for process in below if process.status() != psutil.STATUS_ZOMBIE]
        return [process for process in alive if words in " ".join(process.cmdline())]

    def server_apps(self) -> list[psutil.Process]:
        """The server apps that are being played."""
        return self.apps(self.server)

    def apps(self, home: Path) -> list[psutil.Process]:
        """The apps that are at work: what was forked from the warm process."""
        warm = self.processes(home, "warm_executor")
        known = {process.pid for process in warm}
        return [process for process in warm if process.ppid() in known]

    def end(self) -> None:
        """Stop everything that was started."""
        for process in reversed(self.started):
            process.terminate()
        for process in self.started:
            process.wait(60)

    def _answers(self) -> bool:
        with redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):
            return fedgraft.main(["server", "nodes", "--home", str(self.server)]) == 0


def write_digits(folder: Path, rows: Sequence[int]) -> Path:
    """Write some of scikit-learn's digits as images in folders of classes."""
    digits = load_source("digits")
    for row in rows:
        place = folder / digits.classes[digits.labels[row]]
        place.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.asarray(digits.inputs[row])).save(place / f"{row}.png")
    return folder


def _environment() -> dict[str, str]:
    return {**os.environ, "OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE"}

"""A coordinator's folder: its settings, certificates, registered nodes and runs."""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import tomli_w
from pydantic import Field, ValidationError

from common import durable, paths
from common.errors import ConfigError
from common.ports import joined
from common.strict import Strict
from common.supervisor import without_proxy
from common.toml_text import parse_toml
from server.certificates import Certificates, alternative_name, certificates_in, make_certificates, next_ca_in

SERVER_TOML, JOIN_FILE, NODES = "server.toml", "federation.join", "nodes.json"
APPROVED, USUAL = "approved.json", "fedgraft-server"
RUNS, RUN_IDS = "runs", "run-ids"
PORT, CONTROL_PORT = 9092, 9093
JOIN_FORMAT = 1
ID_TIMEOUT_S = 60.0

_Port = Annotated[int, Field(ge=1, le=65535)]


class ServerConfig(Strict):
    """``server.toml``.

    Attributes:
        names: host names and addresses that nodes reach the coordinator by; the first goes into the join file.
        bind: address that the nodes' port listens on.
        port: for nodes; the only one that a firewall has to let in.
        control_port: for the coordinator's own commands; on the loopback only.
    """

    names: list[str] = Field(min_length=1)
    bind: str = "0.0.0.0"
    port: _Port = PORT
    control_port: _Port = CONTROL_PORT


class Registered(Strict):
    """A node that the coordinator let in.

    Attributes:
        node_id: Flower's.
        fingerprint: of its public key.
        key: the public key, OpenSSH; empty where an older release let the node in, which did not keep it.
    """

    node_id: int
    fingerprint: str
    key: str = ""


@dataclass(frozen=True)
class Place:
    """A coordinator's folder, opened.

    Attributes:
        folder: absolute.
        config: its settings.
    """

    folder: Path
    config: ServerConfig

    @property
    def certificates(self) -> Certificates:
        """Where they are."""
        return certificates_in(self.folder / "certificates")

    @property
    def flower_home(self) -> Path:
        """Flower's own files."""
        return self.folder / "flwr"

    @property
    def runs(self) -> Path:
        """The run folders."""
        return self.folder / RUNS

    def environment(self) -> dict[str, str]:
        """For Flower's programs and ours: no telemetry, no installing, our folders, this Python's programs."""
        programs = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)])
        return {
            **without_proxy(os.environ),
            "PATH": programs,
            paths.SERVER_FOLDER: str(self.folder),
            "FLWR_HOME": str(self.flower_home),
            "FLWR_TELEMETRY_ENABLED": "0",
            "FLWR_DISABLE_UPDATE_CHECK": "1",
            "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1",
            "FLWR_SUPEREXEC_TASK_POLL_INTERVAL": "0.5",  # a run begins once, and each look costs the SuperLink 10 ms
        }

    def approve(self, app_sha256: str) -> None:
        """Let server apps of this bundle run, and no others: the one that this installation makes."""
        durable.write_json(self.folder / APPROVED, {"apps": {app_sha256: "as installed"}}, mode=0o600)

    def nodes(self) -> dict[str, Registered]:
        """Registered nodes by name.

        Raises:
            ConfigError: the file that lists them is damaged.
        """
        path = self.folder / NODES
        try:
            listed = json.loads(path.read_bytes()) if path.exists() else {}
            return {str(name): Registered.model_validate(entry) for name, entry in sorted(listed.items())}
        except (OSError, ValueError, AttributeError) as error:
            raise ConfigError(f"expected the registered nodes in {path}, got a damaged file; restore it") from error

    def keep_nodes(self, nodes: dict[str, Registered]) -> None:
        """Write who is registered, durably."""
        listed = {name: entry.model_dump() for name, entry in sorted(nodes.items())}
        durable.write_json(self.folder / NODES, listed, mode=0o600)

    def note_run(self, run_id: int, name: str) -> None:
        """Remember which of our runs Flower's run id stands for; its server app waits for that."""
        place = self.folder / RUN_IDS
        place.mkdir(mode=0o700, exist_ok=True)
        durable.write_bytes(place / str(run_id), name.encode(), mode=0o600)


def make_place(folder: Path, config: ServerConfig, app_sha256: str) -> Place:
    """Make a coordinator's folder: certificates, settings, and the file that every hospital gets.

    Args:
        folder: is made.
        config: settings.
        app_sha256: of the app bundle that nodes are to approve; told in the join file for comparison.

    Raises:
        ConfigError: there is a coordinator in it already, a name is none, or it cannot be made; nothing is, then.
    """
    if (folder / SERVER_TOML).exists():
        raise ConfigError(f"{folder} holds a coordinator already; choose another --home, or renew with --renew")
    for name in config.names:  # before anything is made
        alternative_name(name)
    try:
        for name in (".", "certificates", RUNS, "flwr"):
            (folder / name).mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"the folder {folder} cannot be made ({error.strerror}); choose another --home") from error
    place = Place(folder.resolve(), config)
    renew(place, app_sha256)
    durable.write_bytes(folder / SERVER_TOML, tomli_w.dumps(config.model_dump()).encode(), mode=0o600)
    return place


def renew(place: Place, app_sha256: str) -> None:
    """Make a new server certificate under the same CA, Flower's settings and the join file."""
    make_certificates(place.certificates.ca.parent, place.config.names)
    connection = {
        "address": f"127.0.0.1:{place.config.control_port}",
        "root-certificates": str(place.certificates.ca),
    }
    superlink = {"default": "coordinator", "coordinator": connection}
    durable.write_bytes(place.flower_home / "config.toml", tomli_w.dumps({"superlink": superlink}).encode())
    write_join(place, app_sha256)


def write_join(place: Place, app_sha256: str) -> None:
    """Write the file that every hospital gets; while the next CA is prepared, it holds both."""
    files = [place.certificates.ca, next_ca_in(place.certificates.ca.parent).ca]
    join = {
        "format": JOIN_FORMAT,
        "address": joined(place.config.names[0], place.config.port),
        "certificate": "".join(path.read_text() for path in files if path.exists()),
        "app_sha256": app_sha256,
    }
    durable.write_json(place.folder / JOIN_FILE, join)


def open_place(folder: Path) -> Place:
    """Open a coordinator's folder.

    Raises:
        ConfigError: there is none, or its settings are unusable.
    """
    path = folder / SERVER_TOML
    try:
        return Place(folder.resolve(), ServerConfig.model_validate(parse_toml(path.read_text(), path)))
    except FileNotFoundError:
        raise ConfigError(f"expected a coordinator in {folder}, found none; run `fedgraft server init` first") from None
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"expected TOML in {path}: {error}; correct it") from None
    except ValidationError as error:
        wrong: dict[str, Any] = dict(error.errors()[0])
        key = ".".join(str(part) for part in wrong["loc"])
        raise ConfigError(f"{path}: {key}: {wrong['msg'].lower()}; correct it") from None


def folder_of_run(home: Path, run_id: int) -> Path:
    """The folder of a run that Flower knows by its id, waiting for the command that submitted it to say so.

    Raises:
        ConfigError: nobody said so in time.
    """
    path = home / RUN_IDS / str(run_id)
    deadline = time.monotonic() + ID_TIMEOUT_S
    while not path.exists():
        if time.monotonic() > deadline:
            raise ConfigError(f"expected `fedgraft server run` to name the run {run_id}, it did not; submit it anew")
        time.sleep(0.05)
    return home / RUNS / path.read_text()


def names_from(texts: Sequence[str]) -> list[str]:
    """Split lists with commas."""
    return [name.strip() for text in texts for name in text.split(",") if name.strip()]

"""A node's folder: its key, the coordinator's certificate, ``node.toml``, and what Flower needs to run there."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, ValidationError

from client.approvals import APPROVALS
from client.isolation import SOCKET, confined, relay
from client.keys import KEY, make_key
from client.node_config import NODE_TOML, NodeConfig, parse_node_config
from common import durable, paths
from common.errors import ConfigError, PrivacyError
from common.runtime_secret import secret_options
from common.strict import Strict
from common.supervisor import Program, without_proxy

CERTIFICATE, PAUSED = "ca.crt", "paused"

TEMPLATE = """# What this hospital decides. No server can change it; restart the node after a change.

[node]
name = {name}                # as the coordinator registered it
# isolation = "process"      # the app, which reads the records, has no network and changes no file but its own

[server]
address = {address}          # the only machine that this node talks to
certificate = "ca.crt"       # the coordinator's, from the join file

[data]
id = {id}                    # name of the data set in the ledger; data that overlap share one, for ever
# ledgers = "/var/lib/fedgraft/ledgers"   # where the ledger is; share it if you join another federation with these data
source = {source}            # a file or a folder; never leaves this machine
declared_size = {size}       # number of records (of patients, where they are the unit); a round figure is fine
classes = {classes}          # all class names of the federation, in its order
# cache_key = "/run/keys/fedgraft.key"   # encrypts the features kept here; made by `fedgraft node cache-key`
# keys = {{ labels = "diagnosis" }}   # the file's own names, where they differ

[privacy]
max_epsilon = {epsilon}      # cap on all that is ever released from the data set
delta = {delta}              # at most 1 / declared_size; fixed for ever
unit = {unit}                # what is protected as a whole: one "record", or one "patient" with all of its records
# min_noise_multiplier = 0.5 # plans with less noise are refused
# max_clipping_norm = 10.0   # plans with a larger clipping norm are refused
# partial = true             # join a plan that is too long, until the last round that fits
# approved_plans_only = true # join only plans that `fedgraft node approve plan` approved
# trusts = ["secagg"]        # trust models that may be joined; "secagg": this hospital's numbers are seen in sums only
# min_nodes = 3              # secure sums over fewer nodes are refused
# min_colluders = 1          # and so are those that hold against the coordinator with fewer hospitals than so many
# answer_after_s = 60.0      # answers leave at a multiple of so many seconds: how long a round took is not seen
# acknowledge_record_unit = true   # for the unit "record", where the data name patients
"""


class Join(Strict):
    """The file that a coordinator gives to every hospital."""

    format: Literal[1]
    address: str
    certificate: Annotated[str, Field(pattern="BEGIN CERTIFICATE")]
    app_sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


def read_join(path: Path) -> Join:
    """Read a join file.

    Raises:
        ConfigError: it is missing, or none.
    """
    try:
        return Join.model_validate_json(path.read_bytes())
    except OSError as error:
        raise ConfigError(
            f"expected a join file at {path}, got: {error.strerror}; ask the coordinator for it"
        ) from error
    except ValidationError as error:
        raise ConfigError(f"expected a join file at {path}, got something else; ask the coordinator for it") from error


def make_node(folder: Path, join: Join, name: str, values: dict[str, object]) -> None:
    """Make a node's folder: key, certificate and a commented ``node.toml``; the configuration comes last.

    Args:
        folder: is made.
        join: of the coordinator.
        name: of the node.
        values: of the template's other fields: ``source``, ``size``, ``classes``, ``epsilon``, ``delta``,
            and ``unit`` where it is not the record.

    Raises:
        ConfigError: there is a node in it already, or it cannot be made.
    """
    if (folder / NODE_TOML).exists():
        raise ConfigError(f"{folder} holds a node already; choose another --home")
    fields = {"name": name, "id": f"{name}-data", "address": join.address, "unit": "record", **values}
    text = TEMPLATE.format(**{key: json.dumps(value, ensure_ascii=False) for key, value in fields.items()})
    parse_node_config(text.replace("= NaN", "= nan").replace("= Infinity", "= inf"), folder / NODE_TOML)
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        folder.chmod(0o700)
    except OSError as error:
        raise ConfigError(f"the folder {folder} cannot be made ({error.strerror}); choose another --home") from error
    make_key(folder, name)
    durable.write_bytes(folder / CERTIFICATE, join.certificate.encode())
    durable.write_bytes(folder / NODE_TOML, text.encode(), mode=0o600)


def environment(folder: Path) -> dict[str, str]:
    """For Flower's programs and ours: no telemetry, no installing, our folders, this Python's programs."""
    programs = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)])
    return {
        **without_proxy(os.environ),
        "PATH": programs,
        "PYTHONSAFEPATH": "1",  # nothing is imported from the folder where programs run, and apps write
        paths.NODE_FOLDER: str(folder),
        paths.CACHE: str(folder / "cache"),
        "FLWR_HOME": str(folder / "flwr"),
        "FLWR_TELEMETRY_ENABLED": "0",
        "FLWR_DISABLE_UPDATE_CHECK": "1",
        "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1",
        "FLWR_SUPEREXEC_TASK_POLL_INTERVAL": "0.25",  # each look costs the node some milliseconds, all day long
        "HF_HUB_OFFLINE": "1",
    }


def programs(folder: Path, config: NodeConfig, runtime_port: int, health_port: int = 0) -> list[Program]:
    """What a node keeps running: the SuperNode, the warm process that apps are forked from, and who signs for them.

    Args:
        folder: of the node, absolute.
        config: its ``node.toml``.
        runtime_port: on the loopback, by which the two talk.
        health_port: on the loopback, where the SuperNode answers gRPC health checks; 0 for none.
    """
    files = ["--root-certificates", str(folder / config.server.certificate)]
    files += ["--auth-supernode-private-key", str(folder / KEY)]
    link = ["--superlink", config.server.address, "--isolation", "process", "--host", "127.0.0.1"]
    node = [sys.executable, "-m", "client.supernode", str(folder), *files, *link, "--port", str(runtime_port)]
    node += secret_options(folder)
    if health_port:
        node += ["--health-server-address", f"127.0.0.1:{health_port}"]
    around, address = environment(folder), f"127.0.0.1:{runtime_port}"
    supernode, apps = Program("supernode", node, around), executor(folder, address)
    signer = [sys.executable, "-m", "client.signer", str(folder)]
    own = [supernode, *([Program("signer", signer, around)] if "secagg" in config.privacy.trusts else [])]
    if config.node.isolation == "none":
        return [*own, Program("apps", apps, around)]
    carried = [*own, Program("relay", relay(SOCKET, address), around)]
    if config.node.isolation == "container":  # there, `fedgraft node apps` is at work
        return carried
    return [*carried, Program("apps", confined(relay(address, SOCKET, apps), folder, config), around)]


def executor(folder: Path, runtime_address: str) -> list[str]:
    """The command of the warm process that apps are forked from, given how it reaches the SuperNode."""
    start = [sys.executable, "-m", "common.warm_executor", str(folder / APPROVALS), "client.app"]
    return [*start, "--runtime-api-address", runtime_address, "--insecure", *secret_options(folder)]


def is_paused(folder: Path) -> bool:
    """Whether the operator has paused the node: it answers every message with a refusal."""
    return (folder / PAUSED).exists()


def check_awake(folder: Path) -> None:
    """Make sure that the operator has not paused the node.

    Raises:
        PrivacyError: they have.
    """
    if is_paused(folder):
        raise PrivacyError("the operator has paused this node; run `fedgraft node resume` to take part again")

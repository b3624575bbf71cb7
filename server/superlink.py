"""Flower's SuperLink as a program that ends with the supervisor that started it, and bounds what nodes may send.

Usage: ``python -m server.superlink`` and then the arguments of ``flower-superlink``.
"""

from __future__ import annotations

from common.supervisor import Program, end_with_parent

if __name__ == "__main__":
    end_with_parent()  # before anything takes time

import importlib
import sys

from flwr.superlink.cli import flower_superlink

from common.ports import joined
from common.runtime_secret import secret_options
from server.database import wait_longer
from server.place import APPROVED, Place
from server.reply_limits import MOST_OBJECT_BYTES, Limits, put_in
from server.run_remains import delete_gently


def programs(place: Place, health_port: int = 0) -> list[Program]:
    """What a coordinator keeps running: the SuperLink, and the warm process that server apps are forked from.

    Args:
        place: the coordinator's.
        health_port: on the loopback, where the SuperLink answers gRPC health checks; 0 for none.
    """
    files, config = place.certificates, place.config
    control, environment = f"127.0.0.1:{config.control_port}", place.environment()
    tls = [
        "--ssl-ca-certfile",
        str(files.ca),
        "--ssl-certfile",
        str(files.server),
        "--ssl-keyfile",
        str(files.server_key),
    ]
    link = [*tls, "--enable-supernode-auth", "--host", "127.0.0.1", "--port", str(config.control_port)]
    link += ["--fleet-api-address", joined(config.bind, config.port), "--database", str(place.folder / "state.db")]
    link += ["--disable-runtime-dependency-installation", "--isolation", "process"]
    if health_port:
        link += ["--health-server-address", f"127.0.0.1:{health_port}"]
    link += secret_options(place.folder)
    apps = ["--runtime-api-address", control, "--root-certificates", str(files.ca)]
    apps += secret_options(place.folder)
    return [
        Program("superlink", [sys.executable, "-m", "server.superlink", *link], environment),
        Program(
            "apps", [sys.executable, "-m", "common.warm_executor", str(place.folder / APPROVED), *apps], environment
        ),
    ]


if __name__ == "__main__":
    module = importlib.import_module("flwr.superlink.cli.flower_superlink")  # the package hides it behind its function
    module.GRPC_MAX_MESSAGE_LENGTH = MOST_OBJECT_BYTES  # type: ignore[attr-defined]
    put_in(Limits())
    wait_longer()
    delete_gently()
    flower_superlink()

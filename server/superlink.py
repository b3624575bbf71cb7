"""Flower's SuperLink as a program that ends with the supervisor that started it.

Usage: ``python -m server.superlink`` and then the arguments of ``flower-superlink``.
"""

from __future__ import annotations

from common.supervisor import Program, end_with_parent

if __name__ == "__main__":
    end_with_parent()  # before anything takes time

import sys

from flwr.superlink.cli import flower_superlink

from common.ports import joined
from common.runtime_secret import secret_options
from server.place import APPROVED, Place


def programs(place: Place) -> list[Program]:
    """What a coordinator keeps running: the SuperLink, and the warm process that server apps are forked from."""
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
    flower_superlink()

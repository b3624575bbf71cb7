"""What a coordinator keeps running, as commands; Flower is imported in those processes, not by who starts them."""

from __future__ import annotations

import sys

from common.ports import joined
from common.runtime_secret import secret_options
from common.supervisor import Program
from server.coordinator_folder import APPROVED, Place


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
            "apps",
            [sys.executable, "-m", "common.warm_executor", str(place.folder / APPROVED), "server.app", *apps],
            environment,
        ),
    ]

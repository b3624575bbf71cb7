"""Ports on this machine."""

from __future__ import annotations

import socket

from common.errors import ConfigError


def free_port() -> int:
    """Find a port of the loopback that nobody listens on."""
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])


def check_free(address: str, port: int) -> None:
    """Make sure that nobody listens on a port.

    Raises:
        ConfigError: somebody does, or this machine does not have that address.
    """
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    try:
        with socket.socket(family) as one:
            one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            one.bind((address, port))
    except OSError as error:
        raise ConfigError(
            f"expected to listen on {address}, port {port}, cannot ({error.strerror}); stop what is there, or choose "
            "another port"
        ) from error

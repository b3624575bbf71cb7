"""Ports on this machine."""

from __future__ import annotations

import socket

from common.errors import ConfigError


def free_port() -> int:
    """Find a port of the loopback that nobody listens on."""
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])


class LoopbackPort:
    """A port of the loopback for programs of one machine, another one when it was taken meanwhile."""

    def __init__(self) -> None:
        """Choose one."""
        self._port = free_port()

    def usable(self) -> int:
        """The same as before, unless somebody listens on it now; for when our own program does not."""
        try:
            check_free("127.0.0.1", self._port)
        except ConfigError:
            self._port = free_port()
        return self._port


def joined(host: str, port: int) -> str:
    """Write a host and a port as one address.

    >>> joined("fed.example.org", 9092), joined("::1", 9092), joined("[::1]", 9092)
    ('fed.example.org:9092', '[::1]:9092', '[::1]:9092')
    """
    return f"[{bare(host)}]:{port}" if ":" in host else f"{host}:{port}"


def split(address: str) -> tuple[str, int]:
    """Read what ``joined`` wrote.

    >>> split("fed.example.org:9092"), split("[::1]:9092")
    (('fed.example.org', 9092), ('::1', 9092))
    """
    host, _, port = address.rpartition(":")
    return bare(host), int(port)


def bare(host: str) -> str:
    """A host without the brackets that an IPv6 address has in front of a port."""
    return host[1:-1] if host.startswith("[") and host.endswith("]") else host


def check_free(address: str, port: int, otherwise: str = "choose another port") -> None:
    """Make sure that nobody listens on a port.

    Args:
        address: of this machine.
        port: on it.
        otherwise: what to do where whoever listens there cannot be stopped, for the error.

    Raises:
        ConfigError: somebody does, or this machine does not have that address.
    """
    address = bare(address)
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    try:
        with socket.socket(family) as one:
            one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            one.bind((address, port))
    except OSError as error:
        raise ConfigError(
            f"expected to listen on {address}, port {port}, cannot ({error.strerror}); stop what is there, or "
            f"{otherwise}"
        ) from error

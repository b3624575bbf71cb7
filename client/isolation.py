"""Takes the network, and all writing but its own, from the app: a confined process made by bubblewrap, or a container.

The app reads the records; the code of it comes from the coordinator, and was approved by digest. What confines it here
is not that code's good will: namespaces of the kernel's, with the loopback alone in them and every file read-only but
the app's own folders. A socket file, carried by a relay at either end, is its one way to the SuperNode.
"""

from __future__ import annotations

import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from pydantic import ValidationError

from client.node_config import NodeConfig, NodeSection
from common.errors import ConfigError
from common.supervisor import SUPERVISOR

SOCKET = "supernode.sock"  # in the node's folder, where programs run; a whole path may be too long for a socket
KEYS = "keys"  # folder of them in the node's
OWN = ("anchor", "backbones", "cache", "flwr", "index", "secagg")  # folders that apps write to, beside that of ledgers
TIMEOUT_S = 20.0
LOOPBACK = "lo"
NAMESPACES = ["--unshare-user", "--unshare-net", "--unshare-pid", "--unshare-ipc", "--unshare-uts"]
NO_RIGHTS = ["--cap-drop", "ALL", "--new-session", "--die-with-parent"]
EMPTIED = ("/tmp", "/run", "/var/tmp")  # where other programs of this user keep the sockets that they obey


def with_isolation(config: NodeConfig, isolation: str | None) -> NodeConfig:
    """The configuration with another isolation, None for its own.

    Raises:
        ConfigError: there is no such isolation.
    """
    if isolation is None:
        return config
    try:
        section = NodeSection.model_validate({**config.node.model_dump(), "isolation": isolation})
    except ValidationError:
        raise ConfigError(f"expected --isolation none, process or container, got {isolation!r}; choose one") from None
    return config.model_copy(update={"node": section})


def relay(here: str, there: str, program: Sequence[str] = ()) -> list[str]:
    """The command of a relay, beside a program or alone."""
    return [sys.executable, "-m", "client.relay", here, there, *(["--", *program] if program else [])]


def confined(command: Sequence[str], folder: Path, config: NodeConfig) -> list[str]:
    """A command in namespaces of its own.

    Args:
        command: sees this machine's files, read-only, and a network with nothing in it but itself.
        folder: of the node; in it, and in the folder of ledgers, it may write what apps write; its keys are hidden.
        config: names ledgers and records.
    """
    ledgers = folder / Path(config.data.ledgers).expanduser()
    written = [*(folder / name for name in OWN), ledgers]
    arguments = ["--ro-bind", "/", "/", "--dev", "/dev", "--proc", "/proc"]
    arguments += [word for place in EMPTIED if Path(place).is_dir() for word in ("--tmpfs", str(Path(place).resolve()))]
    for place in _needed(folder, config):
        arguments += ["--ro-bind", str(place), str(place)]
    for place in written:
        place.mkdir(mode=0o700, parents=True, exist_ok=True)
        arguments += ["--bind", str(place.resolve()), str(place.resolve())]
    if (folder / KEYS).is_dir():
        arguments += ["--tmpfs", str((folder / KEYS).resolve()), "--remount-ro", str((folder / KEYS).resolve())]
    around = ["--setenv", SUPERVISOR, "1", "--chdir", str(folder)]  # bubblewrap is process 1 in there
    return [_bubblewrap(), *NAMESPACES, *NO_RIGHTS, *arguments, *around, "--", *command]


def check_possible(folder: Path, config: NodeConfig) -> None:
    """Make sure that what isolates the app works here; nothing falls back to less.

    Raises:
        ConfigError: it does not; the sentence says what to do.
    """
    if config.node.isolation != "process":
        return
    try:
        done = subprocess.run(
            confined([sys.executable, "-c", ""], folder, config), capture_output=True, text=True, timeout=TIMEOUT_S
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise _impossible(type(error).__name__) from error
    if done.returncode:
        raise _impossible((done.stderr.strip().splitlines() or ["no reason given"])[-1])


def check_alone() -> None:
    """Make sure that this process has no network but its own loopback.

    Raises:
        ConfigError: it has.
    """
    found = sorted(name for _, name in socket.if_nameindex() if name != LOOPBACK)
    if found:
        raise ConfigError(
            f"expected no network but the loopback, got {', '.join(found)}; start this container with no network "
            "(network_mode: none)"
        )


def _needed(folder: Path, config: NodeConfig) -> Iterator[Path]:
    """Places that may lie below an emptied one: this Python and what it imports, the node, the records."""
    own = [folder / Path(name).expanduser() for name in (config.data.source, config.data.cache_key) if name]
    named = [Path(sys.prefix), Path(sys.base_prefix), *(Path(entry) for entry in sys.path if entry), folder, *own]
    emptied = [Path(place).resolve() for place in EMPTIED]
    for place in dict.fromkeys(path.resolve() for path in named if path.exists()):
        if any(place.is_relative_to(above) for above in emptied):
            yield place


def _bubblewrap() -> str:
    found = shutil.which("bwrap")
    if found is None:
        raise ConfigError(
            'node.isolation = "process" needs the program bwrap; install this system\'s package bubblewrap, or use '
            "containers"
        )
    return found


def _impossible(reason: str) -> ConfigError:
    return ConfigError(
        f'node.isolation = "process" does not work here ({reason}); let unprivileged users make namespaces (sysctl '
        "user.max_user_namespaces, and AppArmor's rules for bwrap), or use containers"
    )

"""Signs with the node's key for the app, which cannot read it: its keys and its survivors of a secure sum, and no more.

Usage: ``python -m client.signer FOLDER``. The node's key also tells the coordinator who this node is, and signs exports
of the ledger. An app, whose code is the coordinator's, asks through a socket file in the node's folder, for the node's
user only; bytes of any other form than those two messages, or in another node's name, are not signed.
"""

from __future__ import annotations

from common.supervisor import end_with_parent

if __name__ == "__main__":
    end_with_parent()  # before anything takes time

import asyncio
import logging
import os
import socket
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from client.keys import KEY
from client.node_config import load_node_config
from client.own_socket import listen_at
from common.errors import ConfigError, FederationError, PrivacyError
from common.privacy.keys import load_private, sign
from common.secagg.signed import MOST_SIGNED_BYTES, check_signable

SOCKET = "signer.sock"  # in the node's folder
REFUSED = b"refused"  # no signature: those are DER, and begin with another byte
MOST_SIGNATURE_BYTES = 256
PATIENCE_S, POLL_S = 30.0, 0.1
ASKING_S = 10.0
log = logging.getLogger("fedgraft.signer")


def sign_for_app(folder: Path, data: bytes) -> bytes:
    """Sign what an app may have signed; the key and the name are those of this moment.

    Raises:
        PrivacyError: these bytes are nothing that an app may have signed.
        ConfigError: the key or ``node.toml`` cannot be read.
    """
    check_signable(data, load_node_config(folder).node.name)
    return sign(load_private(folder / KEY), data)


async def serve(folder: Path) -> asyncio.Server:
    """Listen on the socket file of a node's folder, which is the working folder; one request a connection."""

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(OSError, TimeoutError):
            data = await asyncio.wait_for(_to_the_end(reader), ASKING_S)
            try:
                said = sign_for_app(folder, data)
            except FederationError as error:
                if data:  # the doctor looks whether this program is there
                    log.warning("signed nothing: %s", error)
                said = REFUSED
            writer.write(said)
            await writer.drain()
        writer.close()

    return await listen_at(SOCKET, answer)


def ask_signer(folder: Path, data: bytes, patience_s: float = PATIENCE_S) -> bytes:
    """Have the signer of a node's folder sign bytes; while it is being started again, wait for it.

    Raises:
        PrivacyError: it refuses.
        ConfigError: it does not answer.
    """
    deadline = time.monotonic() + patience_s
    while True:
        said = _asked(folder, data)
        if said == REFUSED:
            raise PrivacyError("the node's key signs nothing but this node's part in a secure sum; logs/signer.log")
        if said:
            return said
        if time.monotonic() > deadline:
            raise ConfigError(
                'expected the program that signs with the node\'s key, it does not answer; set trusts = ["secagg"] in '
                "node.toml, start the node anew, and see logs/signer.log"
            )
        time.sleep(POLL_S)


def answers(folder: Path) -> bool:
    """Whether the signer of a node's folder is there, for the doctor: it is asked to sign what it refuses."""
    return _asked(folder, b"") == REFUSED


def _asked(folder: Path, data: bytes) -> bytes:
    """The answer; nothing where there is none."""
    with suppress(OSError), _connected(folder) as one:
        one.sendall(data)
        one.shutdown(socket.SHUT_WR)
        parts = b""
        while (part := one.recv(MOST_SIGNATURE_BYTES)) and len(parts) <= MOST_SIGNATURE_BYTES:
            parts += part
        return parts
    return b""


@contextmanager
def _connected(folder: Path) -> Iterator[socket.socket]:
    """Reached by its folder's descriptor: a whole path may be too long for a socket."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as one:
            one.settimeout(ASKING_S)
            one.connect(f"/proc/self/fd/{descriptor}/{SOCKET}")
            yield one
    finally:
        os.close(descriptor)


async def _to_the_end(reader: asyncio.StreamReader) -> bytes:
    data = b""
    while (part := await reader.read(MOST_SIGNED_BYTES)) and len(data) <= MOST_SIGNED_BYTES:
        data += part
    return data


async def _run(folder: Path) -> None:
    async with await serve(folder) as server:
        await server.serve_forever()


def main() -> None:
    """Sign until this process is ended."""
    logging.basicConfig(format="%(asctime)s %(levelname)s %(message)s")
    folder = Path(sys.argv[1])
    os.chdir(folder)
    asyncio.run(_run(folder))


if __name__ == "__main__":
    main()

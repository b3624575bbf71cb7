"""Processes that play some of the nodes of a simulation, beside the process that plays the server and the others.

They are forked, so that they share data, features and code with it until they write, and each keeps the ledgers of its
own nodes open. What passes between them is what Flower would send: messages, serialised. A node's result depends on its
name and the round alone, so that it does not matter who plays it.
"""

from __future__ import annotations

import multiprocessing
import os
import sys
import warnings
from collections.abc import Callable, Sequence
from contextlib import suppress
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess

import torch

from common.errors import FederationError
from simulations.forked import belong_to, not_interrupted

WORTH_A_WORKER = 400  # local steps of nodes; forking a worker takes about as long as fifty, and costs memory
NODES_A_WORKER = 4  # at least
END_TIMEOUT_S = 10.0

Play = Callable[[Sequence[bytes]], list[bytes]]


def workers_for(nodes: int, steps: int) -> int:
    """How many processes are worth it beside this one.

    Args:
        nodes: asked in a round.
        steps: that all of them together are to take in the whole run.
    """
    if sys.platform != "linux" or steps < WORTH_A_WORKER or torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
        return 0  # elsewhere, and beside a GPU's driver, forking is not safe
    return max(0, min(len(os.sched_getaffinity(0)), nodes // NODES_A_WORKER) - 1)


class Worker:
    """One forked process. Call ``begin``, do something else, then ``finish``."""

    def __init__(self, play: Play, end: Callable[[], None], others: Sequence[Worker]) -> None:
        """Fork.

        Args:
            play: turns serialised messages into serialised replies; runs over there.
            end: runs over there when there is nothing more to play.
            others: forked before, whose pipes must not stay open over there.
        """
        context = multiprocessing.get_context("fork")
        self._here, there = context.Pipe()
        inherited = [self._here, *(other._here for other in others)]
        self._process: BaseProcess = context.Process(
            target=_serve, args=(play, end, there, inherited, os.getpid()), daemon=True
        )
        # newer Pythons warn of threads; those that there are only follow a log
        with not_interrupted(), warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)
            self._process.start()
        there.close()

    def begin(self, messages: Sequence[bytes]) -> None:
        """Hand messages over.

        Raises:
            FederationError: the process has ended.
        """
        try:
            self._here.send(list(messages))
        except OSError as error:
            raise self._ended() from error

    def finish(self) -> list[bytes]:
        """Wait for the replies to the messages that were handed over, in their order.

        Raises:
            FederationError: the process has ended.
        """
        try:
            replies: list[bytes] = self._here.recv()
        except (EOFError, OSError) as error:
            raise self._ended() from error
        return replies

    def close(self) -> None:
        """End the process."""
        self._here.close()
        self._process.join(END_TIMEOUT_S)
        if self._process.is_alive():
            self._process.kill()
            self._process.join()

    def _ended(self) -> FederationError:
        self._process.join(END_TIMEOUT_S)
        return FederationError(
            f"a process that plays nodes of this simulation ended early (exit status {self._process.exitcode}); make "
            "sure that there is memory enough, then continue with --resume"
        )


def _serve(
    play: Play, end: Callable[[], None], there: Connection, inherited: Sequence[Connection], parent: int
) -> None:
    """Play what comes until the other end closes."""
    belong_to(parent)
    for connection in inherited:
        connection.close()
    with suppress(EOFError, OSError):
        while True:
            there.send(play(there.recv()))
    end()

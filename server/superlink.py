"""Flower's SuperLink as a program that ends with the supervisor that started it, and bounds what nodes may send.

Usage: ``python -m server.superlink`` and then the arguments of ``flower-superlink``.
"""

from __future__ import annotations

from common.supervisor import end_with_parent

if __name__ == "__main__":
    end_with_parent()  # before anything takes time

import importlib

from flwr.superlink.cli import flower_superlink

from server.database import wait_longer
from server.reply_limits import MOST_OBJECT_BYTES, Limits, put_in
from server.run_remains import delete_gently

if __name__ == "__main__":
    module = importlib.import_module("flwr.superlink.cli.flower_superlink")  # the package hides it behind its function
    module.GRPC_MAX_MESSAGE_LENGTH = MOST_OBJECT_BYTES  # type: ignore[attr-defined]
    put_in(Limits())
    wait_longer()
    delete_gently()
    flower_superlink()

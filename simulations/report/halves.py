"""What a report is made of, drawn by two processes at the same time: every second part by one forked for it."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from contextlib import suppress

from common.supervisor import end_with_parent
from simulations.report.markup import Markup

Part = Callable[[], Markup]
APART = b"\x00"  # in no text of a page
CODING = ("utf-8", "surrogatepass")


def one_by_one(parts: Sequence[Part]) -> list[Markup]:
    """Draw all parts here."""
    return [part() for part in parts]


def in_halves(parts: Sequence[Part]) -> list[Markup]:
    """Draw the parts here and in a forked process, for one that has a core to spare and no threads.

    What the other one does not give, because something went wrong there, is drawn here.
    """
    read, write = os.pipe()
    try:
        here, other = os.getpid(), os.fork()
    except OSError:  # no room for a process more
        os.close(read)
        os.close(write)
        return one_by_one(parts)
    if not other:
        try:
            os.close(read)
            end_with_parent(here)
            _write(write, one_by_one(parts[1::2]))
        finally:
            os._exit(0)
    os.close(write)
    try:
        drawn = one_by_one(parts[::2])
        with open(read, "rb", closefd=False) as pipe:
            said = pipe.read().split(APART)
    finally:
        os.close(read)  # where drawing failed here, the other one ends for want of a reader
        with suppress(ChildProcessError):
            os.waitpid(other, 0)
    whole = len(said) == len(parts[1::2]) + 1
    others = [Markup(part.decode(*CODING)) for part in said[:-1]] if whole else one_by_one(parts[1::2])
    found = [Markup("")] * len(parts)
    found[::2], found[1::2] = drawn, others
    return found


def _write(pipe: int, drawn: Sequence[Markup]) -> None:
    with open(pipe, "wb") as file:
        for part in drawn:
            file.write(part.encode(*CODING) + APART)

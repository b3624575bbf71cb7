"""The faults that are played, in their order."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from tests.faults import killed, machines, network, slow, strangers
from tests.faults.federation import Federation
from tests.faults.outcome import Rows

NODES = ("n1", "n2", "n3", "n4", "n5")


@dataclass(frozen=True)
class Fault:
    """One fault, or one kind of it at several steps.

    Attributes:
        name: of its run, too.
        play: does it, checks what must hold, and returns the table's rows.
    """

    name: str
    play: Callable[[Federation], Rows]


FULL = (
    Fault("undisturbed", killed.undisturbed),
    Fault("client-app", killed.client_app),
    Fault("super-node", killed.super_node),
    Fault("server-app", killed.server_app),
    Fault("super-link", killed.super_link),
    Fault("two-of-five", killed.two_of_five),
    Fault("cut-30", network.cut(30)),
    Fault("cut-300", network.cut(300)),
    Fault("forgotten", network.forgotten),
    Fault("lost", network.lost),
    Fault("twice", network.twice),
    Fault("delayed", network.delayed),
    Fault("slow-backbone", slow.slow_backbone),
    Fault("full-node", machines.full_disk_of_node),
    Fault("full-server", machines.full_disk_of_server),
    Fault("stalled", machines.stalled),
    Fault("clock-node", machines.clock_of_node),
    Fault("clock-server", machines.clock_of_server),
    Fault("weaker", strangers.weaker),
    Fault("hostile", strangers.hostile),
    Fault("late", strangers.late),
    Fault("stranger", strangers.stranger),
)

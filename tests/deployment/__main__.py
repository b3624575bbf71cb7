"""``python -m tests.deployment``: seconds, processor seconds and bytes of a round of three real nodes, here and now.

``--trust secagg`` measures secure sums beside it, in turns with runs of local trust, as the machine's pace changes.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil

from common.supervisor import supervisor_of
from tests.deployment.hospitals import Hospitals, write_digits

NAMES, ROUNDS, TURNS = ("north", "south", "west"), 12, 3
SUMS = {"trust": "secagg", "colluders": 1, "dropouts": 0, "largest_node": 1000}


@dataclass
class Cost:
    """What rounds cost.

    Attributes:
        lines: of the round log.
        processor_s: of all nodes and rounds together, waiting for messages included.
    """

    lines: list[dict[str, Any]] = field(default_factory=list)
    processor_s: float = 0.0


def main() -> None:
    """Print the seconds of each round, and what a node has to do and to send in one."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--trust", choices=("local", "secagg"), default="local")
    parser.add_argument("--turns", type=int, default=TURNS, help="of runs under either trust")
    chosen = parser.parse_args()
    both, costs = chosen.trust == "secagg", {"local": Cost(), "secagg": Cost()}
    with tempfile.TemporaryDirectory() as folder:
        made = Hospitals(Path(folder))
        try:
            made.coordinate()
            for number, name in enumerate(NAMES):
                data = write_digits(made.folder / "data" / name, range(number * 100, number * 100 + 100))
                home = made.admit(name, data, epsilon=1000.0)
                made.join_sums(home)
                made.start("node", home)
            made.exchange_keys(NAMES)
            if not made.online(NAMES):
                raise SystemExit("the nodes did not connect")
            for turn in range(chosen.turns):
                for one, privacy in (("local", {}), ("secagg", SUMS))[: 1 + both]:
                    _play(made, f"{one}-{turn}", privacy, costs[one])
        finally:
            made.end()
    for one, cost in costs.items():
        if cost.lines:
            _tell(one, cost)


def _play(made: Hospitals, name: str, privacy: dict[str, Any], cost: Cost) -> None:
    """Add what a run costs, without its first round, in which nodes read their records."""
    config = made.configuration(federation={"nodes": len(NAMES), "rounds": ROUNDS // TURNS + 1}, privacy=privacy)
    before = _processor_s(made)
    made.run("server", "run", str(config), "--name", name, home=made.server)
    cost.processor_s += _processor_s(made) - before
    cost.lines += made.lines(name)[1:]


def _processor_s(made: Hospitals) -> float:
    """What the programs of all nodes have used so far, and what was forked from them."""
    total = 0.0
    for name in NAMES:
        above = supervisor_of(made.folder / name)
        for process in [] if above is None else psutil.Process(above).children(recursive=True):
            used = process.cpu_times()
            total += used.user + used.system + used.children_user + used.children_system
    return total


def _tell(trust: str, cost: Cost) -> None:
    seconds, rounds = [line["seconds"] for line in cost.lines], len(cost.lines)
    print(f"{trust} trust; seconds of each round:", ", ".join(f"{each:.1f}" for each in seconds))
    print(f"median {statistics.median(seconds):.1f} s; from {min(seconds):.1f} to {max(seconds):.1f} s")
    begun = rounds * (1 + TURNS / ROUNDS)  # the first round of each run counts here
    print(f"processor seconds a node and round: {cost.processor_s / len(NAMES) / begun:.2f}")
    down, up = (cost.lines[-1][way] // len(NAMES) for way in ("bytes_down", "bytes_up"))
    print(f"bytes a node and round: {down} in, {up} out")


if __name__ == "__main__":
    main()

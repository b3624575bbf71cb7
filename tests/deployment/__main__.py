"""``python -m tests.deployment``: how long a round of three real nodes takes, on this machine, now."""

from __future__ import annotations

import statistics
import tempfile
from pathlib import Path

from tests.deployment.hospitals import Hospitals, write_digits

NAMES, ROUNDS = ("north", "south", "west"), 12


def main() -> None:
    """Print the seconds of each round, and the bytes that a node receives and sends in one."""
    with tempfile.TemporaryDirectory() as folder:
        made = Hospitals(Path(folder))
        try:
            made.coordinate()
            for number, name in enumerate(NAMES):
                data = write_digits(made.folder / "data" / name, range(number * 100, number * 100 + 100))
                made.start("node", made.admit(name, data))
            if not made.online(NAMES):
                raise SystemExit("the nodes did not connect")
            config = made.configuration(federation={"nodes": len(NAMES), "rounds": ROUNDS})
            made.run("server", "run", str(config), "--name", "timed", home=made.server)
            lines = made.lines("timed")
        finally:
            made.end()
    seconds = [line["seconds"] for line in lines]
    print("seconds of each round:", ", ".join(f"{each:.1f}" for each in seconds))
    print(f"median {statistics.median(seconds):.1f} s; from {min(seconds):.1f} to {max(seconds):.1f} s")
    print(
        f"bytes a node and round: {lines[-1]['bytes_down'] // len(NAMES)} in, {lines[-1]['bytes_up'] // len(NAMES)} out"
    )


if __name__ == "__main__":
    main()

"""``python -m simulations.benchmarks [NAME…]``: accuracy, rounds, defaults; all of them without a name."""

from __future__ import annotations

import logging
import sys

from common.errors import ConfigError
from simulations.benchmarks import accuracy, defaults, rounds

BENCHMARKS = {"accuracy": accuracy.main, "rounds": rounds.main, "defaults": defaults.main}


def main(names: list[str]) -> None:
    """Run the benchmarks of these names.

    Raises:
        ConfigError: a name is no benchmark.
    """
    if unknown := [name for name in names if name not in BENCHMARKS]:
        raise ConfigError(f"expected benchmarks out of {', '.join(BENCHMARKS)}, got {', '.join(unknown)}; name another")
    logging.getLogger("flwr").setLevel(logging.ERROR)
    for name in names or BENCHMARKS:
        BENCHMARKS[name]()


if __name__ == "__main__":
    try:
        main(sys.argv[1:])
    except ConfigError as error:
        sys.exit(f"error: {error}")

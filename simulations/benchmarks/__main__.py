"""``python -m simulations.benchmarks [NAME…]``, with names out of ``BENCHMARKS``; all of them without a name."""

from __future__ import annotations

import os
import sys
from importlib import import_module

from common.errors import ConfigError

BENCHMARKS = (
    "accuracy",
    "rounds",
    "round_costs",
    "scale",
    "defaults",
    "tasks",
    "heads",
    "head_defaults",
    "rank",
    "shadows",
    "audits",
    "features",
    "secagg",
    "peers",
    "distributed_noise",
    "solved_heads",
)


def main(names: list[str]) -> None:
    """Run the benchmarks of these names.

    Raises:
        ConfigError: a name is no benchmark.
    """
    if unknown := [name for name in names if name not in BENCHMARKS]:
        raise ConfigError(f"expected benchmarks out of {', '.join(BENCHMARKS)}, got {', '.join(unknown)}; name another")
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # as the fedgraft command does, before torch is imported
    from simulations.session import quiet

    for name in names or BENCHMARKS:
        with quiet():
            import_module(f"simulations.benchmarks.{name}").main()


if __name__ == "__main__":
    try:
        main(sys.argv[1:])
    except ConfigError as error:
        sys.exit(f"error: {error}")

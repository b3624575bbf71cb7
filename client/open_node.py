"""Which node this process is: the operator's own, or one that an engine plays.

That a node is simulated, so that a seed may replace cryptographic randomness, is known from the engine around it, never
from a message or a configuration that was received.
"""

from __future__ import annotations

from collections.abc import Mapping

from client.node import Node
from client.simulated_node import simulated_node, simulation_folder
from common import paths
from common.errors import ConfigError


def open_node(
    run_id: int, run_config: Mapping[str, str | int | float | bool], node_config: Mapping[str, object]
) -> Node:
    """Find out which node this process is.

    Args:
        run_id: Flower's id of the run.
        run_config: Flower's run configuration, as received.
        node_config: Flower's node configuration, given by the engine or by the operator's command.

    Raises:
        ConfigError: this is no simulation, and the operator has not set up a node here.
    """
    run_folder, folder = simulation_folder(run_id), paths.node_folder()
    if run_folder is None and folder is not None:
        from client.own_node import open_own_node  # a simulation needs none of it

        return open_own_node(folder)
    if run_folder is None:
        raise ConfigError(
            "expected a node set up by its operator, found none; set one up with `fedgraft node init`, or simulate "
            "with `fedgraft simulate`"
        )
    try:
        partition = int(str(node_config["partition-id"]))
    except (KeyError, ValueError):
        raise ConfigError(
            "expected a partition-id from the simulation engine, got none; use `fedgraft simulate`"
        ) from None
    return simulated_node(tuple(run_config.items()), partition, run_folder)

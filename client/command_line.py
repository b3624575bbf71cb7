"""What the commands of a hospital's operator share: options, and the folder they speak of."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

Home = Annotated[
    Path | None, typer.Option("--home", help="The node's folder; by default $FEDGRAFT_NODE, else ~/fedgraft-node.")
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON instead of text.")]
HealthPort = Annotated[
    int, typer.Option(help="Port of the loopback that answers gRPC health checks; 0 for none.", min=0, max=65535)
]
USUAL = "fedgraft-node"


def home_of(home: Path | None) -> Path:
    """The folder that an operator means, whether there is a node in it or not."""
    from common import paths

    return paths.home_folder(home, paths.NODE_FOLDER, USUAL)


def node_of(home: Path | None) -> Path:
    """The folder that an operator means.

    Raises:
        ConfigError: it holds no node.
    """
    from client.node_config import NODE_TOML
    from common.errors import ConfigError

    folder = home_of(home)
    if not (folder / NODE_TOML).is_file():
        raise ConfigError(f"expected a node in {folder}, found no {NODE_TOML}; run `fedgraft node init` first")
    return folder

"""The command ``fedgraft server peers``: the public keys of the registered nodes, for hospitals to compare."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def peers(
    out: Annotated[Path, typer.Option(help="File to write; give it to every hospital.")],
    home: Annotated[
        Path | None,
        typer.Option("--home", help="The coordinator's folder; by default $FEDGRAFT_SERVER, else ~/fedgraft-server."),
    ] = None,
) -> None:
    """Write down the nodes' public keys; hospitals compare them with each other, not with you, and approve them."""
    from common import durable, paths
    from common.errors import ConfigError
    from common.secagg.roster import read_roster
    from server.coordinator_folder import USUAL, open_place
    from server.peers import registered_peers

    place = open_place(paths.home_folder(home, paths.SERVER_FOLDER, USUAL))
    if out.exists():
        read_roster(out)  # a peers file replaces a peers file, and nothing else
    if not place.nodes():
        raise ConfigError("expected registered nodes, there are none; let one in by `fedgraft server add-node`")
    roster = registered_peers(place, place.nodes())
    durable.write_bytes(out, roster.to_text().encode())
    typer.echo(roster.in_words())
    typer.echo(f"file    {out}   (hospitals telephone each other, then: fedgraft node approve peers {out.name})")

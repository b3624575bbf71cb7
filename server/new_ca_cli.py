"""The command ``fedgraft server new-ca``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def new_ca(
    switch: Annotated[bool, typer.Option("--switch", help="Use the CA that was made; hospitals trust it now.")] = False,
    home: Annotated[Path | None, typer.Option(help="The coordinator's folder, as for the other commands.")] = None,
) -> None:
    """Make another CA: once to make it, and with --switch to use it when every hospital has taken the join file."""
    from common import paths
    from common.bundle import app_digest
    from server.coordinator_folder import JOIN_FILE, USUAL, open_place
    from server.new_ca import prepare_ca, switch_ca

    place = open_place(paths.home_folder(home, paths.SERVER_FOLDER, USUAL))
    if switch:
        typer.echo(f"CA            {switch_ca(place, app_digest())}")
        typer.echo(f"for nodes     {place.folder / JOIN_FILE}   (it names this CA alone now)")
        typer.echo("next          fedgraft server start")
        return
    typer.echo(f"next CA       {prepare_ca(place, app_digest())}   (read this to every hospital by telephone)")
    typer.echo(f"for nodes     {place.folder / JOIN_FILE}   (it names both CAs; fedgraft node join federation.join)")
    typer.echo("next          when every hospital has: fedgraft server stop; fedgraft server new-ca --switch; start")

"""The command ``fedgraft node join``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from client.command_line import Home, node_of


def join(
    file: Annotated[Path, typer.Argument(help="The new join file that the coordinator gave you.")],
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask; the fingerprint was compared.")] = False,
    home: Home = None,
) -> None:
    """Trust the CA of a new join file, after a look at its fingerprint."""
    from client.join import compare, trust
    from client.node_config import load_node_config
    from client.node_folder import read_join
    from common.supervisor import supervisor_of

    folder = node_of(home)
    config, offered = load_node_config(folder), read_join(file)
    change = compare(folder, config, offered)
    for when, listed in (("now", change.before), ("then", change.after)):
        for one in listed:
            typer.echo(f"{when:<5} {one.words}\n      {one.fingerprint}")
    for note in change.notes:
        typer.echo(f"note  {note}")
    if change.same:
        typer.echo("the node trusts this already; nothing was changed")
        return
    if not yes and not typer.confirm("compare the new fingerprint with the coordinator by telephone; is it the same?"):
        raise typer.Abort
    trust(folder, config, offered)
    typer.echo("the node trusts this from its next start on")
    if supervisor_of(folder) is not None:
        typer.echo("next  fedgraft node stop, then start")

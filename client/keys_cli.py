"""The command ``fedgraft node rotate-key``."""

from __future__ import annotations

from typing import Annotated

import typer

from client.command_line import Home, node_of


def rotate_key(
    compromised: Annotated[
        bool, typer.Option("--compromised", help="The old key may be in other hands: it vouches for nothing.")
    ] = False,
    home: Home = None,
) -> None:
    """Give the node a new key; the coordinator lets it in when they have registered it."""
    from client.keys import OLD_KEYS, PUBLIC_KEY
    from client.keys import rotate_key as make_new
    from client.node_config import load_node_config
    from common.supervisor import supervisor_of

    folder = node_of(home)
    done = make_new(folder, load_node_config(folder).node.name, compromised=compromised)
    if done.finished:
        typer.echo("an earlier rotation was interrupted; this finished it")
    typer.echo(f"old key     {done.old}   (public half in {folder / OLD_KEYS})")
    typer.echo(f"public key  {folder / PUBLIC_KEY}   (give this file to the coordinator)")
    typer.echo(f"            {done.new}   (read this to them by telephone)")
    if compromised:
        typer.echo("next        have the coordinator remove the node's old key now; give auditors the new public key")
    if supervisor_of(folder) is not None:
        typer.echo("next        fedgraft node stop, then start, when the coordinator has replaced the key")

"""The commands ``fedgraft node ledger``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from client.command_line import Home, node_of

ledger = typer.Typer(rich_markup_mode=None, no_args_is_help=True)


@ledger.callback(epilog="Example: fedgraft node ledger verify")
def look_at_ledger() -> None:
    """Check the ledger, or write it down for an auditor."""


@ledger.command("verify", epilog="Example: fedgraft node ledger verify")
def ledger_verify(home: Home = None) -> None:
    """Check the whole ledger: its structure, its chain, the kept replies."""
    from client.node_config import load_node_config
    from client.own_node import open_own_ledger, spent_so_far

    folder = node_of(home)
    config = load_node_config(folder)
    said = spent_so_far(folder, config)
    if not said.entries:
        typer.echo("there is no ledger yet: nothing was ever released")
        return
    with open_own_ledger(folder, config) as opened:
        opened.verify()
    typer.echo(f"intact: {said.entries} entries, epsilon {said.epsilon:.4g}, chain head {said.chain_head}")


@ledger.command("export", epilog="Example: fedgraft node ledger export --out st-mary.ledger.json")
def ledger_export(
    out: Annotated[Path, typer.Option(help="File to write.")],
    home: Home = None,
) -> None:
    """Write the ledger, signed with the node's key; `fedgraft audit ledger` verifies it anywhere."""
    from client.keys import HISTORY, KEY
    from client.node_config import load_node_config
    from client.own_node import ledger_file
    from common.privacy.entries import read_entries
    from common.privacy.export import export_ledger
    from common.privacy.key_history import read_rotations

    folder = node_of(home)
    entries = read_entries(ledger_file(folder, load_node_config(folder)))
    export_ledger(entries, out, private_key=folder / KEY, rotations=read_rotations(folder / HISTORY))
    typer.echo(f"{len(entries)} entries in {out}, signed; verify with `fedgraft audit ledger {out}`")

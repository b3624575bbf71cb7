"""The commands ``fedgraft node ledger``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from client.command_line import Home, node_of

ledger = typer.Typer(rich_markup_mode=None, no_args_is_help=True)


@ledger.callback(epilog="Example: fedgraft node ledger verify")
def look_at_ledger() -> None:
    """Check the ledger, write it down for an auditor, or sign off a higher cap."""


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
    from common.errors import ConfigError
    from common.privacy.entries import read_entries
    from common.privacy.export import export_ledger
    from common.privacy.key_history import read_rotations

    folder = node_of(home)
    path = ledger_file(folder, load_node_config(folder))
    if not path.exists():
        raise ConfigError(
            f"expected a ledger at {path}, there is none: nothing was released from this data set, or data.id and "
            "data.ledgers of node.toml are not what they were; export it after the first round"
        )
    entries = read_entries(path)
    export_ledger(entries, out, private_key=folder / KEY, rotations=read_rotations(folder / HISTORY))
    typer.echo(f"{len(entries)} entries in {out}, signed; verify with `fedgraft audit ledger {out}`")


@ledger.command("raise-cap", epilog="Example: fedgraft node ledger raise-cap 4 --reason 'ethics board, 12 May'")
def ledger_raise_cap(
    epsilon: Annotated[float, typer.Argument(help="The new cap, as privacy.max_epsilon in node.toml has it.")],
    by: Annotated[str, typer.Option(help="Who decides; by default the user of this session.")] = "",
    reason: Annotated[str, typer.Option(help="Why; it goes into the ledger, and to whoever gets an export.")] = "",
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
    home: Home = None,
) -> None:
    """Sign off a higher cap: an entry in the ledger's chain, for ever. To lower it, node.toml is enough."""
    import getpass

    from client.node_config import load_node_config
    from client.own_node import open_own_ledger, spent_so_far
    from common.errors import ConfigError

    folder = node_of(home)
    config = load_node_config(folder)
    asked, said = config.privacy.max_epsilon, spent_so_far(folder, config)
    if not said.entries:
        typer.echo("there is no ledger yet: the first round opens it with the cap of node.toml, nothing to sign off")
        return
    if epsilon != asked:
        raise ConfigError(
            f"expected the cap of node.toml, privacy.max_epsilon = {asked:g}, got {epsilon:g}; correct one of them"
        )
    if epsilon <= said.epsilon_cap:
        typer.echo(f"the cap is epsilon {said.epsilon_cap:g} already: nothing to sign off")
        return
    typer.echo(f"data set    {said.dataset_id}: one {said.unit or config.privacy.unit}, delta {said.delta:g}")
    typer.echo(f"spent       epsilon {said.epsilon:.4g} in {len(said.committed)} rounds released")
    typer.echo(f"cap         epsilon {said.epsilon_cap:g}, to be raised to {epsilon:g}; {_left(epsilon, said.epsilon)}")
    if not yes:
        typer.confirm("Sign this off?", abort=True)
    with open_own_ledger(folder, config) as opened:
        opened.raise_cap(by or getpass.getuser(), reason)
        said = opened.statement()
    typer.echo(f"signed off: the cap is epsilon {said.epsilon_cap:g}; chain head {said.chain_head}")


def _left(cap: float, spent: float) -> str:
    return f"{max(0.0, cap - spent):.4g} could be spent then"

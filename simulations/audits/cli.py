"""The commands ``fedgraft audit …``, one module each; what is heavy is imported when a command runs."""

from __future__ import annotations

import typer

from simulations.audits import attack_cli, ledger_cli

audit = typer.Typer(rich_markup_mode=None, no_args_is_help=True, add_completion=False)


@audit.callback()
def check_promises() -> None:
    """Check a privacy promise: from its ledgers, from above, and by attacks, from below."""


audit.command(
    "ledger", epilog="Example: fedgraft audit ledger runs/first/ledgers/node-000.sqlite --config runs/first/config.toml"
)(ledger_cli.ledger)
audit.command(
    "export", epilog="Example: fedgraft audit export runs/first/ledgers/node-000.sqlite --out node-000.export.json"
)(ledger_cli.export)
audit.command(
    "attack", epilog="Example: fedgraft audit attack simulations/configs/digits.toml --report digits-audit.html"
)(attack_cli.attack)
audit.command("verify", epilog="Example: fedgraft audit verify digits-audit.json --key auditor.pub")(attack_cli.verify)

"""The commands ``fedgraft audit ledger`` and ``fedgraft audit export``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from common.errors import ConfigError


def ledger(
    files: Annotated[
        list[Path], typer.Argument(metavar="FILE...", help="Ledgers, or exports of them.", show_default=False)
    ],
    keys: Annotated[
        list[Path] | None,
        typer.Option(
            "--key",
            metavar="PUBLIC.pub",
            help="Public key that an export must be signed by; may be repeated, one for each node.",
            show_default=False,
        ),
    ] = None,
    config: Annotated[
        Path | None,
        typer.Option(help="Configuration of a run, TOML, to be compared with the plans.", show_default=False),
    ] = None,
    heads: Annotated[
        list[str] | None,
        typer.Option(
            "--head",
            metavar="HASH",
            help="A chain head noted earlier, which must be part of a ledger; may be repeated.",
            show_default=False,
        ),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of tables.")] = False,
) -> None:
    """Verify what ledgers say was spent, and compute it anew from their events by other accountants."""
    raise ConfigError("this command must be built first, got a call too early; wait for it")


def export(
    path: Annotated[Path, typer.Argument(metavar="LEDGER", help="A ledger's file.", show_default=False)],
    out: Annotated[Path, typer.Option(help="File to write, mode 0600.", show_default=False)],
    key: Annotated[
        Path | None,
        typer.Option(
            metavar="PRIVATE", help="The node's private key, by which the export is signed.", show_default=False
        ),
    ] = None,
) -> None:
    """Write a ledger as one file that can be carried to an auditor, signed where a key is given."""
    raise ConfigError("this command must be built first, got a call too early; wait for it")

"""The commands ``fedgraft audit ledger`` and ``fedgraft audit export``; what is heavy is imported inside each."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Annotated

import typer

from common.errors import ConfigError, PrivacyError


def ledger(
    files: Annotated[
        list[Path], typer.Argument(metavar="FILE...", help="Ledgers, or exports of them.", show_default=False)
    ],
    keys: Annotated[
        list[Path] | None,
        typer.Option(
            "--key",
            metavar="PUBLIC.pub",
            help="Public key that an export must be signed by; may be repeated. Any of them may sign any data set.",
            show_default=False,
        ),
    ] = None,
    config: Annotated[
        Path | None,
        typer.Option(help="Configuration of a run, TOML, to be compared with plans and charges.", show_default=False),
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
    """Verify ledgers and compute their ε anew.

    The chain of hashes and an export's signature are checked, and what was spent is computed from the events anew: by
    dp-accounting, the library that the node's accountant is built on too, and, independent of it, by Opacus's PRV
    accountant, the exact Gaussian curve and a formula of our own. Ends with status 3 where they disagree.
    """
    for head in heads or []:
        if not re.fullmatch("[0-9a-f]{64}", head):
            raise ConfigError(f"--head must be a chain head, 64 hexadecimal digits, got {head!r}; copy it whole")
    from common.config import load_config
    from simulations.audits.ledger_audit import audit_ledgers
    from simulations.audits.ledger_files import read_ledger_file
    from simulations.audits.ledger_tables import show_ledgers, to_dict

    run = None if config is None else load_config(config)
    with _working(as_json):
        audit = audit_ledgers([read_ledger_file(path, keys or []) for path in files], heads=heads or [], config=run)
    if not as_json:
        from rich.console import Console

        show_ledgers(audit, Console())
    if audit.problems:
        raise PrivacyError("\n".join(audit.problems))
    if as_json:
        typer.echo(json.dumps(to_dict(audit), allow_nan=False))


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
    """Write a ledger as one file for an auditor.

    It holds all entries and the chain's head, and is signed where a key is given: the node's own, as its SuperNode has
    it (ssh-keygen -t ecdsa -b 384).
    """
    from common.privacy.export import export_ledger
    from common.privacy.keys import fingerprint
    from simulations.audits.ledger_files import read_ledger_file

    file = read_ledger_file(path)
    if file.kind == "export":
        raise ConfigError(f"expected a ledger's own file, but {path} is an export of one already; carry it as it is")
    done = export_ledger(file.entries, out, private_key=key)
    signed = "unsigned" if done.public_key is None else f"signed by {fingerprint(done.public_key)}"
    typer.echo(f"export      {out}, data set {done.dataset_id!r}, {len(done.entries)} entries, {signed}")
    typer.echo(f"chain head  {done.chain_head}")


@contextmanager
def _working(quiet: bool) -> Iterator[None]:
    """Show that something is going on: some accountants take seconds."""
    from rich.console import Console

    with nullcontext() if quiet else Console(stderr=True).status("verifying, and computing ε anew"):
        yield

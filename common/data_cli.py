"""Commands on data sets; what is heavy is imported inside each."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from common.config_schema import KEY_ROLES
from common.errors import ConfigError
from common.printable import printable

if TYPE_CHECKING:
    from rich.console import Console

    from common.data.inspection import Inspection

UNFIT = 2
_MOST_COLUMNS = 8  # classes that a table of sites can show

data = typer.Typer(rich_markup_mode=None, no_args_is_help=True, add_completion=False)


@data.callback()
def look_at_data() -> None:
    """Look at a data set before a run."""


@data.command("check", epilog="Example: fedgraft data check digits")
def check_data(
    source: Annotated[str, typer.Argument(help='"digits", or a file or folder as in data.source.', show_default=False)],
    keys: Annotated[
        list[str] | None,
        typer.Option("--key", help="The file's own name: ROLE=NAME, as in label=diagnosis.", metavar="ROLE=NAME"),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of tables.")] = False,
) -> None:
    """Read every record as a run would; say what is there and what would go wrong.

    The exit status is 2 where a run would be refused.
    """
    from common.data.inspection import inspect_source

    found = inspect_source(source, read_roles(keys or []), Path.cwd())
    if as_json:
        typer.echo(json.dumps(as_dict(found)))
    else:
        _show(found)
    if not found.fit:
        raise typer.Exit(UNFIT)


def read_roles(keys: list[str]) -> dict[str, str]:
    """Read ``ROLE=NAME`` options.

    Raises:
        ConfigError: another form, or an unknown role.
    """
    roles = {}
    for text in keys:
        role, _, name = text.partition("=")
        if role not in KEY_ROLES or not name:
            raise ConfigError(f"expected --key ROLE=NAME with a role out of {', '.join(KEY_ROLES)}, came {text}")
        roles[role] = name
    return roles


def as_dict(found: Inspection) -> dict[str, Any]:
    """What was found, as JSON can hold it."""
    from dataclasses import asdict

    unreadable = [{"file": str(item.path), "reason": item.reason} for item in found.unreadable]
    return {**asdict(found), "unreadable": unreadable, "fit": found.fit}


def _show(found: Inspection) -> None:
    from rich.console import Console

    console = Console(highlight=False, soft_wrap=True)
    _show_facts(console, found)
    _show_classes(console, found)
    for item in found.unreadable:
        console.print(f"cannot be read: {printable(str(item.path))} ({item.reason})", markup=False)
    for finding in found.findings:
        style = {"error": "bold red", "warning": "yellow", "note": "dim"}[finding.level]
        console.print(f"{finding.level}: {printable(finding.text)}", style=style, markup=False)
    console.print("a run would start" if found.fit else "a run would be refused", style="bold")


def _show_facts(console: Console, found: Inspection) -> None:
    rows = {"records": f"{found.records:,} ({found.modality}, {found.task})"} if found.modality else {}
    if found.splits:
        rows["split"] = ", ".join(f"{count:,} {name}" for name, count in found.splits.items())
    if found.sites:
        rows["sites"] = f"{len(found.sites):,}"
    if found.patients is not None:
        rows["patients"] = f"{found.patients['count']:,}, with up to {found.patients['most_records']:,} records each"
    if found.groups is not None:
        rows["groups"] = f"{found.groups:,}, each kept together by a hold-out"
    rows |= found.measures
    width = max(10, *map(len, rows))
    for name, value in rows.items():
        console.print(f"{name:<{width}}  {value}", markup=False)


def _show_classes(console: Console, found: Inspection) -> None:
    """Counts of each class, by site where the classes are few."""
    from rich.box import SIMPLE
    from rich.table import Table
    from rich.text import Text

    if not found.classes:
        return
    of_words = " (words)" if found.task == "tokens" else ""
    by_site = found.sites if len(found.classes) <= _MOST_COLUMNS else {}
    table = Table(box=SIMPLE)
    if by_site:
        for heading in ("site", *found.classes):
            table.add_column(Text(heading), justify="left" if heading == "site" else "right")
        for site, counts in (*by_site.items(), ("all", found.classes)):
            table.add_row(Text(site), *(f"{count:,}" for count in counts.values()))
    else:
        table.add_column(f"class{of_words}")
        table.add_column("examples", justify="right")
        for name, count in found.classes.items():
            table.add_row(Text(name), f"{count:,}")
    console.print(table)

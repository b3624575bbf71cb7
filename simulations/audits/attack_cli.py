"""The commands ``fedgraft audit attack`` and ``fedgraft audit verify``."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from common.errors import PrivacyError

if TYPE_CHECKING:
    from simulations.audits.audit_report import Audit, Place

Advance = Callable[[str, int, int], None]


def attack(
    config: Annotated[Path, typer.Argument(help="Configuration of a run, TOML.", show_default=False)],
    overrides: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="SECTION.KEY=VALUE", help="Override a key; may be repeated.", show_default=False),
    ] = None,
    threat: Annotated[
        str,
        typer.Option(
            metavar="server|peer|model|all",
            help="Who attacks: sees every update of a node, the global head of each round, or the final head only.",
        ),
    ] = "all",
    methods: Annotated[
        list[str] | None,
        typer.Option(
            "--method",
            metavar="NAME",
            help="Estimator or membership test, see docs/audits.md; may be repeated. By default all that apply.",
            show_default=False,
        ),
    ] = None,
    canaries: Annotated[
        list[str] | None,
        typer.Option(
            "--canary",
            metavar="gradient|mislabelled|out-of-distribution|records",
            help="What is inserted or left out; may be repeated. By default all that the head allows.",
            show_default=False,
        ),
    ] = None,
    confidence: Annotated[float, typer.Option(help="With which each lower bound holds.")] = 0.95,
    heads: Annotated[int, typer.Option(help="Trained for each attack, half of them with the canary.")] = 4000,
    report: Annotated[
        Path | None,
        typer.Option(
            metavar="OUT.html",
            help="Write a report; the same for machines is written beside it, as OUT.json.",
            show_default=False,
        ),
    ] = None,
    key: Annotated[
        Path | None,
        typer.Option(metavar="PRIVATE", help="The auditor's private key, to sign the report.", show_default=False),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of tables.")] = False,
) -> None:
    """Attack the mechanism that a configuration trains with, and show how much of its promise is certainly used.

    The outcome is a lower bound on epsilon for each attack. One above the promise is an alarm, with exit status 3.
    """
    from simulations.audits.attack_request import make_request

    request = make_request(threat, methods or [], canaries or [], confidence, heads)
    from simulations.audits.audit_report import open_place, place_needed

    place_needed(report, key)
    place = None if report is None else open_place(report, key)
    from common.config import load_config  # the help must not wait for torch
    from simulations import session
    from simulations.audits.audit_run import run_audit

    run = load_config(config, overrides or [])
    with session.quiet(), _bars() as advance:
        audit = run_audit(run, config.stem, request, advance)
    deliver(audit, place, as_json)


def deliver(audit: Audit, place: Place | None, as_json: bool) -> None:
    """Write an audit's report, print it, and raise its alarm.

    Args:
        audit: finished.
        place: of its report; None writes none.
        as_json: print JSON instead of tables.

    Raises:
        PrivacyError: the promise is broken; report and terminal have said so by then.
    """
    from rich.console import Console

    from simulations.audits.audit_report import alarm, broken, to_dict, write_report
    from simulations.audits.audit_report.terminal import show

    if place is not None:
        write_report(audit, place)
    if as_json:
        typer.echo(json.dumps(to_dict(audit, scores=False), allow_nan=False))
    else:
        show(audit, Console())
        if place is not None:
            typer.echo(f"report  {place.page}")
    if broken(audit):
        raise PrivacyError(alarm(audit))


def verify(
    report: Annotated[Path, typer.Argument(metavar="REPORT.json", help="The report's file for machines.")],
    key: Annotated[
        Path,
        typer.Option(metavar="KEY.pub", help="The auditor's public key, from the auditor and not with the report."),
    ],
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of lines.")] = False,
) -> None:
    """Check that a report is the one that the auditor signed, the page beside it too."""
    from simulations.audits.audit_report import verify_report

    found = verify_report(report, key)
    if as_json:
        files = [str(path) for path in found.files]
        said = {"alarm": found.alarm, "verdict": found.verdict, "page_checked": found.missing is None}
        typer.echo(json.dumps({"signer": found.signer, "files": files, **said}))
        return
    for path in found.files:
        typer.echo(f"as signed   {path}")
    if found.missing is not None:
        typer.echo(f"page not checked: there is no {found.missing}; the page that you read may be another report's")
    typer.echo(f"signed by   {found.signer}")
    typer.echo(f"says        {found.verdict}")


@contextmanager
def _bars() -> Iterator[Advance]:
    """A bar for each piece of work that takes long, shown when it begins."""
    from rich.console import Console
    from rich.markup import escape
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

    columns = (TextColumn("{task.description:<34}"), BarColumn(bar_width=20), MofNCompleteColumn(), TimeElapsedColumn())
    bars = Progress(*columns, console=Console(stderr=True), transient=True)
    tasks: dict[str, TaskID] = {}

    def advance(name: str, done: int, total: int) -> None:
        bars.start()
        if name not in tasks:
            tasks[name] = bars.add_task(escape(name), total=total)
        bars.update(tasks[name], completed=done, total=total)

    try:
        yield advance
    finally:
        if tasks:
            bars.stop()

"""The command ``fedgraft backbones rank``, beside the commands on backbones that need no simulation."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, cast

import typer
from rich.markup import escape

from common.backbones_cli import backbones
from common.errors import ConfigError

if TYPE_CHECKING:
    from simulations.rank import Ranking

__all__ = ["backbones"]

CUTS = ("all", "last")
RECORDS = 2000


@backbones.command(
    "rank",
    epilog="Example: fedgraft backbones rank simulations/configs/digits.toml --candidate embedded/glyph "
    "--candidate embedded/glyph#stage3 --candidate pixels/8",
)
def rank_backbones(
    config: Annotated[Path, typer.Argument(help="Configuration of a run, TOML.", show_default=False)],
    candidates: Annotated[
        list[str] | None,
        typer.Option(
            "--candidate",
            metavar="REFERENCE[#CUT]",
            help="A backbone to score, as in model.backbone; may be repeated. By default the configuration's own.",
            show_default=False,
        ),
    ] = None,
    cuts: Annotated[
        str | None,
        typer.Option(
            metavar="all|last",
            help="Cuts of candidates that name none; by default last, and all of the configuration's own backbone.",
            show_default=False,
        ),
    ] = None,
    records: Annotated[
        int, typer.Option(min=10, help="Most training records that the exact score looks at.")
    ] = RECORDS,
    private: Annotated[
        bool, typer.Option("--private", help="Score by noised statistics as well, which nodes can release.")
    ] = False,
    epsilon: Annotated[
        float | None, typer.Option(help="What all private scores together may spend.", show_default=False)
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(
            help="Folder with the nodes' ledgers (a run's folder, say); by default a new one, thrown away.",
            show_default=False,
        ),
    ] = None,
    overrides: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="SECTION.KEY=VALUE", help="Override a key; may be repeated.", show_default=False),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")] = False,
) -> None:
    """Score which backbone, and which cut of it, suits the data of a configuration, before any training.

    Higher is better. The exact score needs all records in one place, as a simulation has them; on nodes only private
    scores exist, and they are paid for from the same budget as training.
    """
    if cuts is not None and cuts not in CUTS:
        raise ConfigError(f"--cuts must be all or last, got {cuts!r}; choose one of them")
    _check_private(private, epsilon, out)
    from common.config import load_config
    from simulations import session
    from simulations.rank import Candidate, Cuts, parse_candidate, rank

    run = load_config(config, overrides or [])
    chosen = [parse_candidate(text) for text in candidates or []]
    wanted = cuts or ("last" if chosen else "all")
    chosen = chosen or [Candidate(run.model.reference, run.model.cut if cuts is None else None)]
    with session.quiet(), _bars() as progress, _ledgers(out) as folder:
        asked = None if epsilon is None else (epsilon, folder)
        ranking = rank(run, chosen, cast(Cuts, wanted), records, progress, asked)
    if as_json:
        typer.echo(json.dumps(ranking.to_dict(), allow_nan=False))
    else:
        _show(ranking)


def _check_private(private: bool, epsilon: float | None, out: Path | None) -> None:
    if private and (epsilon is None or not 0 < epsilon < float("inf")):
        raise ConfigError(
            f"--private needs --epsilon, a number above 0 that the scores may spend, got {epsilon}; choose it"
        )
    if not private and (epsilon is not None or out is not None):
        raise ConfigError("--epsilon and --out belong to --private: exact scores spend nothing; add --private")


@contextmanager
def _ledgers(out: Path | None) -> Iterator[Path]:
    if out is not None:
        yield out
        return
    with tempfile.TemporaryDirectory() as folder:
        yield Path(folder)


@contextmanager
def _bars() -> Iterator[Callable[[str, int, int], None]]:
    """A bar for each candidate whose features have to be computed."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

    columns = (TextColumn("{task.description}"), BarColumn(bar_width=20), MofNCompleteColumn(), TimeElapsedColumn())
    bars = Progress(*columns, console=Console(stderr=True), transient=True)
    tasks: dict[str, TaskID] = {}

    def advance(name: str, done: int, total: int) -> None:
        bars.start()  # nothing is drawn for features that the cache has
        if name not in tasks:
            tasks[name] = bars.add_task(escape(name), total=total)
        bars.update(tasks[name], completed=done, total=total)

    try:
        yield advance
    finally:
        if tasks:
            bars.stop()


def _show(ranking: Ranking) -> None:
    """Print the candidates, best first, and what the private scores cost."""
    from rich.box import SIMPLE
    from rich.console import Console
    from rich.table import Table

    table = Table(box=SIMPLE)
    table.add_column("backbone", overflow="fold")
    table.add_column("cut", no_wrap=True)
    spending = ranking.spending
    for name in ("features", "score", *(["private score"] if spending else [])):
        table.add_column(name, justify="right", no_wrap=True)
    for one in ranking.ranked:
        private = [] if one.private_score is None else [f"{one.private_score:.3f} ± {one.private_error:.3f}"]
        table.add_row(escape(one.backbone), escape(one.cut), f"{one.features:,}", f"{one.score:.3f}", *private)
    console = Console()
    console.print(table)
    for line in _notes(ranking):
        console.print(line, highlight=False, markup=False, soft_wrap=True)


def _notes(ranking: Ranking) -> list[str]:
    counted = f"{ranking.records:,} of {ranking.training_records:,} training records"
    notes = [f"score   log evidence of a linear head, nats a record, from {counted}; higher is better"]
    spending = ranking.spending
    if spending is not None:
        nominal = "" if spending.epsilon_is_guarantee else "; nominal: seeded"
        notes += [
            "private score   share of the labels' variance explained, from noised statistics of "
            f"{spending.nodes} nodes; what differs by less than the noise (±) is a tie",
            f"spent   ε = {spending.epsilon:.3g} at each node by this ranking, at δ = {spending.delta:g}, one "
            f"{spending.unit}, local trust{nominal}; the fullest ledger now says ε = {spending.epsilon_in_ledger:.3g} "
            f"({spending.accountant})",
        ]
    return notes

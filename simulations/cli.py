"""The command ``fedgraft simulate``."""

from __future__ import annotations

import json
import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from common import durable
from common.config import RunConfig, load_config
from common.errors import ConfigError
from server.checkpoints import Line
from simulations import preflight, run
from simulations.baselines import check_baselines
from simulations.report.terminal import result_table
from simulations.result import Result

SEEDS = "seeds.json"


def simulate(
    config: Annotated[
        Path | None, typer.Argument(help="Configuration, TOML; not needed with --resume.", show_default=False)
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="Folder for the run; by default a new one in runs/.", show_default=False)
    ] = None,
    overrides: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="SECTION.KEY=VALUE", help="Override a key; may be repeated.", show_default=False),
    ] = None,
    engine: Annotated[str, typer.Option(help="inprocess, or ray (through `flwr run`).")] = "inprocess",
    resume: Annotated[Path | None, typer.Option(help="Continue the run in this folder.", show_default=False)] = None,
    seeds: Annotated[int, typer.Option(min=1, help="Repeat with so many seeds; report mean and spread.")] = 1,
    baselines: Annotated[
        str | None,
        typer.Option(
            help="none, all, or names: pooled, local_mean, no_dp, no_transfer, raw_pixels.", show_default=False
        ),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as JSON on stdout.")] = False,
) -> None:
    """Simulate a private federation on this machine: nodes, server, baselines, report."""
    if engine not in run.ENGINES:
        raise ConfigError(f"--engine must be one of {', '.join(run.ENGINES)}, got {engine!r}; choose one of them")
    changes = [*(overrides or []), *([] if baselines is None else [f'evaluation.baselines="{baselines}"'])]
    with _quiet():
        if resume is not None:
            folder, result = resume, _resume(config, resume, changes, out, engine)
        elif config is not None:
            folder = out or Path("runs") / f"{config.stem}-{datetime.now():%Y%m%d-%H%M%S}"
            result = _start(load_config(config, changes), folder, seeds, engine)
        else:
            raise ConfigError(
                "expected a configuration file or --resume FOLDER, got neither; see the example in --help"
            )
    if as_json:
        typer.echo(json.dumps(result, allow_nan=False))
    else:
        _show(result, folder)


def _start(config: RunConfig, folder: Path, seeds: int, engine: str) -> Result:
    run.check_free(folder)
    configs = _with_seeds(config, seeds)
    if len(configs) == 1:
        ready = _preflight(config)
        run.open_folder(folder, config)
        return _simulate(config, ready, folder, engine)
    for each in configs:
        _preflight(each)
    run.open_folder(folder, config)
    durable.write_json(folder / SEEDS, {"seeds": [each.federation.seed for each in configs]})
    return _all_seeds(configs, folder, engine)


def _resume(config: Path | None, folder: Path, changes: list[str], out: Path | None, engine: str) -> Result:
    if out is not None:
        raise ConfigError(f"expected either --out or --resume, got both; --resume {folder} continues in that folder")
    if config is None and changes:
        raise ConfigError(
            "expected no --set or --baselines with --resume: a run goes on as it was started; leave them out"
        )
    own = run.reopen_folder(folder, None if config is None else load_config(config, changes))
    if (folder / SEEDS).exists():
        count = len(json.loads((folder / SEEDS).read_text())["seeds"])
        return _all_seeds(_with_seeds(own, count), folder, engine)
    return _simulate(own, _preflight(own), folder, engine)


def _all_seeds(configs: list[RunConfig], folder: Path, engine: str) -> Result:
    results = []
    for config in configs:
        place = folder / f"seed-{config.federation.seed}"
        if not (place / run.CONFIG).exists():
            run.open_folder(place, config)
        results.append(_simulate(config, _preflight(config), place, engine))
    return run.summarise_seeds(folder, results)


def _with_seeds(config: RunConfig, count: int) -> list[RunConfig]:
    if count == 1:
        return [config]
    first = config.federation.seed
    if first is None:
        raise ConfigError("--seeds needs federation.seed in the configuration, which counts up from there; set it")
    federations = [config.federation.model_copy(update={"seed": first + k}) for k in range(count)]
    return [config.model_copy(update={"federation": federation}) for federation in federations]


def _preflight(config: RunConfig) -> preflight.Preflight:
    with _bars() as bars:
        task = bars.add_task("features", total=None, note="", visible=False)
        ready = preflight.check(
            config, lambda done, total: bars.update(task, completed=done, total=total, visible=True, note="images")
        )
    check_baselines(config)
    return ready


def _simulate(config: RunConfig, ready: preflight.Preflight, folder: Path, engine: str) -> Result:
    with _node_log(folder), _bars() as bars:
        rounds = bars.add_task("rounds", total=config.federation.rounds, note="")
        worlds = bars.add_task("baselines", total=None, note="", visible=False)

        def on_round(line: Line) -> None:
            accuracy = "" if line["accuracy"] is None else f"accuracy {line['accuracy']:.3f}  "
            note = f"{accuracy}ε {line['epsilon']:.2f} (δ {config.privacy.delta:g}, one {config.privacy.unit})"
            bars.update(rounds, completed=line["round"], note=note)

        def on_baseline(name: str, done: int, total: int) -> None:
            bars.update(worlds, description=name, completed=done, total=total, visible=True)

        return run.simulate(config, ready, folder, engine, run.Watcher(on_round, on_baseline))


@contextmanager
def _bars() -> Iterator[Progress]:
    columns = (
        SpinnerColumn(),
        TextColumn("{task.description:<12}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("{task.fields[note]}"),
    )
    with Progress(*columns, console=Console(stderr=True), transient=False) as bars:
        yield bars


@contextmanager
def _node_log(folder: Path) -> Iterator[None]:
    """Keep what the simulated nodes say of their refusals, which a real node would keep to itself, in ``nodes.log``."""
    handler = logging.FileHandler(folder / "nodes.log", delay=True)
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    log = logging.getLogger("fedgraft.node")
    log.addHandler(handler)
    log.propagate = False
    try:
        yield
    finally:
        log.removeHandler(handler)
        handler.close()


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep Flower's running commentary out of the terminal: the progress bar says it."""
    log = logging.getLogger("flwr")
    level = log.level
    log.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        log.setLevel(level)


def _show(result: Result, folder: Path) -> None:
    console = Console()
    console.print(result_table(result))
    console.print(f"report  {folder / 'report.html'}", soft_wrap=True)
    console.print(f"model   {folder / 'model'}", soft_wrap=True)

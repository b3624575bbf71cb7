"""The command ``fedgraft simulate``."""

from __future__ import annotations

import json
from datetime import datetime
from pathlib import Path
from typing import Annotated

import typer

from common.errors import ConfigError
from common.importing import without_collecting
from common.light_torch import import_torch

ENGINES = ("inprocess", "ray")


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
    if engine not in ENGINES:
        raise ConfigError(f"--engine must be one of {', '.join(ENGINES)}, got {engine!r}; choose one of them")
    if out is not None and resume is not None:
        raise ConfigError(f"expected either --out or --resume, got both; --resume {resume} continues in that folder")
    if resume is not None and seeds != 1:
        raise ConfigError(
            "expected no --seeds with --resume: a run goes on with the seeds it was started with; leave it out"
        )
    if config is None and resume is None:
        raise ConfigError("expected a configuration file or --resume FOLDER, got neither; see the example in --help")
    from common.config import load_config  # the help must not wait for it, and this not for torch
    from simulations.aside import aside

    changes = [*(overrides or []), *([] if baselines is None else [f'evaluation.baselines="{baselines}"'])]
    chosen = None if config is None or resume is not None else load_config(config, changes)
    with aside(chosen) as report:
        with without_collecting():
            import_torch()
            from simulations import session
        with session.quiet():
            if chosen is None:
                assert resume is not None
                folder, result = resume, session.resume(config, resume, changes, engine, report)
            else:
                assert config is not None
                folder = out or Path("runs") / f"{config.stem}-{datetime.now():%Y%m%d-%H%M%S}"
                result = session.start(chosen, folder, seeds, engine, report)
    if as_json:
        typer.echo(json.dumps(result, allow_nan=False))
    else:
        session.show(result, folder)

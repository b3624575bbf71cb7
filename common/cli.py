"""Commands on data and trained models; what is heavy is imported inside each."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer

from common.config_schema import KEY_ROLES
from common.errors import ConfigError

data = typer.Typer(rich_markup_mode=None, no_args_is_help=True, add_completion=False)


@data.callback()
def look_at_data() -> None:
    """Look at a data set before a run."""


@data.command("check", epilog="Example: fedgraft data check digits")
def check_data(
    source: Annotated[str, typer.Argument(help='"digits", an .npz file, or a folder of images.', show_default=False)],
    keys: Annotated[
        list[str] | None,
        typer.Option(
            "--key", help="An .npz file's own name of an array: ROLE=NAME, as in images=x.", metavar="ROLE=NAME"
        ),
    ] = None,
) -> None:
    """Read every record as a run would; count records, classes and sites."""
    from common.data import load_source

    records = load_source(source, read_roles(keys or []), Path.cwd())
    counts = np.bincount(records.labels, minlength=len(records.classes))
    typer.echo(f"records     {len(records)}")
    typer.echo(
        f"classes     {', '.join(f'{name} ({count})' for name, count in zip(records.classes, counts, strict=True))}"
    )
    for name, column in (("sites", records.site), ("patients", records.patient), ("splits", records.split)):
        if column is not None:
            typer.echo(f"{name:<12}{len(np.unique(column))}")


def read_roles(keys: list[str]) -> dict[str, str]:
    """Read ``ROLE=NAME`` options."""
    roles = {}
    for text in keys:
        role, _, name = text.partition("=")
        if role not in KEY_ROLES or not name:
            raise ConfigError(f"expected --key ROLE=NAME with a role out of {', '.join(KEY_ROLES)}, came {text}")
        roles[role] = name
    return roles


def predict(
    model: Annotated[Path, typer.Argument(help="A run folder's model/ folder.", show_default=False)],
    files: Annotated[list[Path], typer.Argument(help="Files with the records to look at.", show_default=False)],
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")] = False,
) -> None:
    """Say of new records what a trained model makes of them: their class, labels, tags or answer."""
    from common.data import read_images
    from common.model_folder import load_model
    from common.prediction import predict_records

    loaded = load_model(model)
    inputs, names = read_images(files), [str(file) for file in files]
    found = [{"file": name, **row} for name, row in zip(names, predict_records(loaded, inputs), strict=True)]
    if as_json:
        typer.echo(json.dumps(found))
        return
    width = max(len(name) for name in names)
    for row in found:
        typer.echo(f"{row['file']:<{width}}  {_in_a_line(row)}")


def _in_a_line(row: dict[str, Any]) -> str:
    """A prediction as a person reads it."""
    if "class" in row:
        return f"{row['class']}  {row['probabilities'][row['class']]:.3f}"
    if "labels" in row:
        return ", ".join(f"{name} {row['probabilities'][name]:.3f}" for name in row["labels"]) or "none of the labels"
    if "entities" in row:
        return ", ".join(f"{entity['text']} ({entity['kind']})" for entity in row["entities"]) or "no entity"
    return "no answer" if row["answer"] is None else f"{row['answer']}  {row['score']:.3f}"

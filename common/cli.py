"""Commands on backbones, data and trained models; what is heavy is imported inside each."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import numpy as np
import typer

from common.config_schema import KEY_ROLES
from common.errors import ConfigError

backbones = typer.Typer(rich_markup_mode=None, no_args_is_help=True, add_completion=False)
data = typer.Typer(rich_markup_mode=None, no_args_is_help=True, add_completion=False)


@backbones.callback()
def look_at_backbones() -> None:
    """Look at the pre-trained backbones."""


@backbones.command("list", epilog="Example: fedgraft backbones list")
def list_backbones() -> None:
    """Name the backbones that come with fedgraft and need no network.

    For comparison, pixels/8 (raw pixels of that size) and embedded/glyph@random-0 (untrained) work as well.
    """
    from common.backbones.registry import backbone_names

    for name in backbone_names():
        typer.echo(name)


@backbones.command("show", epilog="Example: fedgraft backbones show embedded/glyph")
def show_backbone(
    reference: Annotated[str, typer.Argument(help="Its name, as in model.backbone.", show_default=False)],
) -> None:
    """Check a backbone's weights; say where it comes from and at which stages it can be cut."""
    from common.backbones.registry import load_backbone

    backbone = load_backbone(reference)
    parameters = sum(item.numel() for stage in backbone.stages.values() for item in stage.parameters())
    rows = {
        "name": backbone.name,
        "stages": ", ".join(backbone.stages),
        "parameters": f"{parameters:,}",
        "trained on": backbone.trained_on,
        "licence": backbone.licence,
        "digest": backbone.digest,
    }
    for name, value in rows.items():
        typer.echo(f"{name:<12}{value}")


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

    records = load_source(source, _roles(keys or []), Path.cwd())
    counts = np.bincount(records.labels, minlength=len(records.classes))
    typer.echo(f"records     {len(records)}")
    typer.echo(
        f"classes     {', '.join(f'{name} ({count})' for name, count in zip(records.classes, counts, strict=True))}"
    )
    for name, column in (("sites", records.site), ("patients", records.patient), ("splits", records.split)):
        if column is not None:
            typer.echo(f"{name:<12}{len(np.unique(column))}")


def _roles(keys: list[str]) -> dict[str, str]:
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
    files: Annotated[list[Path], typer.Argument(help="Images to classify.", show_default=False)],
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")] = False,
) -> None:
    """Classify new images with a trained model."""
    from common.data import read_images
    from common.model_folder import load_model

    loaded = load_model(model)
    classes = loaded.facts.model.classes
    probabilities = loaded.probabilities(read_images(files))
    best = probabilities.argmax(dim=1).tolist()
    if as_json:
        rows = [
            {
                "file": str(file),
                "class": classes[index],
                "probabilities": dict(zip(classes, row.tolist(), strict=True)),
            }
            for file, index, row in zip(files, best, probabilities, strict=True)
        ]
        typer.echo(json.dumps(rows))
        return
    width = max(len(str(file)) for file in files)
    for file, index, row in zip(files, best, probabilities, strict=True):
        typer.echo(f"{file!s:<{width}}  {classes[index]}  {float(row[index]):.3f}")

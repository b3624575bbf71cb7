"""Commands on trained models; what is heavy is imported inside each."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from common.printable import printable


def predict(
    model: Annotated[Path, typer.Argument(help="A run folder's model/ folder.", show_default=False)],
    files: Annotated[list[Path], typer.Argument(help="Files with the records to look at.", show_default=False)],
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")] = False,
) -> None:
    """Say of new records what a trained model makes of them: their class, labels, tags or answer."""
    from common.data.inputs import read_inputs
    from common.model_folder import load_model
    from common.prediction import predict_records

    loaded = load_model(model)
    facts = loaded.facts
    inputs, names = read_inputs(files, facts.modality, facts.columns, facts.keys)
    found = [{"file": name, **row} for name, row in zip(names, predict_records(loaded, inputs), strict=True)]
    if as_json:
        typer.echo(json.dumps(found, allow_nan=False))
        return
    width = max(len(name) for name in names)
    for row in found:
        typer.echo(printable(f"{row['file']:<{width}}  {_in_a_line(row)}"))


def _in_a_line(row: dict[str, Any]) -> str:
    """A prediction as a person reads it."""
    if "class" in row:
        return f"{row['class']}  {row['probabilities'][row['class']]:.3f}"
    if "labels" in row:
        return ", ".join(f"{name} {row['probabilities'][name]:.3f}" for name in row["labels"]) or "none of the labels"
    if "entities" in row:
        return ", ".join(f"{entity['text']} ({entity['kind']})" for entity in row["entities"]) or "no entity"
    return "no answer" if row["answer"] is None else f"{row['answer']}  {row['score']:.3f}"

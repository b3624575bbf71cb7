"""The commands ``fedgraft backbones …``; what is heavy is imported inside each."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from common.data_cli import read_roles
from common.errors import ConfigError

if TYPE_CHECKING:
    from common.backbones.backbone import Backbone

backbones = typer.Typer(rich_markup_mode=None, no_args_is_help=True, add_completion=False)

_Reference = Annotated[
    str, typer.Argument(help="Its name, as in model.backbone; @ and weights may follow.", show_default=False)
]
_Folder = Annotated[Path, typer.Argument(help="The package's folder.", show_default=False)]
_Json = Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")]


@backbones.callback()
def look_at_backbones() -> None:
    """Look at the pre-trained backbones, and pack them into folders that can be carried."""


@backbones.command("list", epilog="Example: fedgraft backbones list --json")
def list_backbones(as_json: _Json = False) -> None:
    """Name the backbones: those that come with fedgraft and need no network first, then every other family.

    For comparison, pixels/8 (raw pixels of that size) and embedded/glyph@random-0 (untrained) work as well.
    """
    from common.backbones.registry import backbone_names
    from common.backbones.torchvision_family import model_names

    families = {
        "hf/FOLDER or hf/HUB-ID": "a model of the transformers library; :<n> sets the tokens or seconds of a record",
        "vectors/FILE": "static word vectors, such as GloVe or word2vec",
        "module/MODULE:FACTORY": "your own network in PyTorch",
        "tabular/identity or tabular/FILE": "rows of a table, its columns scaled by no constants or by yours",
        "spectrogram/BACKBONE": "sounds, by a backbone for images that looks at their spectrograms",
        "package/FOLDER": "what `fedgraft backbones pack` made",
        "pixels/SIZE": "the image itself, for comparison",
    }
    names = [f"torchvision/{name}" for name in model_names()]
    if as_json:
        typer.echo(json.dumps({"embedded": backbone_names(), "torchvision": names, "families": families}))
        return
    for name in (*backbone_names(), *names):
        typer.echo(name)
    for name, meaning in families.items():
        typer.echo(f"{name:<34}{meaning}")


@backbones.command("show", epilog="Example: fedgraft backbones show embedded/glyph")
def show_backbone(reference: _Reference, as_json: _Json = False) -> None:
    """Check a backbone's weights; say where it comes from and at which stages it can be cut."""
    from common.backbones.controls import load_reference

    backbone = load_reference(reference)
    parameters = sum(item.numel() for stage in backbone.stages.values() for item in stage.parameters())
    facts = {
        "name": backbone.name,
        "stages": list(backbone.stages),
        "parameters": parameters,
        "takes": sorted(backbone.preprocessing.accepts),
        "trained on": backbone.trained_on,
        "licence": backbone.licence,
        "digest": backbone.digest,
    }
    sizes = _sizes(backbone)
    if as_json:
        typer.echo(json.dumps({**facts, "values_after": sizes, "preprocessing": backbone.preprocessing.describe()}))
        return
    facts |= {"stages": ", ".join(backbone.stages), "parameters": f"{parameters:,}"}
    facts["takes"] = ", ".join(sorted(backbone.preprocessing.accepts))
    for name, value in facts.items():
        typer.echo(f"{name:<12}{value}")
    typer.echo("\ncut after   values a record")
    for name, size in sizes.items():
        typer.echo(f"{name:<12}{size:,}")


@backbones.command("pack", epilog="Example: fedgraft backbones pack torchvision/resnet18 --out packed/resnet18")
def pack_backbone(
    reference: _Reference,
    out: Annotated[Path, typer.Option("--out", help="A new folder for the package.", show_default=False)],
    weights: Annotated[
        Path | None,
        typer.Option(
            "--weights", help="Take torchvision's network with the weights of this .safetensors or .pth file."
        ),
    ] = None,
    centre_on: Annotated[
        str | None,
        typer.Option(
            "--centre-on",
            help="A PUBLIC data source to centre the features on, never a hospital's own; by default generated images.",
            metavar="SOURCE",
        ),
    ] = None,
    keys: Annotated[
        list[str] | None,
        typer.Option("--key", help="That source's own name of an array: ROLE=NAME.", metavar="ROLE=NAME"),
    ] = None,
    licence: Annotated[str | None, typer.Option(help="Of the weights; by default as they come.")] = None,
    trained_on: Annotated[str | None, typer.Option(help="Whose data they have seen; by default as they come.")] = None,
    as_json: _Json = False,
) -> None:
    """Write a backbone into a folder that can be carried into a closed network, and that no byte can change in unseen.

    Use it as package/FOLDER. The package of a module/… needs that module wherever it is used.
    """
    from common.backbones import package

    backbone = _loaded(reference, weights)
    backbone = replace(backbone, licence=licence or backbone.licence, trained_on=trained_on or backbone.trained_on)
    backbone, source = _centred(backbone, centre_on, keys or [])
    facts = package.save(backbone, out, source)
    _tell(out, facts, as_json)


@backbones.command("verify", epilog="Example: fedgraft backbones verify packed/resnet18")
def verify_package(folder: _Folder, as_json: _Json = False) -> None:
    """Check every byte of a package against its digest, and that its network can be built here."""
    from common.backbones.package import verify

    _tell(folder, verify(folder), as_json)


def _loaded(reference: str, weights: Path | None) -> Backbone:
    from common.backbones.controls import load_reference

    if weights is None:
        return load_reference(reference)
    if not reference.startswith("torchvision/"):
        raise ConfigError(
            f"--weights fills a network of torchvision's, but the backbone is {reference}; name torchvision/<model>, "
            "or load the weights in your own module/…"
        )
    from common.backbones.torchvision_family import load_file

    return load_file(reference, weights)


def _centred(backbone: Backbone, source: str | None, keys: list[str]) -> tuple[Backbone, str]:
    """The backbone with its constants, and what they were measured on."""
    from common.backbones.centring import MOST, STAGE, centred, centred_on
    from common.data import load_source
    from common.features import check_modality

    if source is None:
        if STAGE not in backbone.stages and "image" not in backbone.preprocessing.accepts:
            return backbone, ""
        return centred(backbone), "generated images that come with fedgraft"
    data = load_source(source, read_roles(keys), Path.cwd())
    check_modality(backbone, data.modality)
    return centred_on(backbone, data.inputs), f"{Path(source).name}, {min(len(data), MOST)} records"


def _sizes(backbone: Backbone) -> dict[str, int]:
    """How many values a record has after each stage."""
    import torch

    from common.grafting import flatten

    values: Any = backbone.preprocessing(backbone.preprocessing.blank())
    sizes = {}
    with torch.inference_mode():
        for name, stage in backbone.stages.items():
            values = stage(values)
            sizes[name] = flatten(values).shape[1]
    return sizes


def _tell(folder: Path, facts: Any, as_json: bool) -> None:
    """Print what a package is, and in which precision its features are computed here, which is measured once."""
    from common.backbones.package import load
    from common.precision import resolve

    size = sum(path.stat().st_size for path in folder.iterdir())
    precision = resolve("auto", load(f"package/{folder}"), None)
    if as_json:
        typer.echo(json.dumps({"folder": str(folder), "bytes": size, "precision": precision, **facts.model_dump()}))
        return
    rows = {
        "package": f"package/{folder}",
        "of": facts.name,
        "stages": ", ".join(facts.stages),
        "centred on": facts.centred_on or "nothing",
        "trained on": facts.trained_on,
        "licence": facts.licence,
        "size": f"{size / 1e6:,.1f} MB",
        "precision": f"{precision} on this machine",
        "digest": facts.digest,
    }
    for name, value in rows.items():
        typer.echo(f"{name:<12}{value}")

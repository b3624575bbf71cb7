"""Commands on the feature cache; what is heavy is imported inside each."""

from __future__ import annotations

import json
from typing import Annotated

import typer

cache = typer.Typer(rich_markup_mode=None, no_args_is_help=True, add_completion=False)


@cache.callback()
def look_at_cache() -> None:
    """Look at the cache of features, or empty it."""


@cache.command("show", epilog="Example: fedgraft cache show")
def show_cache(as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of text.")] = False) -> None:
    """Say where the features of past runs are kept, and how much they take."""
    from common.features import default_cache
    from common.segments import bytes_of

    kept = default_cache()
    facts = {"folder": str(kept.folder), "bytes": bytes_of(kept.folder), "most_bytes": kept.most_bytes}
    if as_json:
        typer.echo(json.dumps(facts))
        return
    typer.echo(f"folder      {kept.folder}")
    typer.echo(f"size        {bytes_of(kept.folder) / 2**20:,.1f} MiB of at most {kept.most_bytes / 2**20:,.0f} MiB")


@cache.command("purge", epilog="Example: fedgraft cache purge")
def purge_cache() -> None:
    """Delete all features; the next run computes them anew."""
    from common.features import default_cache

    freed = default_cache().purge()
    typer.echo(f"freed {freed / 2**20:,.1f} MiB")

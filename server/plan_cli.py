"""The command ``fedgraft server plan``: what a run would offer, for hospitals to read and approve beforehand."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def plan(
    config: Annotated[Path, typer.Argument(help="Configuration, TOML; as `fedgraft server run` takes it.")],
    out: Annotated[Path, typer.Option(help="File to write; give it to every hospital.")],
    overrides: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="SECTION.KEY=VALUE", help="Override a key; may be repeated.", show_default=False),
    ] = None,
) -> None:
    """Write down what a run would offer; `fedgraft node approve plan` approves it at a hospital."""
    from common.config import load_config
    from common.data.federation import held_by_server
    from common.errors import ConfigError
    from common.plan_file import FORMAT, plan_digest, plan_in_words, write_plan
    from server.coordinator import offer_of

    if out.exists() and FORMAT.encode() not in out.read_bytes()[:100]:
        raise ConfigError(f"a plan must replace nothing but a plan, but {out} is another; choose another file")
    chosen = load_config(config, overrides or [])
    offer = offer_of(chosen, "", held_by_server(chosen))
    write_plan(out, offer.model, offer.terms)
    typer.echo(f"plan    {plan_digest(offer.model, offer.terms)}")
    typer.echo(plan_in_words(offer.model, offer.terms))
    typer.echo(f"file    {out}   (hospitals: fedgraft node approve plan {out.name})")

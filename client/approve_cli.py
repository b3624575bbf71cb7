"""The commands ``fedgraft node approve``: what may run and be loaded here."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from client.command_line import Home, node_of

approve = typer.Typer(rich_markup_mode=None, no_args_is_help=True)


@approve.callback(epilog="Example: fedgraft node approve app")
def let() -> None:
    """Approve software and backbones; nothing else is ever run or loaded here."""


@approve.command("app", epilog="Example: fedgraft node approve app")
def approve_app(
    digest: Annotated[str | None, typer.Argument(help="SHA-256; by default this installation's own bundle.")] = None,
    home: Home = None,
) -> None:
    """Let the federation's software run here: the code that you have installed and can read, or another by digest."""
    import re
    from importlib.metadata import version

    from client.approvals import keep_approvals, read_approvals
    from common.bundle import app_digest
    from common.errors import ConfigError

    folder = node_of(home)
    own = app_digest()
    wanted = (digest or own).lower()
    if not re.fullmatch(r"[0-9a-f]{64}", wanted):
        raise ConfigError(f"expected a SHA-256 of 64 hexadecimal digits, got {digest!r}; the node's log shows it")
    note = f"fedgraft {version('fedgraft')}, as installed" if wanted == own else "by digest"
    keep_approvals(folder, read_approvals(folder).with_app(wanted, note))
    typer.echo(f"approved app {wanted} ({note})")


@approve.command("backbone", epilog="Example: fedgraft node approve backbone embedded/glyph")
def approve_backbone(
    reference: Annotated[str | None, typer.Argument(help="As `fedgraft backbones show` takes it.")] = None,
    digest: Annotated[
        str | None, typer.Option(help="Instead: let the server send the package with this SHA-256.", metavar="SHA256")
    ] = None,
    size_limit: Annotated[int, typer.Option(min=1, help="Megabytes that it may have at most.", metavar="MB")] = 2000,
    home: Home = None,
) -> None:
    """Let a backbone be used here: in the copy that a reference names, or in the one that the server sends."""
    import re

    from client.approvals import keep_approvals, read_approvals
    from common.backbones.controls import load_reference
    from common.config import resolved_reference
    from common.errors import ConfigError

    folder = node_of(home)
    if (reference is None) == (digest is None):
        raise ConfigError("expected a reference or --digest, got both or neither; name the copy, or what may be sent")
    if reference is None:
        wanted = str(digest).lower()
        if not re.fullmatch(r"[0-9a-f]{64}", wanted):
            raise ConfigError(f"expected a SHA-256 of 64 hexadecimal digits, got {digest!r}; the coordinator has it")
        keep_approvals(folder, read_approvals(folder).awaiting(wanted, size_limit * 1_000_000))
        typer.echo(
            f"approved a backbone by digest {wanted}, at most {size_limit} MB; the server sends it when it is needed"
        )
        return
    named = resolved_reference(reference, [Path.cwd()])
    backbone = load_reference(named)
    keep_approvals(folder, read_approvals(folder).with_backbone(backbone.digest, named))
    typer.echo(f"approved {named}, digest {backbone.digest}")
    typer.echo(f"licence {backbone.licence}; trained on {backbone.trained_on}")


@approve.command("list", epilog="Example: fedgraft node approve list")
def approve_list(home: Home = None) -> None:
    """Show what is approved."""
    from client.approvals import read_approvals

    approved = read_approvals(node_of(home))
    for kind, entries in (("app", approved.apps), ("backbone", approved.backbones)):
        for digest, words in entries.items():
            typer.echo(f"{kind:<9} {digest}  {words}")
    for digest, limit in approved.awaited.items():
        typer.echo(f"{'backbone':<9} {digest}  awaited from the server, at most {limit // 1_000_000} MB")

"""The commands ``fedgraft node approve``: what may run and be loaded here."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from client.command_line import Home, node_of

LEAST_DIGITS = 8

approve = typer.Typer(rich_markup_mode=None, no_args_is_help=True)


@approve.callback(epilog="Example: fedgraft node approve app")
def let() -> None:
    """Approve software, backbones, plans and other hospitals' keys, or take that back; nothing else is used here."""


@approve.command("app", epilog="Example: fedgraft node approve app")
def approve_app(
    digest: Annotated[str | None, typer.Argument(help="SHA-256; by default this installation's own bundle.")] = None,
    home: Home = None,
) -> None:
    """Let the federation's software run here: the code that you have installed and can read, or another by digest."""
    from importlib.metadata import version

    from client.approvals import changing_approvals, keep_approvals, read_approvals
    from common.bundle import app_digest

    folder = node_of(home)
    own = app_digest()
    wanted = _digest(digest or own)
    note = f"fedgraft {version('fedgraft')}, as installed" if wanted == own else "by digest"
    with changing_approvals(folder):
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
    """Let a backbone be used here: in the copy that a reference names, or in the one that the coordinator sends."""
    from client.approvals import changing_approvals, keep_approvals, read_approvals
    from common.errors import ConfigError

    folder = node_of(home)
    if (reference is None) == (digest is None):
        raise ConfigError("expected a reference, or --digest and what may be sent, got both or neither; give one")
    if digest is not None:
        wanted = _digest(digest)
        with changing_approvals(folder):
            keep_approvals(folder, read_approvals(folder).with_sent(wanted, size_limit * 1_000_000))
        typer.echo(f"approved backbone {wanted}, which the coordinator may send, at most {size_limit} MB")
        return
    from common.backbones.controls import load_reference
    from common.config import resolved_reference

    named = resolved_reference(str(reference), [Path.cwd()])
    backbone = load_reference(named)
    with changing_approvals(folder):
        keep_approvals(folder, read_approvals(folder).with_backbone(backbone.digest, named))
    typer.echo(f"approved {named}, digest {backbone.digest}")
    typer.echo(f"licence {backbone.licence}; trained on {backbone.trained_on}")


@approve.command("plan", epilog="Example: fedgraft node approve plan plan.json")
def approve_plan(
    plan: Annotated[str, typer.Argument(help="File from `fedgraft server plan`, or the digest that the log shows.")],
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
    home: Home = None,
) -> None:
    """Let runs with this plan in; it matters where node.toml says approved_plans_only = true."""
    from client.approvals import changing_approvals, keep_approvals, read_approvals
    from client.node_config import load_node_config
    from common.plan_file import plan_digest, plan_in_words, read_plan

    folder = node_of(home)
    config = load_node_config(folder)
    if Path(plan).exists():
        model, terms = read_plan(Path(plan))
        digest, words = plan_digest(model, terms), plan_in_words(model, terms)
        typer.echo(f"plan {digest}\n{words}\nclasses {', '.join(map(ascii, model.classes))}")
        if not yes and not typer.confirm("let runs with this plan in?"):
            raise typer.Abort
    else:
        digest, words = _digest(plan, "a file of `fedgraft server plan`, or "), "by digest"
    with changing_approvals(folder):
        keep_approvals(folder, read_approvals(folder).with_plan(digest, words))
    typer.echo(f"approved plan {digest}")
    if not config.privacy.approved_plans_only:
        typer.echo("note: node.toml joins any plan within its caps; set privacy.approved_plans_only = true")


@approve.command("peers", epilog="Example: fedgraft node approve peers peers.pub")
def approve_peers(
    file: Annotated[Path, typer.Argument(help="The node.key.pub of every hospital, this one too, one a line.")],
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
    home: Home = None,
) -> None:
    """Take part in secure sums with these hospitals, and with nobody whose key is another."""
    from client.approvals import changing_approvals
    from client.node_config import load_node_config
    from client.peers import PEERS, changes, check_own, keep_peers
    from common.secagg.roster import read_roster

    folder = node_of(home)
    roster = read_roster(file)
    check_own(folder, load_node_config(folder).node.name, roster)
    before = read_roster(folder / PEERS) if (folder / PEERS).exists() else None
    typer.echo(f"peers {roster.digest}\n{roster.in_words()}")
    for line in changes(before, roster):
        typer.echo(line)
    if not yes and not typer.confirm("have you compared each fingerprint with that hospital, by telephone?"):
        raise typer.Abort
    with changing_approvals(folder):
        keep_peers(folder, roster)
    typer.echo(f"approved peers {roster.digest}")


@approve.command("withdraw", epilog="Example: fedgraft node approve withdraw 4f2a9c31")
def withdraw(
    digest: Annotated[str, typer.Argument(help="Of an app, a backbone, a plan or peers; its beginning is enough.")],
    home: Home = None,
) -> None:
    """Take an approval back; it holds from the next message on."""
    from client.approvals import changing_approvals, keep_approvals, read_approvals
    from client.sent_backbones import delete_sent
    from common.errors import ConfigError

    folder = node_of(home)
    with changing_approvals(folder):
        approved = read_approvals(folder)
        listed = [(kind, one) for kind, part in approved.kinds() for one in part]
        found = [(kind, one) for kind, one in listed if one.startswith(digest.lower()) and len(digest) >= LEAST_DIGITS]
        if len(found) != 1:
            raise ConfigError(
                f"expected the digest of one approval, or at least its first {LEAST_DIGITS} digits, got {digest!r}, "
                f"which fits {len(found)}; `fedgraft node approve list` shows them"
            )
        ((kind, whole),) = found
        keep_approvals(folder, approved.without(whole))
    deleted = delete_sent(folder, whole)
    typer.echo(f"withdrawn from {kind}: {whole}{'; what was sent of it is deleted' if deleted else ''}")


@approve.command("list", epilog="Example: fedgraft node approve list")
def approve_list(home: Home = None) -> None:
    """Show what is approved."""
    from client.approvals import read_approvals

    for kind, entries in read_approvals(node_of(home)).kinds():
        for digest, words in entries.items():
            typer.echo(f"{kind.removesuffix('s'):<9} {digest}  {words}")


def _digest(text: str, instead: str = "") -> str:
    """A whole digest; ``instead`` is what else could have been given.

    Raises:
        ConfigError: it is none.
    """
    import re

    from common.errors import ConfigError

    if not re.fullmatch(r"[0-9a-f]{64}", text.lower()):
        raise ConfigError(
            f"expected {instead}a SHA-256 of 64 hexadecimal digits, got {text!r}; the node's log, or the coordinator, "
            "has it"
        )
    return text.lower()

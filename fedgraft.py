"""The front door: one command, ``fedgraft``, whose sub-commands are imported when they are used.

Exit status: 0 fine, 1 unexpected (or stdout takes nothing), 2 unusable input (`ConfigError`, or a wrong option), 3 a
privacy promise would break (`PrivacyError`), 4 a peer sent something unusable (`ProtocolError`), 130 interrupted. Every
refusal is one line ``error: …`` on stderr (several mistakes in one configuration: a line each below it); with
``--json`` stdout carries ``{"error": {"kind", "message", "status"}}`` as well. ``raise KeyboardInterrupt("…")`` is how
a command that was interrupted says how to go on.
"""

from __future__ import annotations

import sys

if sys.version_info < (3, 11):  # noqa: UP036 (older ones get this far in a checkout, and deserve a sentence)
    sys.exit(f"fedgraft needs Python 3.11 or newer, this is {sys.version.split()[0]}; install a newer one")

import atexit
import difflib
import importlib
import io
import json
import logging
import os
import re
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Annotated, NoReturn

import click
import typer
import typer.core
import typer.main

from common.errors import ConfigError, FederationError, PrivacyError, ProtocolError
from common.printable import printable

typer.core.HAS_RICH = False  # plain help, a fifth of the time; with rich, brackets come out escaped

STATUS = {ConfigError: 2, PrivacyError: 3, ProtocolError: 4}
INTERRUPTED = 130


@dataclass(frozen=True)
class LazyCommand:
    """A sub-command that is imported on use: ``module:attribute`` names a function for Typer, or a Typer app."""

    target: str
    summary: str
    example: str


COMMANDS = {
    "simulate": LazyCommand(
        "simulations.cli:simulate",
        "Simulate a federation of hospitals on this machine.",
        "fedgraft simulate simulations/configs/digits.toml --out runs/first",
    ),
    "node": LazyCommand(
        "client.cli:node",
        "Run a hospital's node.",
        "fedgraft node check",
    ),
    "server": LazyCommand(
        "server.cli:server",
        "Coordinate a federation of real hospitals.",
        "fedgraft server status",
    ),
    "predict": LazyCommand(
        "common.cli:predict",
        "Say of new records what a trained model makes of them.",
        "fedgraft predict runs/first/model digit.png",
    ),
    "backbones": LazyCommand(
        "simulations.rank_cli:backbones",
        "Look at the pre-trained backbones, rank them for data, or pack one.",
        "fedgraft backbones list",
    ),
    "cache": LazyCommand(
        "common.cache_cli:cache",
        "Look at the cache of features, or empty it.",
        "fedgraft cache show",
    ),
    "data": LazyCommand(
        "common.data_cli:data",
        "Look at a data set before a run.",
        "fedgraft data check digits",
    ),
    "audit": LazyCommand(
        "simulations.audits.cli:audit",
        "Check a run's privacy promise: from above by its ledgers, from below by attacks.",
        "fedgraft audit ledger runs/first/ledgers/node-000.sqlite",
    ),
}


class _StoppedError(Exception):
    """Ctrl-C, on its way past Typer, which would keep what it says to itself."""


class LazyGroup(typer.core.TyperGroup):
    """Lists `COMMANDS` without importing them, and imports the one that is called."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Name the sub-commands in their order."""
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import the sub-command."""
        lazy = COMMANDS.get(cmd_name)
        return None if lazy is None else _load(cmd_name, lazy)

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Find the sub-command, or name the nearest one."""
        if args[0] not in COMMANDS:
            nearest = difflib.get_close_matches(args[0], COMMANDS, n=1)
            hint = f"did you mean {nearest[0]}?" if nearest else f"the commands are {', '.join(COMMANDS)}"
            ctx.fail(f"there is no command {args[0]}; {hint}")
        return super().resolve_command(ctx, args)

    def invoke(self, ctx: click.Context) -> object:
        """Run the sub-command."""
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt as error:
            raise _StoppedError(str(error) or "interrupted") from error

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write their summaries, still without importing them."""
        with formatter.section("Commands"):
            formatter.write_dl([(name, lazy.summary) for name, lazy in COMMANDS.items()])


app = typer.Typer(
    cls=LazyGroup,
    rich_markup_mode=None,
    no_args_is_help=True,
    epilog="Example: fedgraft simulate simulations/configs/digits.toml --out runs/first",
)


def _show_version(wanted: bool) -> None:
    """Print the version and stop."""
    if wanted:
        from importlib.metadata import version

        typer.echo(f"fedgraft {version('fedgraft')}")
        raise typer.Exit


@app.callback()
def fedgraft(
    version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Show the version and stop.")
    ] = False,
) -> None:
    """Federated transfer learning with differential privacy, for hospitals."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command line and return its exit status.

    Args:
        arguments: what follows ``fedgraft``; by default, those of this process.

    Returns:
        The exit status, see this module's docstring.
    """
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    _prepare_output()
    # threads that spin while they wait make a forward pass 25 times slower as soon as another process wants the core
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    try:
        result = typer.main.get_command(app).main(arguments, prog_name="fedgraft", standalone_mode=False)
        sys.stdout.flush()
        return result if isinstance(result, int) else 0
    except FederationError as error:
        return _refuse(error, arguments)
    except click.exceptions.NoArgsIsHelpError as error:
        print(error.format_message(), file=sys.stderr)
        return STATUS[ConfigError]
    except click.ClickException as error:
        return _refuse(ConfigError(_usage(error)), arguments)
    except (_StoppedError, click.Abort) as error:
        print(str(error) or "stopped", file=sys.stderr)
        return INTERRUPTED
    except BrokenPipeError:  # the reader of our output has left, as in `fedgraft … | head`
        _drop_output()
        return 1
    except OSError as error:
        if _takes_output():
            raise
        _drop_output()
        print(
            f"error: what the command says cannot be written ({error.strerror}); direct it elsewhere", file=sys.stderr
        )
        return 1


def console() -> NoReturn:
    """Run this process's command line and end the process at once.

    Python would first take apart all that was imported, for one to two seconds where torch is part of it.
    """
    status = main()
    atexit._run_exitfuncs()
    logging.shutdown()
    with suppress(OSError):
        sys.stdout.flush()
        sys.stderr.flush()
    os._exit(status)


def _prepare_output() -> None:
    """Have stdout and stderr take every character, if only as a question mark; where one is closed, it goes nowhere."""
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, "w", encoding="utf-8"))  # noqa: PTH123, SIM115 (while the process lives)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")


def _takes_output() -> bool:
    """Whether stdout takes another line."""
    try:
        print(flush=True)
    except OSError:
        return False
    return True


def _drop_output() -> None:
    """Send what is waiting for stdout nowhere, so that the end of the process does not try it again."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _load(name: str, lazy: LazyCommand) -> click.Command:
    """Import a sub-command and give its help the example."""
    module, _, attribute = lazy.target.partition(":")
    target = getattr(importlib.import_module(module), attribute)
    if not isinstance(target, typer.Typer):
        single = typer.Typer(rich_markup_mode=None, add_completion=False)
        single.command(name, no_args_is_help=True)(target)
        target = single
    command = typer.main.get_command(target)
    command.name, command.epilog = name, f"Example: {lazy.example}"
    return command


def _usage(error: click.ClickException) -> str:
    """Say what is wrong with a command line, and where its help is."""
    context = error.ctx if isinstance(error, click.UsageError) else None
    command = context.command_path if context else "fedgraft"
    said = re.sub(r"( Did you mean [^?]*\?)\1", r"\1", error.format_message())  # Typer adds what click has said
    return f"{said.rstrip('.')}; see {command} --help"


def _refuse(error: FederationError, arguments: Sequence[str]) -> int:
    """Print a refusal and return its status."""
    status = next((code for kind, code in STATUS.items() if isinstance(error, kind)), 1)
    print("\n".join(map(printable, f"error: {error}".split("\n"))), file=sys.stderr)
    if "--json" in arguments:
        print(json.dumps({"error": {"kind": type(error).__name__, "message": str(error), "status": status}}))
    return status


if __name__ == "__main__":
    console()

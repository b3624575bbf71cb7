"""The command line: quick help, one line for each refusal, exit statuses that scripts can rely on."""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
from pathlib import Path

import click
import pytest
import typer

import fedgraft
from common.errors import BudgetSpentError, ConfigError, FederationError, PrivacyError, ProtocolError

HEAVY = ("torch", "torchvision", "flwr", "ray", "opacus", "numpy", "scipy", "sklearn", "matplotlib", "pydantic", "rich")
ROOT = Path(__file__).parents[1]


def all_commands(command: click.Command, path: tuple[str, ...] = ()) -> list[tuple[str, ...]]:
    """Name every command and sub-command."""
    found = [path]
    if isinstance(command, click.Group):
        context = click.Context(command)
        for name in command.list_commands(context):
            child = command.get_command(context, name)
            assert child is not None
            found += all_commands(child, (*path, name))
    return found


COMMANDS = all_commands(typer.main.get_command(fedgraft.app))


def raising(error: BaseException) -> str:
    """Return the target of a command that raises ``error``, to be run in place of a real one."""

    def command(as_json: bool = typer.Option(False, "--json"), go: bool = typer.Option(False)) -> None:
        raise error

    globals()["failing_command"] = command
    return f"{__name__}:failing_command"


@pytest.fixture
def failing():
    """Register a command ``fail`` that raises what it is told to, for one test."""

    def register(error: BaseException) -> None:
        fedgraft.COMMANDS["fail"] = fedgraft.LazyCommand(raising(error), "Fails.", "fedgraft fail")

    yield register
    fedgraft.COMMANDS.pop("fail", None)


def test_help_imports_nothing_heavy():
    script = f"""
import sys, fedgraft
fedgraft.main(["--help"])
heavy = set({HEAVY!r}) & set(sys.modules)
assert not heavy, heavy
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, cwd=ROOT, check=False)
    assert done.returncode == 0, done.stderr
    assert "simulate" in done.stdout


def test_version(capsys):
    assert fedgraft.main(["--version"]) == 0
    assert capsys.readouterr().out.startswith("fedgraft 0.")


@pytest.mark.parametrize("path", COMMANDS, ids=lambda path: " ".join(path) or "fedgraft")
def test_every_help_ends_with_an_example_of_that_command(path, capsys):
    assert fedgraft.main([*path, "--help"]) == 0
    last = capsys.readouterr().out.rstrip().split("\n\n")[-1]
    assert " ".join(last.split()).startswith(f"Example: {' '.join(('fedgraft', *path))}")


@pytest.mark.parametrize("path", COMMANDS, ids=lambda path: " ".join(path) or "fedgraft")
def test_every_option_and_argument_is_explained(path, capsys):
    command = typer.main.get_command(fedgraft.app)
    for name in path:
        assert isinstance(command, click.Group)
        child = command.get_command(click.Context(command), name)
        assert child is not None
        command = child
    for parameter in command.params:
        assert getattr(parameter, "help", None), parameter.name


def test_the_examples_on_data_and_backbones_work(capsys):
    assert fedgraft.main(["data", "check", "digits"]) == 0
    assert "records     1,797" in capsys.readouterr().out
    assert fedgraft.main(["backbones", "list"]) == 0
    assert "embedded/glyph" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (FederationError("odd"), 1),
        (ConfigError("bad key"), 2),
        (PrivacyError("no more budget"), 3),
        (BudgetSpentError("no more budget"), 3),
        (ProtocolError("nonsense from a peer"), 4),
    ],
)
def test_a_refusal_is_one_line_and_a_status(failing, capsys, error, status):
    failing(error)
    assert fedgraft.main(["fail", "--go"]) == status
    assert capsys.readouterr() == ("", f"error: {error}\n")


def test_a_refusal_sends_no_command_to_the_terminal(failing, capsys):
    failing(ConfigError("no file \x1b[31mred\udce9\nnor another"))
    assert fedgraft.main(["fail", "--go"]) == 2
    assert capsys.readouterr().err == "error: no file \\x1b[31mred\\udce9\nnor another\n"


def test_a_refusal_in_json_names_its_kind(failing, capsys):
    failing(PrivacyError("no more budget"))
    assert fedgraft.main(["fail", "--json"]) == 3
    out, err = capsys.readouterr()
    assert json.loads(out) == {"error": {"kind": "PrivacyError", "message": "no more budget", "status": 3}}
    assert err == "error: no more budget\n"


@pytest.mark.parametrize(
    ("interrupt", "said"),
    [(KeyboardInterrupt(), "interrupted"), (KeyboardInterrupt("continue with --resume"), "continue with --resume")],
)
def test_an_interrupt_is_a_sentence(failing, capsys, interrupt, said):
    failing(interrupt)
    assert fedgraft.main(["fail", "--go"]) == 130
    assert said in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["simulat"], "error: there is no command simulat; did you mean simulate?; see fedgraft --help"),
        (["zzz"], "error: there is no command zzz; the commands are simulate, "),
        (["data", "chek"], "error: No such command 'chek'. Did you mean 'check'?; see fedgraft data --help\n"),
        (["--jso"], "error: No such option '--jso'"),
        (["data", "check"], "error: Missing argument 'SOURCE'; see fedgraft data check --help\n"),
        (["data"], "Usage: fedgraft data "),
        (["data", "check", "digits", "--key", "image=x"], "error: expected --key ROLE=NAME with a role out of images"),
    ],
)
def test_a_wrong_command_line_is_told_so(capsys, arguments, said):
    assert fedgraft.main(arguments) == 2
    assert said in capsys.readouterr().err


def test_a_bug_keeps_its_traceback(failing):
    failing(ZeroDivisionError())
    with pytest.raises(ZeroDivisionError):
        fedgraft.main(["fail", "--go"])


def run_in_shell(command: str, **surroundings: str) -> subprocess.CompletedProcess[bytes]:
    """Run a shell's line, in which $FEDGRAFT is the front door."""
    door = f"{shlex.quote(sys.executable)} {shlex.quote(str(ROOT / 'fedgraft.py'))}"
    line = command.replace("$FEDGRAFT", door)
    return subprocess.run(["sh", "-c", line], capture_output=True, env=os.environ | surroundings, check=False)


def test_characters_that_the_output_cannot_hold_become_question_marks(tmp_path):
    (tmp_path / "rows.csv").write_text("text,label\ncough,\u03b5\nfever,b\n", encoding="utf-8")
    done = run_in_shell(f"$FEDGRAFT data check {tmp_path / 'rows.csv'}", PYTHONIOENCODING="latin-1")
    assert done.stderr == b""
    assert b"? (1)" in done.stdout


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_a_full_output_is_a_sentence():
    done = run_in_shell("$FEDGRAFT --version > /dev/full")
    assert (done.returncode, done.stdout) == (1, b"")
    expected = "error: what the command says cannot be written (No space left on device); direct it elsewhere\n"
    assert done.stderr.decode() == expected


@pytest.mark.parametrize("closed", [">&-", "2>&-", ">&- 2>&-"])
def test_a_closed_output_does_no_harm(closed):
    done = run_in_shell(f"$FEDGRAFT --version {closed}")
    assert (done.returncode, done.stderr) == (0, b"")


def test_an_error_that_is_not_the_outputs_keeps_its_traceback(failing):
    failing(OSError(28, "No space left on device"))
    with pytest.raises(OSError, match="No space"):
        fedgraft.main(["fail", "--go"])

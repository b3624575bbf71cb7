"""What is documented is what there is: keys, commands, examples, links, and the fields of a result."""

from __future__ import annotations

import doctest
import json
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import click
import pytest
import typer.main

import fedgraft
from common.config import RunConfig, load_config
from common.config_mistakes import fields_by_key, sections

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "configuration.md").read_text(encoding="utf-8")
KEYS = [(section, key) for section, part in sections(RunConfig).items() for key in part.model_fields]
PAGES = [ROOT / "README.md", ROOT / "CHANGELOG.md", *sorted((ROOT / "docs").rglob("*.md"))]
BY_NODE = {"epsilon_per_node", "partition", "node_accuracy", "open_reservations", "versions"}  # keys are names


def named(path: Path) -> str:
    """Name a page in test ids."""
    return str(path.relative_to(ROOT))


def text_of(path: Path) -> str:
    """Read a page."""
    return path.read_text(encoding="utf-8")


def blocks(path: Path, *languages: str) -> list[str]:
    """Return a page's fenced blocks in these languages."""
    found = re.findall(r"^```(\w*)\n(.*?)^```$", text_of(path), re.MULTILINE | re.DOTALL)
    return [body for language, body in found if language in languages]


def commands(path: Path) -> list[list[str]]:
    """Return the arguments of every ``fedgraft`` line in a page's blocks, comments left out."""
    lines = "".join(blocks(path, "", "sh")).splitlines()
    return [shlex.split(line, comments=True)[1:] for line in lines if line.startswith("fedgraft ")]


def documented(section: str) -> dict[str, list[str]]:
    """Return the rows of a section's table by key: what it accepts, its default, its meaning."""
    text = re.search(rf"^## \[{section}\]$(.*?)(?=^## |\Z)", PAGE, re.MULTILINE | re.DOTALL)
    assert text, f"docs/configuration.md has no section [{section}]"
    rows = [line.strip("| ").split(" | ") for line in text[1].splitlines() if line.startswith("| `")]
    return {row[0].strip("`"): row[1:] for row in rows}


def default_in_words(section: str, key: str) -> str:
    """Write a default as the page does."""
    field = sections(RunConfig)[section].model_fields[key]
    if field.is_required():
        return "required"
    match field.default:
        case None:
            return "not given"
        case bool():
            return f"`{str(field.default).lower()}`"
        case str():
            return f'`"{field.default}"`'
        case _:
            return f"`{field.default}`"


@pytest.mark.parametrize(("section", "key"), KEYS)
def test_every_configuration_key_is_documented(section, key):
    accepts, default, meaning = documented(section)[key]
    assert accepts == fields_by_key(RunConfig)[f"{section}.{key}"].words
    assert default == default_in_words(section, key)
    assert len(meaning) > 10


def test_no_other_key_is_documented():
    for section, part in sections(RunConfig).items():
        assert set(documented(section)) == set(part.model_fields)


@pytest.mark.parametrize("path", sorted((ROOT / "simulations" / "configs").glob("*.toml")), ids=lambda path: path.stem)
def test_every_configuration_that_ships_is_valid(path):
    assert load_config(path).privacy.epsilon > 0


@pytest.mark.parametrize("page", PAGES, ids=named)
def test_every_command_on_a_page_has_its_options_and_a_valid_configuration(page):
    for arguments in commands(page):
        command: click.Command = typer.main.get_command(fedgraft.app)
        names = list(arguments)
        while isinstance(command, click.Group):
            child = command.get_command(click.Context(command), names.pop(0))
            assert child is not None, arguments
            command = child
        known = {option for parameter in command.params for option in parameter.opts} | {"--help"}
        assert {name for name in names if name.startswith("--")} <= known, arguments
        if command.name == "simulate" and (files := [name for name in names if name.endswith(".toml")]):
            changes = [names[at + 1] for at, name in enumerate(names) if name == "--set"]
            if (ROOT / files[0]).exists():
                load_config(ROOT / files[0], changes)


def anchors(path: Path) -> set[str]:
    """Return the anchors that a page's headings give."""
    headings = re.findall(r"^#+ (.*)$", text_of(path), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=named)
def test_every_relative_link_leads_somewhere(page):
    for link in re.findall(r"\]\(([^)\s]+)\)", text_of(page)):
        if not re.match(r"\w+:", link):
            file, _, anchor = link.partition("#")
            target = page.parent / file if file else page
            assert target.exists(), f"{named(page)}: {link}"
            assert not anchor or anchor in anchors(target), f"{named(page)}: {link}"


@pytest.mark.parametrize("page", PAGES, ids=named)
def test_every_file_that_a_page_names_exists(page):
    folders = "common|client|server|simulations|tests|docs"
    for name in re.findall(rf"`((?:{folders})/[\w./-]+?\.(?:py|md|toml))`", text_of(page)):
        assert (ROOT / name).exists(), f"{named(page)}: {name}"


@pytest.fixture(scope="module")
def walk(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder in which the README's runs were made, by its own commands."""
    place = tmp_path_factory.mktemp("walk")
    before = Path.cwd()
    os.chdir(place)
    for arguments in commands(ROOT / "README.md"):
        if arguments[0] == "simulate" and "--resume" not in arguments:
            arguments = [str(ROOT / item) if item.endswith(".toml") else item for item in arguments]
            assert fedgraft.main(arguments) == 0
    yield place
    os.chdir(before)


@pytest.mark.slow
def test_the_readme_leads_from_a_run_to_a_prediction(walk, capsys):
    for snippet in blocks(ROOT / "README.md", "python"):
        subprocess.run([sys.executable, "-c", snippet], check=True, env={**os.environ, "PYTHONPATH": str(ROOT)})
    for arguments in commands(ROOT / "README.md"):
        if arguments[0] != "simulate":
            assert fedgraft.main(arguments) == 0
    said = capsys.readouterr().out
    assert "records     1,797" in said
    assert "embedded/glyph" in said
    assert re.search(r"^digit.png  0  ", said, re.MULTILINE)


@pytest.mark.slow
@pytest.mark.parametrize("page", [ROOT / "docs" / "auditor.md", ROOT / "docs" / "researcher.md"], ids=named)
def test_examples_on_a_page_say_what_they_say(page, walk):
    source = "\n".join(blocks(page, "python"))
    assert ">>>" in source
    example = doctest.DocTestParser().get_doctest(source, {}, named(page), str(page), 0)
    said: list[str] = []
    assert doctest.DocTestRunner().run(example, out=said.append).failed == 0, "".join(said)


@pytest.mark.slow
def test_the_file_that_the_guide_makes_can_be_checked_and_trained_on(walk, capsys):
    page = ROOT / "docs" / "researcher.md"
    (making,) = [block for block in blocks(page, "python") if "savez" in block]
    exec("\n".join(example.source for example in doctest.DocTestParser().get_examples(making)), {})
    for arguments in commands(page):
        if "scans.npz" in " ".join(arguments):
            assert fedgraft.main([str(ROOT / item) if item.endswith(".toml") else item for item in arguments]) == 0
    assert "sites       2" in capsys.readouterr().out


@pytest.mark.slow
def test_a_chain_is_verified_without_the_nodes_code(walk):
    first = blocks(ROOT / "docs" / "auditor.md", "python")[0]
    code = "\n".join(example.source for example in doctest.DocTestParser().get_examples(first))
    code += "\nimport sys; print(*{name.partition('.')[0] for name in sys.modules})"
    done = subprocess.run(
        [sys.executable, "-c", code],
        check=True,
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    assert not {"client", "server", "simulations", "flwr", "torch"} & set(done.stdout.splitlines()[-1].split())


def fields(value: Mapping[str, Any]) -> set[str]:
    """Return the keys of a result, those of its parts included, but not names of nodes or classes."""
    inner = (fields(part) for key, part in value.items() if isinstance(part, dict) and key not in BY_NODE)
    return set(value).union(*inner)


@pytest.mark.slow
def test_every_field_of_a_result_is_documented(walk):
    text = text_of(ROOT / "docs" / "researcher.md")
    result = json.loads((walk / "runs" / "first" / "result.json").read_text())
    line = json.loads((walk / "runs" / "first" / "rounds.jsonl").read_text().splitlines()[0])
    described = set(re.findall(r"`(\w+)`", text))
    assert fields(result) <= described
    assert set(line) <= described
    left = {path.name for path in (walk / "runs" / "first").iterdir()}
    named_files = {name.rstrip("/") for name in re.findall(r"`([\w.-]+/?)`", text)}
    assert left <= named_files

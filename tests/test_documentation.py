"""What is documented is what there is."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from common.config import RunConfig, load_config
from common.config_mistakes import fields_by_key, sections

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "configuration.md").read_text(encoding="utf-8")
KEYS = [(section, key) for section, part in sections(RunConfig).items() for key in part.model_fields]


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


def test_examples_on_the_page_are_valid():
    for flags in re.findall(r"fedgraft simulate (\S+) (.*)", PAGE):
        path, options = flags
        load_config(ROOT / path, re.findall(r"--set (\S+)", options))

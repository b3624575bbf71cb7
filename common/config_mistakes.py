"""Says what is wrong with a configuration: every mistake, each with its key, what was expected and what came."""

from __future__ import annotations

import datetime
import difflib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel, ValidationError


@dataclass(frozen=True)
class Expected:
    """What a key accepts, in words; attached to its type, quoted in messages and in the documentation."""

    words: str


def fields_by_key(model: type[BaseModel]) -> dict[str, Expected]:
    """Return what each ``section.key`` of a model made of sections expects, in the order of their declaration."""
    return {
        f"{section}.{key}": next(item for item in field.metadata if isinstance(item, Expected))
        for section, part in sections(model).items()
        for key, field in part.model_fields.items()
    }


def sections(model: type[BaseModel]) -> dict[str, type[BaseModel]]:
    """Return the section models of a configuration by name."""
    named = {name: field.annotation for name, field in model.model_fields.items()}
    return {name: part for name, part in named.items() if isinstance(part, type) and issubclass(part, BaseModel)}


def find_mistakes(model: type[BaseModel], error: ValidationError) -> list[str]:
    """Turn pydantic's report on ``model`` into sentences.

    Args:
        model: the configuration, made of sections.
        error: what its validation raised.

    Returns:
        One sentence a mistake, without repetition, in the order in which pydantic found them. A missing key whose
        misspelt form is reported already is left out.
    """
    expected = fields_by_key(model)
    unknown = {_key(item["loc"]): item["input"] for item in error.errors() if item["type"] == "extra_forbidden"}
    guesses = {key: _nearest(key, value, model) for key, value in unknown.items()}
    found: dict[str, str] = {}
    for item in error.errors():
        key = _key(item["loc"])
        if not key:  # a relation between sections, in its own words
            found.setdefault(key, str(item["ctx"]["error"]))
        elif key in unknown:
            found.setdefault(key, f"{key}: {_unknown(key, guesses[key], model)}")
        elif item["type"] != "missing":
            found.setdefault(key, f"{key}: {_wrong(key, item, expected)}")
        elif not {key, key.partition(".")[0]} & set(guesses.values()):
            found.setdefault(key, f"{key}: expected {expected[key].words}, but it is missing")
    return list(found.values())


def show(value: object) -> str:
    """Write a value as TOML would, shortened; tables and lists only by their kind."""
    match value:
        case str():
            text = json.dumps(value, ensure_ascii=False)
        case bool() | None:
            text = json.dumps(value)
        case datetime.date() | datetime.time():
            text = f"the date or time {value.isoformat()}"
        case Mapping():
            text = "a table"
        case list() | tuple():
            text = "a list"
        case _:
            text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."


def closest(word: str, choices: Iterable[str]) -> str | None:
    """Return the choice that ``word`` was probably meant to be, or None."""
    return next(iter(difflib.get_close_matches(word, list(choices), n=1, cutoff=0.6)), None)


def _key(location: tuple[int | str, ...]) -> str:
    """Join the section and the key of pydantic's location (what follows names a branch of a union)."""
    return ".".join(str(part) for part in location[:2])


def _nearest(key: str, value: Any, model: type[BaseModel]) -> str | None:
    """Return the section, or the ``section.key`` (same section first), that an unknown one was meant to be."""
    parts = sections(model)
    section, _, name = key.rpartition(".")
    if not section and isinstance(value, Mapping):
        return closest(name, parts)
    if section and (guess := closest(name, parts[section].model_fields)):
        return f"{section}.{guess}"
    elsewhere = {known: f"{other}.{known}" for other, part in parts.items() for known in part.model_fields}
    return elsewhere.get(closest(name, elsewhere) or "")


def _unknown(key: str, guess: str | None, model: type[BaseModel]) -> str:
    """Explain an unknown key or section."""
    section, _, name = key.rpartition(".")
    if guess is None and section:
        return f"unknown key; [{section}] has {', '.join(sections(model)[section].model_fields)}"
    if guess is None:
        return f"unknown section; the sections are {', '.join(sections(model))}"
    if "." not in guess:
        return f"unknown section; did you mean [{guess}]?"
    if guess.endswith(f".{name}"):
        return f"belongs in the section [{guess.partition('.')[0]}]"
    return f"unknown key; did you mean {guess}?"


def _wrong(key: str, item: Any, expected: Mapping[str, Expected]) -> str:
    """Explain a value that does not fit; a validator's own words win over the type's."""
    if item["type"] == "value_error":
        return str(item["ctx"]["error"])
    if key not in expected:
        return f"expected a table (a section), came {show(item['input'])}"
    return f"expected {expected[key].words}, came {show(item['input'])}"

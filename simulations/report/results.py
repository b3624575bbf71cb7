"""A finished run as its folder tells it, read so that what is missing, null or NaN is simply not there."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from common.errors import ConfigError

RESULT, ROUNDS, CONFIG = "result.json", "rounds.jsonl", "config.toml"
UNPRINTABLE = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")


@dataclass(frozen=True)
class Facts:
    """One JSON object; every question about it is answered by a value of the asked type or by ``None``.

    >>> facts = Facts({"privacy": {"delta": 1e-5, "epsilon_budget": float("nan")}})
    >>> facts.number("privacy", "delta"), facts.number("privacy", "epsilon_budget"), facts.text("seed")
    (1e-05, None, None)
    """

    values: Mapping[str, Any] = field(default_factory=dict)

    def get(self, *path: str) -> Any:
        """Return what lies at ``path``, or ``None``."""
        value: Any = self.values
        for key in path:
            value = value.get(key) if isinstance(value, Mapping) else None
        return value

    def number(self, *path: str) -> float | None:
        """Return the finite number at ``path``."""
        return finite(self.get(*path))

    def count(self, *path: str) -> int | None:
        """Return the number at ``path`` as a whole one."""
        value = self.number(*path)
        return None if value is None else round(value)

    def text(self, *path: str) -> str | None:
        """Return the non-empty text, or the scalar as text, at ``path``."""
        value = self.get(*path)
        if isinstance(value, str):
            return value or None
        return str(value) if finite(value) is not None else None

    def flag(self, *path: str) -> bool:
        """Return whether ``path`` holds exactly ``true``."""
        return self.get(*path) is True

    def items(self, *path: str) -> dict[str, Any]:
        """Return the object at ``path``, empty when there is none."""
        value = self.get(*path)
        return {str(key): item for key, item in value.items()} if isinstance(value, Mapping) else {}

    def sequence(self, *path: str) -> list[Any]:
        """Return the array at ``path``, empty when there is none."""
        value = self.get(*path)
        return list(value) if isinstance(value, list | tuple) else []

    def numbers(self, *path: str) -> dict[str, float]:
        """Return the finite numbers of the object at ``path``."""
        found = ((key, finite(value)) for key, value in self.items(*path).items())
        return {key: value for key, value in found if value is not None}


@dataclass(frozen=True)
class RoundLine:
    """One line of ``rounds.jsonl``; ``epsilon`` is the worst node's, bytes are those of all nodes together."""

    round: int
    accuracy: float | None
    loss: float | None
    epsilon: float | None
    nodes: int | None
    failed: Mapping[str, str]
    seconds: float | None
    bytes_down: float | None
    bytes_up: float | None
    train_loss: float | None = None
    validation_loss: float | None = None


@dataclass(frozen=True)
class Run:
    """A run folder.

    Attributes:
        name: the folder's name.
        config: the text of ``config.toml``, or ``None``.
        facts: ``result.json``; in a run of several seeds, what it leaves open comes from the first seed.
        rounds: ``rounds.jsonl``; in a run of several seeds, the first seed's when the run has none of its own.
        seeds: the seeds' own runs, in the order of their numbers.
    """

    name: str
    config: str | None
    facts: Facts
    rounds: tuple[RoundLine, ...]
    seeds: tuple[Run, ...] = ()

    @property
    def shown(self) -> Run:
        """The run whose single-run details are shown: the first seed, or this run."""
        return self.seeds[0] if self.seeds else self

    @property
    def seed(self) -> str:
        """The seed, or the folder's name where there is none."""
        return self.facts.text("seed") or self.name

    @property
    def traces(self) -> tuple[tuple[RoundLine, ...], ...]:
        """The rounds of every seed, or of the one run there is; never an empty trace."""
        return tuple(run.rounds for run in self.seeds or (self,) if run.rounds)


def read_run(folder: Path) -> Run:
    """Read a run folder, its seeds included.

    Args:
        folder: holds ``result.json`` and, as far as they were written, ``config.toml``, ``rounds.jsonl`` and the
            run folders ``seed-<k>`` of its seeds.

    Raises:
        ConfigError: ``result.json`` is missing or no JSON object.
    """
    seeds = tuple(read_run(path) for path in seed_folders(folder))
    own = read_result(folder / RESULT)
    first = seeds[0].facts.values if seeds else {}
    facts = Facts({**first, **{key: value for key, value in own.items() if value is not None}})
    rounds = tuple(round_lines(folder / ROUNDS)) or (seeds[0].rounds if seeds else ())
    return Run(folder.resolve().name, read_text(folder / CONFIG), facts, rounds, seeds)


def seed_folders(folder: Path) -> list[Path]:
    """Return the finished seeds' folders, by number."""
    finished = (path for path in folder.glob("seed-*") if (path / RESULT).is_file())
    return sorted(finished, key=lambda path: (len(path.name), path.name))


def read_result(path: Path) -> dict[str, Any]:
    """Return the object in ``result.json``; NaN and infinities become ``None``."""
    text = read_text(path)
    if text is None:
        raise ConfigError(
            f"expected a finished run's {path.name} in {path.parent}, found none; finish it with --resume"
        )
    try:
        value = parsed(text)
    except ValueError as error:
        raise ConfigError(f"expected JSON in {path}, found something else; run the simulation again") from error
    if not isinstance(value, dict):
        raise ConfigError(f"expected a JSON object in {path}, found {type(value).__name__}; run the simulation again")
    return value


def round_lines(path: Path) -> Iterator[RoundLine]:
    """Yield the rounds, leaving out a line that a crash cut short."""
    for text in (read_text(path) or "").splitlines():
        try:
            facts = Facts(parsed(text))
        except ValueError:
            continue
        number = facts.count("round")
        if number is not None:
            yield round_line(number, facts)


def round_line(number: int, facts: Facts) -> RoundLine:
    """Return one round from its JSON object."""
    return RoundLine(
        round=number,
        accuracy=facts.number("accuracy"),
        loss=facts.number("loss"),
        epsilon=facts.number("epsilon"),
        nodes=facts.count("nodes"),
        failed={name: str(reason) for name, reason in facts.items("failed").items()},
        seconds=facts.number("seconds"),
        bytes_down=facts.number("bytes_down"),
        bytes_up=facts.number("bytes_up"),
        train_loss=facts.number("train_loss"),
        validation_loss=facts.number("validation_loss"),
    )


def read_text(path: Path) -> str | None:
    """Return a file's printable text, or ``None`` when there is no such file."""
    return printable(path.read_text(encoding="utf-8", errors="replace")) if path.is_file() else None


def parsed(text: str) -> Any:
    """Return JSON without NaN and infinities (they become ``None``) and without unprintable characters."""
    return printable(json.loads(text, parse_constant=lambda _: None))


def printable(value: Any) -> Any:
    """Replace characters that no page can show, or that turn the text around them, in all texts of ``value``.

    >>> printable({"a" + chr(0): [chr(0x202E) + "b", 1]}) == {"a" + chr(0xFFFD): [chr(0xFFFD) + "b", 1]}
    True
    """
    if isinstance(value, str):
        return UNPRINTABLE.sub("\ufffd", value)
    if isinstance(value, list):
        return [printable(item) for item in value]
    if isinstance(value, dict):
        return {printable(key): printable(item) for key, item in value.items()}
    return value


def finite(value: Any) -> float | None:
    """Return ``value`` as a float if it is a finite number (``True`` and ``False`` are none)."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    return float(value) if math.isfinite(value) else None

"""One run's configuration: TOML becomes a frozen `RunConfig`, and that becomes Flower's flat ``run_config``."""

from __future__ import annotations

import hashlib
import itertools
import json
import os
import re
import tomllib
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import tomli_w
from pydantic import ValidationError

from common.config_mistakes import find_mistakes, sections
from common.config_schema import BASELINES, KEY_ROLES, RunConfig
from common.errors import ConfigError
from common.toml_text import parse_toml

__all__ = [
    "BASELINES",
    "BUILT_IN_SOURCES",
    "RunConfig",
    "Scalar",
    "check_updates",
    "config_digest",
    "default_flat",
    "dump_toml",
    "from_flat",
    "load_config",
    "resolved_reference",
    "to_flat",
]

Scalar = str | int | float | bool
BUILT_IN_SOURCES = ("digits",)
_WITH_FILES = re.compile(r"(?P<family>(spectrogram/)?(package|vectors|tabular|hf)/)(?P<rest>.+)")


def load_config(path: Path | str, overrides: Sequence[str] = ()) -> RunConfig:
    """Read a run's configuration.

    Args:
        path: a TOML file.
        overrides: ``section.key=value`` each; the value is TOML, else a string. They win over the file.

    Returns:
        The configuration. A path in ``data.source`` is absolute: taken from the file's folder where it exists there,
        else from the working folder (the other way round when an override named it). So is the path of a file or folder
        in ``model.backbone``, where there is one.

    Raises:
        ConfigError: the file is missing, unreadable or not TOML; or, all at once, every key that is unknown, missing
            or has an unusable value.
    """
    path = Path(path)
    tree = _read_toml(path)
    mistakes = [mistake for text in overrides if (mistake := _override(tree, text))]
    for section, key, resolve in (("data", "source", _resolved_source), ("model", "backbone", resolved_reference)):
        value = tree[section].get(key) if isinstance(tree.get(section), dict) else None
        if isinstance(value, str) and value:
            named_by_override = any(text.partition("=")[0].strip() == f"{section}.{key}" for text in overrides)
            folders = [path.resolve().parent, Path.cwd()]
            tree[section][key] = resolve(value, folders[::-1] if named_by_override else folders)
    return _validate(tree, str(path), mistakes)


def to_flat(config: RunConfig) -> dict[str, Scalar]:
    """Return the configuration as Flower's ``run_config``.

    Args:
        config: any configuration.

    Returns:
        Every key as ``section.key`` (``data.keys.<role>`` for names in a file), always the same keys; ``""`` where
        it is not given.
    """
    return _flatten(config.model_dump())


def from_flat(run_config: Mapping[str, Scalar]) -> RunConfig:
    """Return the configuration that `to_flat`, or ``flwr run`` with overrides, made flat.

    Args:
        run_config: keys with dots; ``""`` means not given.

    Raises:
        ConfigError: as `load_config`.
    """
    tree: dict[str, Any] = {}
    for key, value in run_config.items():
        _put(tree, key.split("."), value)
    return _validate(tree, "the run configuration")


def default_flat() -> dict[str, Scalar]:
    """Return the keys of `to_flat` with their defaults, ``""`` where there is none, for ``[tool.flwr.app.config]``."""
    return _flatten(
        {
            section: {name: None if item.is_required() else item.default for name, item in part.model_fields.items()}
            for section, part in sections(RunConfig).items()
        }
    )


def dump_toml(config: RunConfig) -> str:
    """Write the configuration as TOML; `load_config` reads the same configuration back."""
    return tomli_w.dumps(_without_none(config.model_dump()))


def config_digest(config: RunConfig) -> str:
    """Return the SHA-256 of the configuration, hexadecimal; equal configurations have equal digests."""
    canonical = json.dumps(to_flat(config), sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(canonical.encode()).hexdigest()


def check_updates(config: RunConfig, nodes: int) -> None:
    """Make sure that so many nodes send what the strategy needs in a round.

    Raises:
        ConfigError: they are too few.
    """
    least, malicious = config.federation.least_updates, config.federation.malicious or 0
    if nodes < least:
        raise ConfigError(
            f"the strategy {config.federation.strategy!r} needs at least {least} nodes with {malicious} malicious, "
            f"got {nodes}; add nodes, lower federation.malicious or choose another federation.strategy"
        )


def _read_toml(path: Path) -> dict[str, Any]:
    """Parse a TOML file; say what is wrong with it, and where."""
    try:
        return parse_toml(path.read_text(encoding="utf-8-sig"), path)
    except FileNotFoundError:
        raise ConfigError(f"expected a configuration file at {path}, but there is none; check the path") from None
    except UnicodeDecodeError:
        raise ConfigError(f"expected text in UTF-8 in {path}, came other bytes; save it as UTF-8") from None
    except OSError as error:
        raise ConfigError(f"could not read {path}: {error.strerror}; check the path and its permissions") from None


def _override(tree: dict[str, Any], text: str) -> str | None:
    """Apply one ``section.key=value``; return what is wrong with its form, if anything is."""
    key, equals, value = text.partition("=")
    names = [name.strip() for name in key.split(".")]
    if not equals or len(names) < 2 or not all(names):
        return f"--set {text}: expected section.key=value"
    _put(tree, names, _value(value.strip()))
    return None


def _value(text: str) -> Any:
    """Read an override's value: TOML where it is a scalar or a table, else the text itself."""
    try:
        parsed = tomllib.loads(f"value = {text}")
    except (tomllib.TOMLDecodeError, RecursionError):
        return text
    if set(parsed) == {"value"} and isinstance(parsed["value"], str | int | float | bool | dict):
        return parsed["value"]
    return text


def _put(tree: dict[str, Any], names: Sequence[str], value: Any) -> None:
    """Set a nested value; a scalar in its way stays and is reported by the validation."""
    for name in names[:-1]:
        tree = tree.setdefault(name, {})
        if not isinstance(tree, dict):
            return
    tree[names[-1]] = value


def resolved_reference(reference: str, folders: Iterable[Path]) -> str:
    """Make the path in a backbone's reference absolute, so that it means the same from every folder.

    Args:
        reference: of a backbone; other families than those with files stay as they are, and so does what is not there.
        folders: to look in.

    >>> resolved_reference("embedded/glyph", [])
    'embedded/glyph'
    """
    parts = _WITH_FILES.fullmatch(reference)
    if parts is None:
        return reference
    rest = parts["rest"]
    ends = [len(rest), *(at for at in range(len(rest) - 1, 0, -1) if rest[at] in ":@")]  # options follow these
    for folder, end in itertools.product(folders, ends):
        path = folder / os.path.expanduser(rest[:end])  # noqa: PTH111
        if _exists(path):
            return f"{parts['family']}{path}{rest[end:]}"
    return reference


def _resolved_source(source: str, folders: Iterable[Path]) -> str:
    return source if source in BUILT_IN_SOURCES else _absolute(source, folders)


def _absolute(source: str, folders: Iterable[Path]) -> str:
    """Return the first of the paths that exists, else the working folder's."""
    expanded = os.path.expanduser(source)  # noqa: PTH111 (Path.expanduser raises where there is no such user)
    paths = [folder / expanded for folder in folders]
    return str(next((path for path in paths if _exists(path)), Path.cwd() / expanded))


def _exists(path: Path) -> bool:
    """Tell whether a path exists; one that cannot exist (too long, say) does not."""
    try:
        return path.exists()
    except OSError:
        return False


def _validate(tree: dict[str, Any], origin: str, mistakes: Sequence[str] = ()) -> RunConfig:
    """Build the configuration, or raise one error that lists ``mistakes`` and all that pydantic finds."""
    complete = {name: {} for name in sections(RunConfig)} | _without_empty(tree)
    try:
        config = RunConfig.model_validate(complete)
    except ValidationError as error:
        raise _error([*mistakes, *find_mistakes(RunConfig, error)], origin) from None
    if mistakes:
        raise _error(mistakes, origin)
    return config


def _error(mistakes: Sequence[str], origin: str) -> ConfigError:
    """Put mistakes into one error: a sentence for one, a line each for several."""
    if len(mistakes) == 1:
        return ConfigError(f"{origin}: {mistakes[0]}")
    lines = "".join(f"\n  {mistake}" for mistake in mistakes)
    return ConfigError(f"{origin} has {len(mistakes)} mistakes:{lines}")


def _without_empty(tree: Mapping[str, Any]) -> dict[str, Any]:
    """Drop empty strings, which mean "not given"."""
    return {
        key: _without_empty(value) if isinstance(value, Mapping) else value
        for key, value in tree.items()
        if value != ""
    }


def _without_none(tree: Mapping[str, Any]) -> dict[str, Any]:
    """Drop what is not given, and empty tables."""
    kept = {key: _without_none(value) if isinstance(value, Mapping) else value for key, value in tree.items()}
    return {key: value for key, value in kept.items() if value is not None and value != {}}


def _flatten(tree: Mapping[str, Mapping[str, Any]]) -> dict[str, Scalar]:
    """Join sections and keys by dots; the names of a file's arrays get one key for each role."""
    flat: dict[str, Scalar] = {}
    for section, values in tree.items():
        for key, value in values.items():
            if isinstance(value, dict):
                flat |= {f"{section}.{key}.{role}": value.get(role, "") for role in KEY_ROLES}
            else:
                flat[f"{section}.{key}"] = "" if value is None else value
    return flat

"""The Flower app bundle: the folder that ``flwr run`` packs and sends to every process and hospital.

It holds the sources of `common`, `client` and `server`, a licence and a ``pyproject.toml``; no weights, no simulations.
It is the same from a checkout and from an installed wheel.

Example:
    python -m common.bundle --update-pyproject    rewrites the generated part of a checkout's pyproject.toml
"""

from __future__ import annotations

import hashlib
import importlib
import importlib.metadata
import shutil
import sys
import tempfile
from pathlib import Path
from typing import Any

import tomli_w

from common import durable
from common.config import default_flat
from common.errors import ConfigError

PACKAGES = ("common", "client", "server")
MARK = "# Everything below is written by `python -m common.bundle --update-pyproject` and checked by a test.\n"


def flower_app() -> dict[str, Any]:
    """Return the table ``[tool.flwr.app]``: components, files of the bundle, and every configuration key.

    The configuration comes from `RunConfig`; ``""`` means not given. Flower refuses keys that are not listed.
    """
    return {
        "publisher": "fedgraft",
        "fab-include": ["/LICENSE", *(f"/{package}/**/*.py" for package in PACKAGES)],
        "components": {"serverapp": "server.app:app", "clientapp": "client.app:app"},
        "config": _nested(default_flat()),
    }


def assemble(folder: Path) -> Path:
    """Write the app's sources into a folder.

    Args:
        folder: where to; must not exist.

    Returns:
        The folder, ready for ``flwr run``; the same bytes whenever the sources are the same.

    Raises:
        ConfigError: fedgraft's installed metadata is missing, so that its version and licence are unknown.
    """
    metadata, licence = _metadata()
    folder.mkdir(parents=True)
    for package in PACKAGES:
        _copy_sources(Path(str(importlib.import_module(package).__file__)).parent, folder / package)
    durable.write_bytes(folder / "LICENSE", licence.encode())
    durable.write_bytes(folder / "pyproject.toml", tomli_w.dumps(metadata).encode())
    return folder


def app_digest() -> str:
    """SHA-256 of the app bundle that this installation makes; the same wherever the same release is installed.

    Raises:
        ConfigError: as ``assemble``.
    """
    from flwr.cli.build import build_fab_from_disk  # it takes a second

    with tempfile.TemporaryDirectory() as folder:
        return hashlib.sha256(build_fab_from_disk(assemble(Path(folder) / "app"))).hexdigest()


def update_pyproject(path: Path) -> bool:
    """Rewrite the generated part of a checkout's ``pyproject.toml``; return whether it changed.

    Raises:
        ConfigError: the file has no mark after which the generated part begins.
    """
    old = path.read_text(encoding="utf-8")
    new = up_to_date(old)
    if new != old:
        durable.write_bytes(path, new.encode())
    return new != old


def up_to_date(text: str) -> str:
    """Return the text of a ``pyproject.toml`` with its generated part written anew."""
    by_hand, mark, _ = text.partition(MARK)
    if not mark:
        raise ConfigError(f"expected the line {MARK.strip()!r} in pyproject.toml, but it is missing; put it back")
    return by_hand + mark + tomli_w.dumps({"tool": {"flwr": {"app": flower_app()}}})


def _metadata() -> tuple[dict[str, Any], str]:
    """Return the bundle's ``pyproject.toml`` and licence, out of what is installed."""
    try:
        distribution = importlib.metadata.distribution("fedgraft")
    except importlib.metadata.PackageNotFoundError:
        raise ConfigError("expected fedgraft to be installed, but it is not; run pip install -e . in it") from None
    licence = distribution.read_text("licenses/LICENSE")
    flower = [item for item in distribution.requires or () if item.startswith("flwr[")]
    if licence is None or not flower:
        raise ConfigError("expected fedgraft's licence and requirements beside it, but they are missing; reinstall it")
    project = {
        "name": "fedgraft",
        "version": distribution.version,
        "description": distribution.metadata["Summary"],
        "license": "Apache-2.0",
        "dependencies": flower,
    }
    return {"project": project, "tool": {"flwr": {"app": flower_app()}}}, licence


def _copy_sources(source: Path, target: Path) -> None:
    """Copy a package's Python files, and nothing else."""
    for path in sorted(source.rglob("*.py")):
        copy = target / path.relative_to(source)
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, copy)


def _nested(flat: dict[str, Any]) -> dict[str, Any]:
    """Turn keys with dots into tables."""
    tree: dict[str, Any] = {}
    for key, value in flat.items():
        *tables, name = key.split(".")
        place = tree
        for table in tables:
            place = place.setdefault(table, {})
        place[name] = value
    return tree


def main(arguments: list[str]) -> int:
    """Rewrite ``pyproject.toml`` of the working folder."""
    if arguments != ["--update-pyproject"]:
        print("usage: python -m common.bundle --update-pyproject", file=sys.stderr)
        return 2
    changed = update_pyproject(Path("pyproject.toml"))
    print("pyproject.toml is", "rewritten" if changed else "up to date")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

"""What a package says of itself, and the bytes of its files against that; nothing is built, and no tensor read.

See ``common.backbones.package``; this much of it is for programs that know packages and load none.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

from pydantic import ValidationError

from common.errors import ConfigError
from common.strict import Strict

FACTS = "backbone.json"
WEIGHTS = "weights.safetensors"
FORMAT = 1


class Builder(Strict):
    """What a family needs to build a network, beside tensors and files; each family adds its own.

    Attributes:
        family: that packed it.
    """

    family: str


SomeBuilder = TypeVar("SomeBuilder", bound=Builder)


class PackageFacts(Strict):
    """What ``backbone.json`` holds.

    Attributes:
        format: 1.
        name: the reference that was packed.
        builder: the family, and what it needs to build the network.
        stages: their names in order.
        preprocessing: as it describes itself.
        licence: of the weights.
        trained_on: whose data they have seen.
        centred_on: the public data of the stage ``centre``; empty where there is none.
        files: SHA-256 of each other file, by name.
        digest: SHA-256 of all this.
    """

    format: int
    name: str
    builder: dict[str, Any]
    stages: list[str]
    preprocessing: dict[str, Any]
    licence: str
    trained_on: str
    centred_on: str
    files: dict[str, str]
    digest: str = ""

    def serialised(self) -> bytes:
        """The one way in which these facts are written."""
        return (json.dumps(self.model_dump(), indent=2, ensure_ascii=False, allow_nan=False) + "\n").encode()

    def sealed(self) -> PackageFacts:
        """With the right digest."""
        return self.model_copy(update={"digest": hashlib.sha256(self._open().serialised()).hexdigest()})

    def _open(self) -> PackageFacts:
        return self.model_copy(update={"digest": ""})


def read_builder(kind: type[SomeBuilder], builder: Mapping[str, Any]) -> SomeBuilder:
    """What a family is told of a package, which may come from anywhere.

    Args:
        kind: the family's own.
        builder: of the package's facts.

    Raises:
        ConfigError: a key is missing, unknown or of another type.
    """
    try:
        return kind.model_validate(builder)
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(map(str, ("builder", *first["loc"])))
        got = "none" if first["type"] == "missing" else repr(first["input"])[:100]
        raise ConfigError(
            f"expected {key} in {FACTS} as `fedgraft backbones pack` writes it, got {got} ({first['msg']}); {_AGAIN}"
        ) from error


def check_bytes(folder: Path) -> PackageFacts:
    """Check every byte of a package, and build nothing; errors as in ``read_facts``."""
    facts = read_facts(folder)
    for name, expected in facts.files.items():
        try:
            with (folder / name).open("rb") as file:
                found = hashlib.file_digest(file, "sha256").hexdigest()
        except OSError as error:
            raise ConfigError(f"expected {name} in {folder} ({error.strerror}); {_AGAIN}") from error
        if found != expected:
            raise changed(folder, name)
    return facts


def read_facts(folder: Path) -> PackageFacts:
    """The facts of a package, checked against its digest; no other file is read.

    Raises:
        ConfigError: they are missing, damaged, changed or of another format.
    """
    raw = read_file(folder, FACTS)
    try:
        facts = PackageFacts.model_validate_json(raw)
    except ValidationError as error:
        raise ConfigError(
            f"expected the facts of a package in {folder / FACTS}, got a damaged file; {_AGAIN}"
        ) from error
    if facts.format != FORMAT:
        raise ConfigError(f"{folder} is a package of format {facts.format}, this version knows {FORMAT}; {_NEWER}")
    if facts.serialised() != raw or facts.sealed().digest != facts.digest:
        raise changed(folder, FACTS)
    if WEIGHTS not in facts.files or not facts.stages or any(Path(name).name != name for name in facts.files):
        raise ConfigError(f"expected {WEIGHTS} and plain names among the files of {folder}; {_AGAIN}")
    return facts


def read_file(folder: Path, name: str) -> bytes:
    """A file of a package.

    Raises:
        ConfigError: it cannot be read.
    """
    try:
        return (folder / name).read_bytes()
    except OSError as error:
        raise ConfigError(
            f"expected a package with {name} in {folder} ({error.strerror}); "
            "give the folder that `fedgraft backbones pack` made, whole"
        ) from error


def changed(folder: Path, name: str) -> ConfigError:
    """What is wrong with a package of which a file is another than was packed."""
    return ConfigError(f"{folder / name} is not what was packed, a byte of it has changed; {_AGAIN}")


_AGAIN = "copy the package again from where it was made"
_NEWER = "install the fedgraft release that made it"

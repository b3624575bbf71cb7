"""The files of a transformers model: where a reference finds them, and what they say of themselves."""

from __future__ import annotations

import contextlib
import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from common.errors import ConfigError

_REFERENCE = re.compile(r"hf/(?P<name>.+?)(?::(?P<length>\d+))?(?:@(?P<weights>[^@/]+))?")
_RANDOM = re.compile(r"random-(?P<seed>\d+)")
_HUB_ID = re.compile(r"[\w.-]+(/[\w.-]+)?")
_VOCABULARIES = ("vocab.txt", "vocab.json", "sentencepiece.bpe.model")
DESCRIBING = (
    "1_Pooling/config.json",
    "preprocessor_config.json",
    "sentence_bert_config.json",
    "tokenizer_config.json",
)
"""What a model's folder may say of itself beside ``config.json``, as JSON."""

_WANTED = ("*.json", "*.safetensors", "*.txt", "*.model", "README.md", "1_Pooling/config.json")


class Reference(NamedTuple):
    """What a reference asks for.

    Attributes:
        name: hub id or local folder.
        length: tokens of a text or seconds of a sound; None for the model's own.
        seed: of random weights; None for the pre-trained ones.
        revision: of a hub id, a branch, tag or commit; None for the newest at hand.
    """

    name: str
    length: int | None
    seed: int | None
    revision: str | None


@dataclass(frozen=True)
class Files:
    """What a model's folder says of itself, weights aside.

    Attributes:
        folder: where they lie.
        config: of the network.
        others: content of further JSON files by name, empty where absent.
    """

    folder: Path
    config: Mapping[str, Any]
    others: Mapping[str, Mapping[str, Any]]


def parse(reference: str) -> Reference:
    """Take a reference apart.

    Raises:
        ConfigError: it names no model.

    >>> parse("hf/org/name:64@random-3")
    Reference(name='org/name', length=64, seed=3, revision=None)
    """
    parts = _REFERENCE.fullmatch(reference)
    if parts is None:
        raise ConfigError(f"expected hf/<hub id or local folder>[:<length>], got {reference!r}; name a model")
    random = _RANDOM.fullmatch(parts["weights"] or "")
    return Reference(
        name=parts["name"],
        length=int(parts["length"]) if parts["length"] else None,
        seed=int(random["seed"]) if random else None,
        revision=None if random else parts["weights"],
    )


def model_folder(wanted: Reference) -> Path:
    """The local folder of a model; a hub id's files are fetched first, where the network is allowed and needed.

    Raises:
        ConfigError: there is no such folder, and the hub does not have it or cannot be reached.
    """
    folder = Path(wanted.name).expanduser()
    if folder.is_dir():
        return folder
    if not _HUB_ID.fullmatch(wanted.name):
        raise ConfigError(f"expected a folder with a transformers model, found none at {wanted.name}; correct the path")
    from huggingface_hub import snapshot_download

    try:
        fetched = snapshot_download(wanted.name, revision=wanted.revision, allow_patterns=list(_WANTED))
    except Exception as error:  # the hub's client raises its own errors, the network's and the disk's
        raise ConfigError(
            f"the model {wanted.name} is not on this machine and cannot be fetched ({type(error).__name__}); fetch it "
            "on a connected machine, copy its folder here and write hf/<that folder>"
        ) from error
    return Path(fetched)


def read_files(folder: Path) -> Files:
    """Read what a model's folder says of itself.

    Raises:
        ConfigError: there is no ``config.json``, or a file is not JSON.
    """
    if not (folder / "config.json").is_file():
        raise ConfigError(
            f"expected a config.json beside the weights in {folder}, found none; copy the model's whole folder"
        )
    return Files(folder, _json(folder / "config.json"), {name: _json(folder / name) for name in DESCRIBING})


def check_weights(folder: Path) -> None:
    """Refuse a folder without safetensors.

    Raises:
        ConfigError: weights are missing, or only there in a format that runs code when it is read.
    """
    if any(folder.glob("*.safetensors")):
        return
    others = sorted(path.name for path in folder.glob("*.bin"))
    raise ConfigError(
        f"expected weights as model.safetensors in {folder}, found {others[0] if others else 'none'}; other formats "
        "can run code when they are read: convert the model to safetensors on another machine"
    )


def tokenizer(folder: Path) -> str:
    """The content of ``tokenizer.json``, or what transformers makes of older vocabulary files."""
    path = folder / "tokenizer.json"
    if path.is_file():
        return path.read_text(encoding="utf-8")
    from transformers import AutoTokenizer

    try:
        if not any((folder / name).is_file() for name in _VOCABULARIES):
            raise FileNotFoundError(path)  # transformers would make up an empty tokenizer
        with quiet():
            content: str = AutoTokenizer.from_pretrained(folder, local_files_only=True).backend_tokenizer.to_str()
    except Exception as error:  # whatever transformers makes of a folder without a tokenizer
        raise ConfigError(
            f"expected a tokenizer.json beside the weights in {folder}, found none; copy the model's whole folder"
        ) from error
    return content


def card(folder: Path) -> dict[str, str]:
    """Licence and training data as the model card names them."""
    from huggingface_hub import metadata_load

    try:
        named = metadata_load(folder / "README.md") or {}
    except (OSError, ValueError):
        named = {}
    sets = named.get("datasets")
    listed = ", ".join(map(str, sets)) if isinstance(sets, list) else str(sets or "not said, see its model card")
    return {"licence": str(named.get("license") or "not said, see its model card"), "trained_on": listed}


def _json(path: Path) -> Mapping[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    except (OSError, ValueError) as error:
        raise ConfigError(f"expected JSON in {path}, got something else; copy the file anew") from error
    if not isinstance(content, dict):
        raise ConfigError(f"expected a JSON object in {path}, got another value; copy the file anew")
    return content


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Without the progress bars and load reports of transformers."""
    from transformers.utils import logging

    report: Any = logging
    before, bar = report.get_verbosity(), report.is_progress_bar_enabled()
    report.set_verbosity_error()
    report.disable_progress_bar()
    try:
        yield
    finally:
        report.set_verbosity(before)
        if bar:
            report.enable_progress_bar()

"""Packages: a backbone as a folder that can be carried, every byte of it under one digest.

``backbone.json`` says how the network is built, how records are prepared, whose the weights are, and what the SHA-256
of each other file is; its ``digest`` is the SHA-256 of itself with the digest left out. ``weights.safetensors`` holds
the tensors, each by its stage's name and its own. A family may add files, such as a tokenizer.

A family is a module with ``describe(backbone)``, JSON that says how its network is built; ``rebuild(description,
preprocessing, files, seed)``, the stages with random weights (with no seed, any, or tensors on the device "meta") and
the preprocessing; and, where it wants files of its own, ``files(backbone)``, their content by name.
"""

from __future__ import annotations

import hashlib
import importlib
import os
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import safetensors.torch
from safetensors import SafetensorError
from torch import Tensor, nn

from common import durable
from common.backbones.backbone import Backbone, freeze, stage_tensors
from common.backbones.centring import STAGE, Centre, centred, with_centre
from common.backbones.package_facts import FACTS, FORMAT, WEIGHTS, PackageFacts, changed, read_facts, read_file
from common.backbones.weight_files import copied_like
from common.errors import ConfigError

_FAMILIES = {
    "torchvision": "common.backbones.torchvision_family",
    "hf": "common.backbones.hf_package",
    "module": "common.backbones.module_family",
    "vectors": "common.backbones.vectors_package",
}


def save(backbone: Backbone, folder: Path, centred_on: str = "") -> PackageFacts:
    """Write a package; it appears whole or not at all.

    Args:
        backbone: of a family that can be packed.
        folder: of the package; must not exist, or be empty.
        centred_on: what the stage ``centre`` was measured on.

    Returns:
        What was written into ``backbone.json``.

    Raises:
        ConfigError: the family cannot be packed, the folder is taken, or it cannot be written.
    """
    family = _family(backbone.name.partition("/")[0])
    tensors = {name: value.detach().cpu().clone() for name, value in stage_tensors(backbone.stages).items()}
    own = family.files(backbone) if hasattr(family, "files") else {}
    content = {WEIGHTS: safetensors.torch.save(tensors), **own}
    facts = PackageFacts(
        format=FORMAT,
        name=backbone.name,
        builder=family.describe(backbone),
        stages=list(backbone.stages),
        preprocessing=backbone.preprocessing.describe(),
        licence=backbone.licence,
        trained_on=backbone.trained_on,
        centred_on=centred_on,
        files={name: hashlib.sha256(data).hexdigest() for name, data in content.items()},
    ).sealed()
    _write(folder, {**content, FACTS: facts.serialised()})
    return facts


def load(reference: str) -> Backbone:
    """Load ``package/<folder>``, after checking every byte that is used; nothing is unpickled.

    Raises:
        ConfigError: there is no package, a byte of it has changed, or this version cannot build its network.
    """
    facts, content = _checked(_folder(reference))
    stages, preprocessing = _rebuilt(facts, content, seed=None)
    backbone = Backbone(reference, stages, preprocessing, facts.licence, facts.trained_on, facts.digest)
    tensors = _tensors(reference, content[WEIGHTS])
    if facts.stages[-1] == STAGE and f"{STAGE}.mean" in tensors:
        backbone = with_centre(backbone, Centre(len(tensors[f"{STAGE}.mean"])))
    _lay(reference, backbone.stages, tensors)
    if list(backbone.stages) != facts.stages:
        raise _unknown(reference, "other stages")
    return backbone


def untrained(reference: str, seed: int) -> Backbone:
    """The network of ``package/<folder>`` with random weights, centred anew where its features were centred.

    Raises:
        ConfigError: as ``load``; or it is centred and takes no images, so that there is nothing to centre it on.
    """
    facts, content = _checked(_folder(reference))
    stages, preprocessing = _rebuilt(facts, content, seed)
    digest = hashlib.sha256(f"{facts.digest} random {seed}".encode()).hexdigest()
    name = f"{reference}@random-{seed}"
    twin = Backbone(name, stages, preprocessing, "none needed", "nothing: random weights", digest)
    return centred(twin) if facts.stages[-1] == STAGE else twin


def verify(folder: Path) -> PackageFacts:
    """Check every byte of a package, that nothing lies beside it, and that the network can be built.

    Raises:
        ConfigError: something is not as the digest says; the message names it.
    """
    facts, _ = _checked(folder)
    strange = sorted(path.name for path in folder.iterdir() if path.name not in {FACTS, *facts.files})
    if strange:
        raise ConfigError(
            f"expected nothing in {folder} but {', '.join((FACTS, *facts.files))}, found {strange[0]}, which no digest "
            "covers; remove it"
        )
    load(f"package/{folder}")
    return facts


def _folder(reference: str) -> Path:
    return Path(reference.removeprefix("package/")).expanduser()


def _family(name: Any) -> Any:
    """The module of a family that can be packed."""
    if name not in _FAMILIES:
        raise ConfigError(
            f"backbones of the family {name!r} cannot be packed; name one of {', '.join(_FAMILIES)}, "
            "others are at hand wherever fedgraft or their own files are"
        )
    return importlib.import_module(_FAMILIES[name])


def _rebuilt(facts: PackageFacts, content: Mapping[str, bytes], seed: int | None) -> tuple[dict[str, nn.Module], Any]:
    """Stages with random weights, or with any or none for no seed, and the preprocessing, which must be as packed."""
    others = {name: data for name, data in content.items() if name != WEIGHTS}
    family = _family(facts.builder.get("family"))
    try:
        stages, preprocessing = family.rebuild(facts.builder, facts.preprocessing, others, seed)
    except KeyError as error:
        raise _unknown(facts.name, f"a builder without {error}") from error
    if preprocessing.describe() != facts.preprocessing:
        raise _unknown(facts.name, "another preprocessing")
    return {name: freeze(stage) for name, stage in stages.items()}, preprocessing


def _unknown(name: str, what: str) -> ConfigError:
    return ConfigError(
        f"this version of fedgraft, or of the code that {name} is built by, makes {what} than was packed; "
        "use the version that packed it, or pack it anew"
    )


def _lay(reference: str, stages: Mapping[str, nn.Module], tensors: Mapping[str, Tensor]) -> None:
    expected = {name: (value.shape, value.dtype) for name, value in stage_tensors(stages).items()}
    if expected != {name: (value.shape, value.dtype) for name, value in tensors.items()}:
        raise _unknown(reference, "other tensors")
    for name, stage in stages.items():
        made = stage.state_dict()
        without_memory = any(value.is_meta for value in made.values())
        laid = {inner: tensors[f"{name}.{inner}"] for inner in made}
        if without_memory:
            laid = {inner: copied_like(value, made[inner]) for inner, value in laid.items()}
        stage.load_state_dict(laid, assign=without_memory)


def _tensors(reference: str, data: bytes) -> dict[str, Tensor]:
    try:
        return safetensors.torch.load(data)
    except SafetensorError as error:
        raise ConfigError(f"the weights of {reference} are no safetensors; pack it anew") from error


def _checked(folder: Path) -> tuple[PackageFacts, dict[str, bytes]]:
    """The facts of a package and the content of its files, every byte as the digest says."""
    facts = read_facts(folder)
    content = {name: read_file(folder, name) for name in facts.files}
    for name, data in content.items():
        if hashlib.sha256(data).hexdigest() != facts.files[name]:
            raise changed(folder, name)
    return facts, content


def _write(folder: Path, content: Mapping[str, bytes]) -> None:
    """Write files into a new folder, beside its place first."""
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ConfigError(f"{folder} is there already; choose a new folder, packages are never overwritten")
    temporary = None
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(dir=folder.parent, prefix=f".{folder.name}."))
        for name, data in content.items():
            durable.write_bytes(temporary / name, data)
        temporary.chmod(0o755)
        os.replace(temporary, folder)  # noqa: PTH105 (onto an empty folder, which Path.rename does not promise)
        durable.sync_folder(folder.parent)
    except OSError as error:
        raise ConfigError(f"could not write {folder}: {error.strerror}; choose a writable folder") from error
    finally:
        if temporary is not None:
            shutil.rmtree(temporary, ignore_errors=True)

"""A real node's records between messages: each message is a new process, and must not read all files again.

What is kept is an index: for every record its digest, by which the feature cache knows it, and its target. It is found
again as long as the files are those that it was made of, by name, size and time. A list of files elsewhere has none:
what it lists may change without it.
"""

from __future__ import annotations

import hashlib
import io
import json
import zipfile
from dataclasses import dataclass
from functools import cached_property
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from client.home import Records
from client.node_config import NodeConfig
from common import durable
from common.data.agreed import load_agreed
from common.data.local import LocalData
from common.errors import ConfigError, PrivacyError
from common.features import cached_backbone, default_cache
from common.messages import ModelSpec
from common.privacy.canonical import canonical_json
from common.targets import make_targets

INDEX = "index"
FACTS, DIGESTS = "facts", "digests"


@dataclass(frozen=True)
class OwnRecords:
    """The records that a node's configuration names.

    Attributes:
        folder: of the node.
        config: its ``node.toml``.
    """

    folder: Path
    config: NodeConfig

    @property
    def source(self) -> Path:
        """The file or folder."""
        return self.folder / Path(self.config.data.source).expanduser()

    @cached_property
    def data(self) -> LocalData:
        """All of them, read now.

        Raises:
            ConfigError: they cannot be read, or have classes that nobody agreed on.
        """
        section = self.config.data
        return load_agreed(str(self.source), section.keys, section.classes, Path())

    @cached_property
    def facts(self) -> dict[str, Any]:
        """What a plan is checked against, ``task`` and ``patients``; errors as in ``data``."""
        known = self._index()
        if known is not None:
            found: dict[str, Any] = json.loads(str(known[FACTS]))
            return found
        return {"task": self.data.task, "patients": self.data.patient is not None}

    def check_unit(self) -> None:
        """A data set that names patients needs an acknowledgement, as long as single records are what is protected.

        Raises:
            PrivacyError: there is none.
        """
        if self.facts["patients"] and not self.config.privacy.acknowledge_record_unit:
            raise PrivacyError(
                "the data name patients, and this release protects one record of a patient only; set "
                "privacy.acknowledge_record_unit = true in node.toml if that is what you mean"
            )

    def of(self, model: ModelSpec) -> Records:
        """Features and targets for a model, from index and cache where they are there; errors as in ``data``."""
        backbone, known = cached_backbone(model.backbone), self._index()
        name = f"targets-{backbone.digest}"
        if known is not None and name in known:
            features = default_cache().kept(backbone, model.cut, known[DIGESTS], model.precision)
            if features is not None:
                return Records(features, np.arange(len(features), dtype=np.int64), torch.from_numpy(known[name]))
        features = default_cache().features(backbone, model.cut, self.data, precision=model.precision)
        targets = make_targets(self.data, backbone)
        if self._is_whole():
            self._keep({**(known or {}), name: targets.numpy()})
        return Records(features, np.arange(len(self.data), dtype=np.int64), targets)

    def _is_whole(self) -> bool:
        """Whether the source holds the records themselves, not a list of them."""
        return self.source.is_dir() or self.source.suffix == ".npz" or self.data.modality in ("text", "words", "pair")

    @cached_property
    def _path(self) -> Path:
        section, source = self.config.data, self.source
        files = sorted(source.rglob("*")) if source.is_dir() else [source]
        if not source.exists():
            raise ConfigError(f"expected records at {source}, found nothing; correct data.source in node.toml")
        seen = [(str(path), path.stat().st_size, path.stat().st_mtime_ns) for path in files if path.is_file()]
        made_of = canonical_json(
            {
                "release": version("fedgraft"),
                "files": seen,
                "keys": dict(section.keys),
                "classes": list(section.classes),
            }
        )
        return self.folder / INDEX / f"{hashlib.sha256(made_of.encode()).hexdigest()}.npz"

    def _index(self) -> dict[str, NDArray[Any]] | None:
        try:
            with self._path.open("rb") as file, np.load(file, allow_pickle=False) as stored:
                return {name: stored[name] for name in stored.files}
        except (OSError, ValueError, KeyError, zipfile.BadZipFile):
            return None  # none, or a damaged one: made anew

    def _keep(self, arrays: dict[str, NDArray[Any]]) -> None:
        """Write the index, and drop those of other states of the files."""
        file = io.BytesIO()
        fixed = {FACTS: np.array(json.dumps(self.facts)), DIGESTS: self.data.record_digests()}
        np.savez(file, **{**arrays, **fixed})  # type: ignore[arg-type]
        self._path.parent.mkdir(mode=0o700, exist_ok=True)
        durable.write_bytes(self._path, file.getvalue(), mode=0o600)
        for other in self._path.parent.glob("*.npz"):
            if other != self._path:
                other.unlink(missing_ok=True)


def forget_index(folder: Path) -> None:
    """Delete the index of a node's folder, half-written ones included; the folder stays, as a confined app has it."""
    for path in (folder / INDEX).glob("*"):
        path.unlink(missing_ok=True)

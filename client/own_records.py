"""A real node's records between messages: each message is a new process, and must not read all files again.

What is kept is an index: for every record its digest, by which the feature cache knows it, and its target. It is found
again as long as the files are those that it was made of, by name, size and time, and nobody else has withdrawn. A list
of files elsewhere has none: what it lists may change without it.
"""

from __future__ import annotations

import hashlib
import io
import json
import zipfile
from dataclasses import dataclass, replace
from functools import cached_property
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from client.node import Records
from client.node_config import NodeConfig
from client.withdrawals import Withdrawals, read_withdrawals, withdrawals_file
from common import durable
from common.data.agreed import load_agreed
from common.data.local import LocalData
from common.data.patients import numbered
from common.errors import ConfigError, PrivacyError
from common.features import FeatureCache, cached_backbone, default_cache
from common.messages import ModelSpec
from common.privacy.canonical import canonical_json
from common.sealing import Seal, SealBrokenError, read_seal
from common.segments import PLAIN, delete_segments
from common.targets import make_targets

INDEX = "index"
FACTS, DIGESTS, PATIENTS = "facts", "digests", "patients"


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
    def withdrawals(self) -> Withdrawals:
        """What was withdrawn from them, as it stood when this was first asked for.

        Raises:
            PrivacyError: the list of it is lost or damaged.
        """
        return read_withdrawals(withdrawals_file(self.folder, self.config))

    @cached_property
    def everything(self) -> LocalData:
        """All that the source holds, withdrawn records too, read now; for the operator's own commands.

        Raises:
            ConfigError: they cannot be read, or have classes that nobody agreed on.
        """
        section = self.config.data
        return load_agreed(str(self.source), section.keys, section.classes, Path())

    @cached_property
    def data(self) -> LocalData:
        """All that may be used: those withdrawn are left out; errors as in ``everything`` and ``withdrawals``.

        Raises:
            ConfigError: none is left.
        """
        withdrawn = self.withdrawals.applies(self.everything)
        if not withdrawn.any():
            return self.everything
        if withdrawn.all():
            raise ConfigError("expected a record that nobody has withdrawn, found none; this node cannot take part")
        return self.everything.take(np.flatnonzero(~withdrawn))

    @cached_property
    def cache(self) -> FeatureCache:
        """Of their features, encrypted where the configuration names a key; what was kept without it is deleted then.

        Raises:
            ConfigError: the key is missing, or not its owner's alone.
        """
        if self._seal is not None:
            delete_segments(default_cache().folder, (PLAIN,))
        return replace(default_cache(), seal=self._seal)

    @cached_property
    def _seal(self) -> Seal | None:
        return own_seal(self.folder, self.config)

    @cached_property
    def facts(self) -> dict[str, Any]:
        """What a plan is checked against, ``task`` and ``patients``; errors as in ``data``."""
        known = self._index()
        if known is not None:
            found: dict[str, Any] = json.loads(str(known[FACTS]))
            return found
        return {"task": self.data.task, "patients": self.data.patient is not None}

    def check_unit(self) -> None:
        """Patients are protected whole where the data name them, or the operator says that single records are meant.

        Raises:
            PrivacyError: neither holds, or patients are to be protected and the data name none.
        """
        named, privacy = bool(self.facts["patients"]), self.config.privacy
        if named and privacy.unit == "record" and not privacy.acknowledge_record_unit:
            raise PrivacyError(
                'the data name patients, and privacy.unit = "record" protects one record of a patient only; set '
                'privacy.unit = "patient" in node.toml, or privacy.acknowledge_record_unit = true if single records '
                "are what you mean"
            )
        if privacy.unit == "patient" and not named:
            raise PrivacyError(
                'privacy.unit = "patient" in node.toml needs data that name patients, got none; say patient = '
                '"<column>" in [data.keys]'
            )

    def of(self, model: ModelSpec) -> Records:
        """Features and targets for a model, from index and cache where they are there; errors as in ``data``."""
        backbone, known = cached_backbone(model.backbone), self._index()
        name = f"targets-{backbone.digest}"
        if known is not None and name in known:
            features = self.cache.kept(backbone, model.cut, known[DIGESTS], model.precision)
            if features is not None:
                targets = torch.from_numpy(known[name])
                return Records(features, np.arange(len(features), dtype=np.int64), targets, known.get(PATIENTS))
        features = self.cache.features(backbone, model.cut, self.data, precision=model.precision)
        targets = make_targets(self.data, backbone)
        if self._is_whole():
            self._keep({**(known or {}), name: targets.numpy()})
        self._sweep()
        return Records(features, np.arange(len(self.data), dtype=np.int64), targets, numbered(self.data.patient))

    def _is_whole(self) -> bool:
        """Whether the source holds the records themselves, not a list of them."""
        return self.source.is_dir() or self.source.suffix == ".npz" or self.data.modality in ("text", "words", "pair")

    def _sweep(self) -> None:
        """Delete what the cache has of withdrawn records, of those too that were withdrawn while this message ran."""
        newest = read_withdrawals(withdrawals_file(self.folder, self.config))
        if newest.version:
            self.cache.drop(newest.holds)
        if newest.version != self.withdrawals.version:
            forget_index(self.folder)

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
                "patients": "numbered",
                "targets": "with those cut off",
                "files": seen,
                "keys": dict(section.keys),
                "classes": list(section.classes),
                "withdrawn": self.withdrawals.version,
                "sealed": self._seal is not None,
            }
        )
        return self.folder / INDEX / f"{hashlib.sha256(made_of.encode()).hexdigest()}.npz"

    def _index(self) -> dict[str, NDArray[Any]] | None:
        try:
            data = self._path.read_bytes()
            opened = data if self._seal is None else self._seal.open(data, self._path.name)
            with np.load(io.BytesIO(opened), allow_pickle=False) as stored:
                return {name: stored[name] for name in stored.files}
        except (OSError, ValueError, KeyError, zipfile.BadZipFile, SealBrokenError):
            return None  # none, a damaged one, or one of another key: made anew

    def _keep(self, arrays: dict[str, NDArray[Any]]) -> None:
        """Write the index, and drop those of other states of the files."""
        file = io.BytesIO()
        fixed = {FACTS: np.array(json.dumps(self.facts)), DIGESTS: self.data.record_digests()}
        patients = numbered(self.data.patient)
        fixed |= {} if patients is None else {PATIENTS: patients}
        np.savez(file, **{**arrays, **fixed})  # type: ignore[arg-type]
        self._path.parent.mkdir(mode=0o700, exist_ok=True)
        data = file.getvalue() if self._seal is None else self._seal.close(file.getvalue(), self._path.name)
        durable.write_bytes(self._path, data, mode=0o600)
        for other in self._path.parent.glob("*.npz"):
            if other != self._path:
                other.unlink(missing_ok=True)


def own_seal(folder: Path, config: NodeConfig) -> Seal | None:
    """What encrypts a node's features and index; None where its configuration names no key.

    Raises:
        ConfigError: the key is missing, or not its owner's alone.
    """
    key = config.data.cache_key
    return None if key is None else read_seal(folder / Path(key).expanduser())


def forget_index(folder: Path) -> None:
    """Delete the index of a node's folder, half-written ones included; the folder stays, as a confined app has it."""
    for path in (folder / INDEX).glob("*"):
        path.unlink(missing_ok=True)

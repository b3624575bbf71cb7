"""Who holds which record in a simulated federation.

A real node has its own files. A simulated one is told nothing but its partition number (Flower's simulation runtime
gives a node no more), so server and nodes both derive the whole federation from the configuration, and agree because
it is a pure function of it.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from common.config import RunConfig
from common.data import LocalData, hold_out, load_source
from common.data.partition import node_names, partition
from common.data.patients import numbered
from common.feature_pass import Precision
from common.features import cached_backbone, default_cache
from common.targets import make_targets

VALIDATION = "data.validation_fraction"


@dataclass(frozen=True, eq=False)
class Federation:
    """All records of a simulation and their places.

    Attributes:
        data: every record, training and held-out ones.
        test: indices of the held-out records, which no node sees.
        validation: indices of the records by which the server watches the training, which no node sees; often none.
        shares: node name to the indices of its records, in node order.
    """

    data: LocalData
    test: NDArray[np.int64]
    validation: NDArray[np.int64]
    shares: Mapping[str, NDArray[np.int64]]

    @cached_property
    def names(self) -> tuple[str, ...]:
        """Node names, by partition number."""
        return tuple(self.shares)

    def units(self, share: NDArray[np.int64], unit: str) -> int:
        """How many units of privacy some records are: themselves, or the patients that they are of."""
        patients = numbered(self.data.patient, share) if unit == "patient" else None
        return len(share) if patients is None else int(patients.max(initial=-1)) + 1

    @cached_property
    def digest(self) -> str:
        """SHA-256 over what a run is made of: records, labels, patients, and who holds which."""
        digest = hashlib.sha256(b"fedgraft federation 1\n")
        rows: list[NDArray[np.int64]] = [self.test, self.validation, *self.shares.values()]
        parts: list[NDArray[Any]] = [self.data.record_digests(), self.data.labels, *rows]
        for values in parts:
            digest.update(f"{values.shape}\n".encode() + np.ascontiguousarray(values).tobytes())
        patients = [] if self.data.patient is None else [str(patient) for patient in self.data.patient]
        digest.update(json.dumps([*self.shares, patients, self.data.classes]).encode())
        return digest.hexdigest()


def assemble(config: RunConfig) -> Federation:
    """Load the source, hold out the test records and deal the rest to the nodes.

    Raises:
        ConfigError: the source cannot be read or divided as asked.
    """
    data, federation = config.data, config.federation
    return _assemble(
        data.source,
        tuple(sorted(data.keys.items())),
        data.partition,
        federation.nodes,
        federation.seed or 0,
        data.alpha,
        data.shards_per_node,
        data.test_fraction,
        data.validation_fraction,
    )


def held_by_server(config: RunConfig) -> Federation:
    """The coordinator's own records, by which it judges the head of real nodes: for the test, and to watch training.

    Raises:
        ConfigError: the source cannot be read or divided as asked.
    """
    section = config.data
    data = _load(section.source, tuple(sorted(section.keys.items())))
    test, validation = np.arange(len(data), dtype=np.int64), np.empty(0, dtype=np.int64)
    if section.validation_fraction > 0:
        undivided = replace(data, split=None)
        test, validation = hold_out(undivided, section.validation_fraction, config.federation.seed or 0, VALIDATION)
    return Federation(data, test, validation, {})


@lru_cache(maxsize=8)
def source_features(
    federation: Federation, backbone: str, cut: str | None, precision: Precision = "float32"
) -> NDArray[np.float32]:
    """Features of every record of the federation, shape (N, D), computed in one go and shared by its nodes.

    Raises:
        ConfigError: backbone, cut or cache are not usable.
    """
    return default_cache().features(cached_backbone(backbone), cut, federation.data, precision=precision)


@lru_cache(maxsize=8)
def source_targets(federation: Federation, backbone: str) -> Tensor:
    """Targets of every record of the federation, see ``common.targets``.

    Raises:
        ConfigError: the backbone does not suit the task.
    """
    return make_targets(federation.data, cached_backbone(backbone))


@lru_cache(maxsize=4)
def _load(source: str, keys: tuple[tuple[str, str], ...]) -> LocalData:
    return load_source(source, dict(keys))


@lru_cache(maxsize=4)
def _assemble(
    source: str,
    keys: tuple[tuple[str, str], ...],
    scheme: str,
    nodes: int,
    seed: int,
    alpha: float,
    shards_per_node: int,
    test_fraction: float,
    validation_fraction: float,
) -> Federation:
    data = _load(source, keys)
    train, test = hold_out(data, test_fraction, seed)
    validation = np.empty(0, dtype=np.int64)
    if validation_fraction > 0:
        kept, watched = hold_out(replace(data.take(train), split=None), validation_fraction, seed, VALIDATION)
        train, validation = train[kept], train[watched]
    parts = partition(
        data.strata[train],
        len(data.strata_names),
        scheme,
        nodes,
        seed,
        alpha=alpha,
        shards_per_node=shards_per_node,
        sites=None if data.site is None else data.site[train],
        patients=None if data.patient is None else data.patient[train],
    )
    names = node_names(len(parts), sites=None if scheme != "site" or data.site is None else data.site[train])
    shares = {name: train[part] for name, part in zip(names, parts, strict=True)}
    return Federation(data, test, validation, shares)

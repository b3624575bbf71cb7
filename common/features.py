"""Features: the trunk's outputs, computed once per record and kept.

The cache is content-addressed. A folder per (backbone digest, cut, preprocessing, precision) holds segments; a segment
is one safetensors file with the SHA-256 of each record and its features, written whole and renamed into place, mode
0600. Nothing in it ever goes stale: another record, cut, backbone or precision is another address.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from common.backbones.backbone import Backbone
from common.backbones.controls import load_reference
from common.data.local import LocalData
from common.errors import ConfigError
from common.feature_pass import FeaturePass, Precision, device
from common.grafting import cut_point
from common.paths import cache_bytes, cache_folder
from common.sealing import Seal
from common.segments import (
    Put,
    Segments,
    as_keys,
    delete_segments,
    drop_records,
    make_room,
    mark_used,
    write_segment,
    writing_segment,
)

TRIES = 3  # of finding in the cache what was just written there
FORMAT = 9  # counts up when the way of computing features changes their bits

Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class FeatureCache:
    """Trunk outputs on disk.

    Attributes:
        folder: where segments live; made on first use, mode 0700.
        most_bytes: bound on its size; what was used longest ago makes room.
        seal: encrypts what is kept; only what it has sealed is used then.
    """

    folder: Path
    most_bytes: int = 50 * 2**30
    seal: Seal | None = None

    def features(
        self,
        backbone: Backbone,
        cut: str | None,
        data: LocalData,
        progress: Progress | None = None,
        precision: Precision = "float32",
    ) -> NDArray[np.float32]:
        """Features of each record of ``data``, shape (N, D), computed where the cache lacks them.

        Args:
            backbone: whose stages up to ``cut`` are applied.
            cut: last frozen stage; None is the last stage of all.
            data: the records.
            progress: called with (records done, records to compute) after each batch.
            precision: of convolutions and matrix products, as ``common.precision.resolve`` chose it.

        Returns:
            float32, read-only; memory-mapped where one segment holds the records in this order or they are many, in
            memory where they are sealed.

        Raises:
            ConfigError: the cut does not exist, a segment is damaged or does not open, or the disk or memory is full.
        """
        place = self.folder / address(backbone, cut, precision)
        wanted = as_keys(data.record_digests())
        for _ in range(TRIES):
            mark_used(place)
            known = Segments(place, self.seal)
            missing = np.flatnonzero(~known.contains(wanted))
            if not len(missing):
                return known.rows(wanted)
            _, first = np.unique(wanted[missing], return_index=True)
            fresh = missing[np.sort(first)]
            records = data if len(fresh) == len(data) else data.take(fresh)
            if self.seal is None:
                self._compute(FeaturePass(backbone, cut, precision), place, wanted[fresh], records, progress)
                continue
            values = extract(backbone, cut, records, progress, precision)
            make_room(self.folder, place, values.nbytes, self.most_bytes)
            write_segment(place, wanted[fresh], values, self.seal)
            del values  # what is sealed is read into memory once more
        raise ConfigError(
            f"the feature cache {self.folder} lost what was written, {TRIES} times: another process empties it; wait "
            "for it, or give this one a cache of its own in FEDGRAFT_CACHE"
        )

    def _compute(
        self, ready: FeaturePass, place: Path, keys: NDArray[np.void], data: LocalData, progress: Progress | None
    ) -> None:
        """Write features to the disk as they come: at no time are all of them in memory."""
        with ExitStack() as stack:
            put: Put | None = None
            done = 0
            for rows, values in ready.run(data.inputs):
                if put is None:
                    make_room(self.folder, place, len(keys) * values[:1].nbytes, self.most_bytes)
                    put = stack.enter_context(writing_segment(place, keys, values.shape[1]))
                put(rows, values)
                done += len(rows)
                if progress is not None:
                    progress(done, len(data))

    def kept(
        self, backbone: Backbone, cut: str | None, digests: NDArray[np.uint8], precision: Precision = "float32"
    ) -> NDArray[np.float32] | None:
        """Features of records known by their digests alone, as ``features`` gives them; None if one is missing.

        Args:
            backbone: whose stages up to ``cut`` were applied.
            cut: last frozen stage.
            digests: of the records, as ``LocalData.record_digests`` makes them.
            precision: of the pass.
        """
        place, wanted = self.folder / address(backbone, cut, precision), as_keys(digests)
        mark_used(place)
        known = Segments(place, self.seal)
        return known.rows(wanted) if bool(known.contains(wanted).all()) else None

    def drop(self, unwanted: Callable[[NDArray[np.uint8]], NDArray[np.bool_]]) -> int:
        """Delete the features of some records, and of no others; returns how many there were.

        Args:
            unwanted: of digests (N, 32), which ones go, shape (N,).
        """
        return drop_records(self.folder, unwanted, self.seal)

    def purge(self) -> int:
        """Delete every segment; returns how many bytes were freed."""
        return delete_segments(self.folder)


def default_cache() -> FeatureCache:
    """The user's own feature cache; ``$FEDGRAFT_CACHE_GIB`` bounds its size."""
    return FeatureCache(cache_folder() / "features", cache_bytes())


@lru_cache(maxsize=4)
def cached_backbone(reference: str) -> Backbone:
    """Load a backbone once per process; errors as in ``common.backbones.controls.load_reference``."""
    return load_reference(reference)


def check_modality(backbone: Backbone, modality: str) -> None:
    """Make sure that a backbone can look at such records.

    Raises:
        ConfigError: it takes others.
    """
    accepted = backbone.preprocessing.accepts
    if modality not in accepted:
        raise ConfigError(
            f"the data hold records of the kind {modality!r}, but {backbone.name} takes {', '.join(sorted(accepted))}; "
            "choose another model.backbone"
        )


def address(backbone: Backbone, cut: str | None, precision: Precision = "float32") -> str:
    """Name of the folder for a trunk: 32 hex digits over everything that decides its outputs."""
    key = {
        "format": FORMAT,
        "backbone": backbone.digest,
        "cut": cut_point(backbone, cut),
        "preprocessing": backbone.preprocessing.describe(),
        "device": device().type,
        "precision": precision,
    }
    return hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()[:32]


def extract(
    backbone: Backbone,
    cut: str | None,
    data: LocalData,
    progress: Progress | None = None,
    precision: Precision = "float32",
) -> NDArray[np.float32]:
    """One forward pass of the trunk over all records, shape (N, D), float32.

    A record yields the same bits whatever else is computed with it, and on however many cores.
    """
    features, done = np.empty((0, 0), dtype=np.float32), 0
    for rows, values in FeaturePass(backbone, cut, precision).run(data.inputs):
        if not len(features):
            features = np.empty((len(data), values.shape[1]), dtype=np.float32)
        features[rows], done = values, done + len(rows)
        if progress is not None:
            progress(done, len(data))
    return features


def first_not_finite(features: NDArray[np.float32]) -> int | None:
    """Index of the first record with a NaN or infinite feature, for its owner's eyes only; None if all are fine."""
    for start in range(0, len(features), 4096):
        bad = np.flatnonzero(~np.isfinite(features[start : start + 4096]).all(axis=1))
        if len(bad):
            return start + int(bad[0])
    return None


def as_tensor(features: NDArray[np.float32], rows: NDArray[np.int64]) -> Tensor:
    """Copy some rows of (possibly memory-mapped) features, shape (len(rows), D)."""
    return torch.from_numpy(np.asarray(features)[rows])  # a memory map is slow to index as such

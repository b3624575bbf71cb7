"""Features: the trunk's outputs, computed once per record and kept.

The cache is content-addressed. A folder per (backbone digest, cut, preprocessing) holds segments; a segment is one
safetensors file with the SHA-256 of each record and its features, written whole and renamed into place, mode 0600.
Nothing in it ever goes stale: another record, another cut or another backbone is another address.
"""

from __future__ import annotations

import copy
import hashlib
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from common.backbones.backbone import LENGTH_STEP, Activations, Backbone, CutsTexts, Preprocessing
from common.backbones.controls import load_reference
from common.data.local import LocalData
from common.data.records import Inputs, take_inputs
from common.errors import ConfigError
from common.grafting import Trunk, cut_point
from common.places import cache_bytes, cache_folder
from common.segments import Segments, as_keys, make_room, mark_used, write_segment

BATCH = 64  # records of one forward pass; always full, so that a record's features do not depend on its neighbours
TRIES = 3  # of finding in the cache what was just written there
FORMAT = 2  # counts up when the way of computing features changes their bits

Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class FeatureCache:
    """Trunk outputs on disk.

    Attributes:
        folder: where segments live; made on first use, mode 0700.
        most_bytes: bound on its size; what was used longest ago makes room.
    """

    folder: Path
    most_bytes: int = 50 * 2**30

    def features(
        self, backbone: Backbone, cut: str | None, data: LocalData, progress: Progress | None = None
    ) -> NDArray[np.float32]:
        """Features of each record of ``data``, shape (N, D), computed where the cache lacks them.

        Args:
            backbone: whose stages up to ``cut`` are applied.
            cut: last frozen stage; None is the last stage of all.
            data: the records.
            progress: called with (records done, records to compute) after each batch.

        Returns:
            float32, read-only; memory-mapped where one segment holds the records in this order.

        Raises:
            ConfigError: the cut does not exist, a segment is damaged, or the disk is full.
        """
        place = self.folder / address(backbone, cut)
        wanted = as_keys(data.record_digests())
        for _ in range(TRIES):
            mark_used(place)
            known = Segments(place)
            missing = np.flatnonzero(~known.contains(wanted))
            if not len(missing):
                return known.rows(wanted)
            _, first = np.unique(wanted[missing], return_index=True)
            fresh = missing[np.sort(first)]
            values = extract(backbone, cut, data.take(fresh), progress)
            make_room(self.folder, place, values.nbytes, self.most_bytes)
            write_segment(place, wanted[fresh], values)
        raise ConfigError(
            f"the feature cache {self.folder} lost what was written, {TRIES} times: another process empties it; wait "
            "for it, or give this one a cache of its own in FEDGRAFT_CACHE"
        )

    def purge(self) -> int:
        """Delete every segment; returns how many bytes were freed."""
        freed = 0
        for path in sorted(self.folder.glob("*/*.safetensors")):
            freed += path.stat().st_size
            path.unlink()
        return freed


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


def address(backbone: Backbone, cut: str | None) -> str:
    """Name of the folder for a trunk: 32 hex digits over everything that decides its outputs."""
    key = {
        "format": FORMAT,
        "backbone": backbone.digest,
        "cut": cut_point(backbone, cut),
        "preprocessing": backbone.preprocessing.describe(),
        "device": _device().type,
    }
    return hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()[:32]


@torch.inference_mode()
def extract(
    backbone: Backbone, cut: str | None, data: LocalData, progress: Progress | None = None
) -> NDArray[np.float32]:
    """One forward pass of the trunk over all records, shape (N, D), float32.

    Every batch has as many records (the last one is padded) and holds texts of one length, in steps, so that a record
    yields the same bits whatever else is computed with it. Convolutions run with channels last, a third faster on a
    CPU, and on a GPU where there is one.
    """
    device = _device()
    trunk = copy.deepcopy(Trunk(backbone, cut)).to(device)  # the backbone itself stays where it is, as it is
    trunk.to(memory_format=torch.channels_last)
    features, done = np.empty((0, 0), dtype=np.float32), 0
    for rows in _batches(_steps(backbone.preprocessing, data.inputs)):
        padded = np.concatenate([rows, np.repeat(rows[-1:], BATCH - len(rows))])
        inputs = _moved(backbone.preprocessing(take_inputs(data.inputs, padded)), device)
        values = trunk(inputs)[: len(rows)].float().cpu().numpy()
        if not len(features):
            features = np.empty((len(data), values.shape[1]), dtype=np.float32)
        features[rows], done = values, done + len(rows)
        if progress is not None:
            progress(done, len(data))
    return features


def _steps(preprocessing: Preprocessing, inputs: Inputs) -> NDArray[np.int64]:
    """How long each record is, in steps of ``LENGTH_STEP`` tokens, shape (N,); all the same but for texts."""
    if not isinstance(preprocessing, CutsTexts):
        return np.zeros(len(inputs), dtype=np.int64)
    parts = [
        preprocessing.encode(inputs[start : start + 1024]).mask.sum(dim=1) for start in range(0, len(inputs), 1024)
    ]
    return np.asarray(torch.cat(parts).div(LENGTH_STEP).ceil().long().numpy())


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


def _device() -> torch.device:
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def _moved(activations: Activations, device: torch.device) -> Activations:
    if not isinstance(activations, Tensor):
        return tuple(part.to(device) for part in activations)
    layout = torch.channels_last if activations.dim() == 4 else torch.contiguous_format
    return activations.to(device).contiguous(memory_format=layout)


def _batches(steps: NDArray[np.int64]) -> Iterator[NDArray[np.int64]]:
    """Indices of the records of each batch, which need equally many steps; long texts first."""
    for step in np.unique(steps)[::-1]:
        rows = np.flatnonzero(steps == step)
        yield from (rows[start : start + BATCH] for start in range(0, len(rows), BATCH))

"""Records that occur more than once."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from common.data.local import Indices, LocalData


@dataclass(frozen=True)
class Doubles:
    """Counts of exact repetitions, by the digest of a record's input.

    Attributes:
        records: how many repeat an earlier one.
        across_splits: test records that are among the training records too.
        other_labels: records that repeat one with another label.
    """

    records: int = 0
    across_splits: int = 0
    other_labels: int = 0


NO_DOUBLES = Doubles()


def find_doubles(data: LocalData) -> Doubles:
    """Compare every record with every other, by digest."""
    digests = data.record_digests()
    keys = np.ascontiguousarray(digests).view(np.dtype((np.void, digests.shape[1]))).ravel()
    _, first, same = np.unique(keys, return_index=True, return_inverse=True)
    labels = data.labels.reshape(len(data), -1)
    return Doubles(
        records=len(data) - len(first),
        across_splits=_across(same.astype(np.int64), data.split == "test") if data.split is not None else 0,
        other_labels=int((labels != labels[first[same]]).any(axis=1).sum()),
    )


def _across(same: Indices, test: npt.NDArray[np.bool_]) -> int:
    return int(np.isin(same[test], same[~test]).sum())

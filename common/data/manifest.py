"""Images or sounds that a table lists: path, label, patient, site, split."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np

from common.data.decoding import Unreadable
from common.data.fields import Fields, read_labels, read_origins
from common.data.local import LocalData
from common.data.media import read_media
from common.errors import ConfigError


def read_manifest(fields: Fields, root: Path, unreadable: list[Unreadable] | None = None) -> LocalData:
    """Read the files that the column ``path`` names.

    Args:
        fields: rows with ``path`` and ``label`` or ``labels``, and perhaps ``site``, ``patient``, ``split``.
        root: what relative paths are relative to: the manifest's folder.
        unreadable: where a list is given, files that cannot be read are added to it and left out.

    Returns:
        The records, in the order of the rows.

    Raises:
        ConfigError: a column or a value is missing, a file is listed twice, cannot be read or is of another kind.
    """
    names = fields.strings("path")
    paths = [root / name for name in names]
    _refuse_repeated(fields, paths)
    labels, classes, task = read_labels(fields)
    origins = read_origins(fields)
    inputs, modality, kept = read_media(paths, unreadable)
    chosen = {name: None if column is None else np.asarray(column)[kept] for name, column in origins.items()}
    return LocalData(
        inputs,
        labels[kept],
        classes,
        modality=modality,
        task=task,
        site=chosen["site"],
        patient=chosen["patient"],
        split=chosen["split"],
        group=chosen["group"],
        file=np.array([Path(name).as_posix() for name in names], dtype=np.str_)[kept],
    )


def _refuse_repeated(fields: Fields, paths: list[Path]) -> None:
    """One file must not make two records: each would be protected as if it stood alone."""
    real = [path.resolve() for path in paths]
    times = Counter(real)
    repeated = [path for path in real if times[path] > 1]
    if repeated:
        raise ConfigError(
            f"{fields.name('path')} must list each file once, got {len(set(repeated))} files several times, the first "
            f"is {repeated[0]}; for several labels of one image write them into one row (labels = a|b)"
        )

"""Records of one hospital, their labels by the class list that the whole federation agreed on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from common.data.local import LocalData
from common.data.sources import read_source
from common.errors import ConfigError


def load_agreed(source: str, keys: Mapping[str, str], classes: Sequence[str], root: Path) -> LocalData:
    """Read a data source whose classes are among those agreed on; some of them may have no example here.

    Args:
        source: as ``sources.load_source`` takes it.
        keys: likewise.
        classes: agreed on, in their order.
        root: what a relative path is relative to.

    Raises:
        ConfigError: nothing there, unreadable, no record, or a class that nobody agreed on.
    """
    data = with_classes(read_source(source, keys, root), tuple(classes))
    if not len(data):
        raise ConfigError(f"expected at least one record in data.source = {source!r}, found none; check the path")
    return data


def with_classes(data: LocalData, classes: tuple[str, ...]) -> LocalData:
    """The same records with labels that are indices into ``classes``.

    Raises:
        ConfigError: they have a class that is not in the list.
    """
    if data.classes == classes:
        return data
    strangers = sorted(set(data.classes) - set(classes))
    if strangers:
        raise ConfigError(
            f"expected only the classes {', '.join(classes)} that data.classes lists, the data have {strangers[0]!r} "
            "too; correct the list or the data"
        )
    places = np.array([classes.index(name) for name in data.classes], dtype=np.int64)
    if data.task == "multilabel":
        labels = np.zeros((len(data), len(classes)), dtype=data.labels.dtype)
        labels[:, places] = data.labels
    elif data.task in ("classification", "tokens"):
        labels = np.where(data.labels < 0, data.labels, places[data.labels])  # -1: no word
    else:
        labels = data.labels
    return replace(data, labels=labels, classes=classes)

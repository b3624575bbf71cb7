"""Where records come from: scikit-learn's digits, an ``.npz`` file, a folder of images."""

from __future__ import annotations

from collections.abc import Mapping
from difflib import get_close_matches
from pathlib import Path
from types import MappingProxyType

import numpy as np

from common.data.archive import load_npz
from common.data.folder import load_folder
from common.data.labels import require_every_class
from common.data.local import LocalData
from common.errors import ConfigError

BUILT_IN = ("digits",)
NO_KEYS: Mapping[str, str] = MappingProxyType({})


def load_source(source: str, keys: Mapping[str, str] = NO_KEYS, root: Path = Path()) -> LocalData:
    """Read all records of a data source into memory.

    >>> digits = load_source("digits")
    >>> len(digits), digits.inputs[0].shape, digits.classes[-1]
    (1797, (8, 8), '9')

    Args:
        source: ``"digits"``, or the path of an ``.npz`` file or of an image folder (``./digits`` for a folder of that
            name).
        keys: for an ``.npz``, the file's own name of each role in ``archive.ROLES``, where it differs.
        root: what a relative path is relative to.

    Returns:
        The records in an order that depends on nothing but the source. The class list is the sorted set of all
        labels (or the one that the file declares) and is a public constant from here on.

    Raises:
        ConfigError: nothing there, unreadable, not as described, fewer than two classes, or a class without example.
    """
    data = _load(source, keys, root)
    require_every_class(data)
    return data


def _load(source: str, keys: Mapping[str, str], root: Path) -> LocalData:
    path = root / Path(source).expanduser()
    if source not in BUILT_IN and path.is_file():
        return load_npz(path, keys)
    if keys:
        raise ConfigError(f"data.keys names arrays of an .npz file, but data.source is {source!r}; remove data.keys")
    if source in BUILT_IN:
        return load_digits()
    if path.is_dir():
        return load_folder(path)
    raise ConfigError(_missing(source, path))


def _missing(source: str, path: Path) -> str:
    near = get_close_matches(source, BUILT_IN, n=1)
    hint = f"; did you mean {near[0]!r}?" if near else "; correct data.source or put the file there"
    return f"data.source must be 'digits', an .npz file or an image folder, but there is nothing at {path}{hint}"


def load_digits() -> LocalData:
    """scikit-learn's 1,797 handwritten digits, (1797, 8, 8), their 0..16 scaled to 0..255."""
    from sklearn.datasets import load_digits as bundled  # here: takes a second, which other sources need not pay

    digits = bundled()
    pixels = np.rint(digits.images * (255 / 16)).astype(np.uint8)
    return LocalData(pixels, digits.target.astype(np.int64), tuple(str(digit) for digit in range(10)))

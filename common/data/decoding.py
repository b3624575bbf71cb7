"""Many files decoded side by side, each on its own."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from common.data.records import Indices
from common.errors import ConfigError


@dataclass(frozen=True)
class Unreadable:
    """A file that could not be read.

    Attributes:
        path: the file; it may name a patient and stays on this machine.
        reason: why, in a few words.
    """

    path: Path
    reason: str


def decode_files(
    paths: Sequence[Path],
    decode: Callable[[Path], Any | str],
    named: str,
    unreadable: list[Unreadable] | None = None,
) -> tuple[list[Any], Indices]:
    """Decode files in threads.

    Args:
        paths: N files.
        decode: what a file holds, or a text that says why nothing.
        named: what the files are, in messages.
        unreadable: where a list is given, files that cannot be read are added to it and left out.

    Returns:
        What was decoded, in the order of ``paths``, and the indices of these files, int64.

    Raises:
        ConfigError: some file cannot be read and no list is given; the message names the first and counts them.
    """
    with warnings.catch_warnings(), ThreadPoolExecutor(max_workers=min(8, os.cpu_count() or 1)) as pool:
        warnings.simplefilter("ignore")
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        warnings.filterwarnings("error", message="Reached EOF prematurely")  # scipy on a sound that was cut off
        decoded = list(pool.map(decode, paths))
    wrong = [Unreadable(path, item) for path, item in zip(paths, decoded, strict=True) if isinstance(item, str)]
    if wrong and unreadable is None:
        raise ConfigError(
            f"{len(wrong)} of {len(paths)} {named} cannot be read, the first is {wrong[0].path} ({wrong[0].reason}); "
            "repair or remove them"
        )
    if unreadable is not None:
        unreadable += wrong
    kept = [index for index, item in enumerate(decoded) if not isinstance(item, str)]
    return [decoded[index] for index in kept], np.array(kept, dtype=np.int64)

"""One way to write a value as bytes, so that two machines hash the same promise to the same digest."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any

_ENCODER = json.JSONEncoder(sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False)


def canonical_json(value: Mapping[str, Any]) -> str:
    r"""Write ``value`` as JSON with sorted keys, no spaces, ASCII only, shortest exact floats, no NaN or infinity.

    >>> canonical_json({"b": 1.0, "a": "é"})
    '{"a":"\\u00e9","b":1.0}'
    """
    return _ENCODER.encode(value)


def sha256_hex(*parts: str) -> str:
    """SHA-256, in hex, over the parts, each preceded by its length so that no two lists of parts collide.

    >>> sha256_hex("ab", "c") == sha256_hex("a", "bc")
    False
    """
    digest = hashlib.sha256()
    for part in parts:
        data = part.encode()
        digest.update(f"{len(data)}:".encode() + data)
    return digest.hexdigest()

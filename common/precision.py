"""Which precision a backbone's features are computed in: decided by what is known of machine and network.

No stopwatch is involved, so that the same machine always decides alike.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from common import durable
from common.backbones.backbone import Backbone
from common.errors import ConfigError
from common.feature_pass import FeaturePass, Precision, device
from common.folding import deviation
from common.grafting import Trunk, cut_point
from common.made_up import made_up_records
from common.places import cache_folder

Setting = Literal["auto", "float32", "bfloat16"]

CLOSE_ENOUGH = 0.1  # of a record's norm, for each of the made-up records
WORTH_IT = 100_000_000  # floating-point operations a record; fewer take about a millisecond in float32 as well
EXAMPLES = 16

_FORMAT = 2  # counts up when what is measured changes


def resolve(setting: Setting, backbone: Backbone, cut: str | None) -> Precision:
    """The precision that a setting means on this machine.

    Args:
        setting: ``"auto"`` takes bfloat16 where the processor computes in it, the network is large enough to gain by it
            and its features stay within ``CLOSE_ENOUGH`` of float32's on made-up records; otherwise float32.
        backbone: whose stages up to ``cut`` are applied.
        cut: last frozen stage; None is the last stage of all.

    Raises:
        ConfigError: the cut does not exist.
    """
    if setting != "auto":
        return setting
    cut = cut_point(backbone, cut)
    if not computes_bfloat16() or operations(backbone, cut) < WORTH_IT:
        return "float32"
    found = bfloat16_deviation(backbone, cut)
    return "bfloat16" if found is not None and found <= CLOSE_ENOUGH else "float32"


def computes_bfloat16() -> bool:
    """Whether the processor has instructions for bfloat16; without, it is slower than float32."""
    if device().type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    able = torch.cpu.get_capabilities()
    return any(bool(able.get(name)) for name in ("avx512_bf16", "amx_bf16", "bf16"))


def operations(backbone: Backbone, cut: str) -> int:
    """Floating-point operations of the trunk for one record."""
    preprocessing = backbone.preprocessing
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        Trunk(backbone, cut)(preprocessing(preprocessing.blank()))
    return int(counter.get_total_flops())


def bfloat16_deviation(backbone: Backbone, cut: str) -> float | None:
    """Largest relative distance between a made-up record's features in bfloat16 and in float32.

    It is measured once for each backbone and cut, and kept in the user's cache folder.

    Returns:
        None where it cannot be measured: nothing is made up for such records, or the network cannot run in bfloat16.
    """
    key = {
        "format": _FORMAT,
        "backbone": backbone.digest,
        "cut": cut,
        "preprocessing": backbone.preprocessing.describe(),
        "device": device().type,
        "torch": torch.__version__,
    }
    name = hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()
    path = cache_folder() / "precision" / f"{name}.json"
    kept = _read(path)
    if kept is None:
        kept = {"deviation": _measure(backbone, cut)}
        path.parent.mkdir(parents=True, exist_ok=True)
        durable.write_json(path, kept)
    found: float | None = kept["deviation"]
    return found


def _measure(backbone: Backbone, cut: str) -> float | None:
    precisions: tuple[Precision, ...] = ("float32", "bfloat16")
    try:
        records = made_up_records(backbone.preprocessing, EXAMPLES)
        if records is None:
            return None
        exact, found = (_features(FeaturePass(backbone, cut, precision), records) for precision in precisions)
    except (ConfigError, RuntimeError, TypeError):  # a user's module that insists on float32, say
        return None
    largest = deviation(exact, found)
    return largest if largest < float("inf") else None


def _features(ready: FeaturePass, records: Any) -> Tensor:
    by_row = {int(row): values for rows, part in ready.run(records) for row, values in zip(rows, part, strict=True)}
    return torch.stack([torch.from_numpy(by_row[row]).double() for row in range(len(by_row))])


def _read(path: Path) -> dict[str, Any] | None:
    try:
        kept: dict[str, Any] = json.loads(path.read_bytes())
    except (OSError, ValueError):
        return None
    return kept if isinstance(kept, dict) and "deviation" in kept else None

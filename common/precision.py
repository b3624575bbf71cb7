"""Which precision a backbone's features are computed in: decided by what is known of machine and network.

No stopwatch is involved, so that the same machine always decides alike.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Literal

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from common import durable
from common.backbones.backbone import Backbone
from common.errors import ConfigError
from common.feature_pass import FeaturePass, Precision, device
from common.folding import deviation
from common.grafting import Trunk, cut_point
from common.made_up import made_up_records
from common.paths import cache_folder

Setting = Literal["auto", "float32", "bfloat16"]

CLOSE_ENOUGH = 0.1  # of a record's norm, for each of the made-up records
WORTH_IT = 100_000_000  # floating-point operations a record; fewer take about a millisecond in float32 as well
EXAMPLES = 16

_FORMAT = 3  # counts up when what is measured changes


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
    """Floating-point operations of the trunk for one record, in convolutions and matrix products; two a product."""
    preprocessing = backbone.preprocessing
    counter = _Counter()
    with torch.no_grad(), counter:
        Trunk(backbone, cut)(preprocessing(preprocessing.blank()))
    return 2 * counter.products


class _Counter(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts products; PyTorch's own counter would do, but imports a compiler for it."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.products: int = 0

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False  # or the compiler is imported, in order not to be used

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        found = func(*args, **(kwargs or {}))
        self.products += _products(func, args, found)
        return found


def _products(func: Any, args: Sequence[Any], found: Any) -> int:
    """Products in one of PyTorch's operators, of these arguments and with this result."""
    name = func.overloadpacket.__name__
    if name == "convolution":
        inputs, weight, transposed = args[0], args[1], args[6]
        return int((inputs if transposed else found).numel() * weight[0].numel())
    if name in ("mm", "bmm", "addmm", "baddbmm"):
        return int(found.numel() * args[-1].shape[-2])
    if name.startswith("_scaled_dot_product"):
        query, key, value = args[:3]
        return int(query[..., 0].numel() * key.shape[-2] * (query.shape[-1] + value.shape[-1]))
    return 0


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
        with suppress(OSError, ConfigError):  # it is measured again where it cannot be kept
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
        prepared = backbone.preprocessing(records)
        exact, found = (FeaturePass(backbone, cut, precision).features(prepared).double() for precision in precisions)
    except (ConfigError, RuntimeError, TypeError):  # a user's module that insists on float32, say
        return None
    largest = deviation(exact, found)
    return largest if largest < float("inf") else None


def _read(path: Path) -> dict[str, Any] | None:
    try:
        kept: dict[str, Any] = json.loads(path.read_bytes())
    except (OSError, ValueError):
        return None
    return kept if isinstance(kept, dict) and "deviation" in kept else None

"""Whether what a network makes of a record may depend on the record's place in a batch, or on its company.

A network may mix records, by the mean of a batch, say. And its last bits may tell places apart: how a matrix product
rounds depends on whether a row begins at a multiple of 16 bytes, and sigmoids are worked out several numbers at a time,
the last ones singly. A record that joins moves the others' places, and a server that chooses weights can make a
gradient of a bit (docs/decisions/0007-heads.md).
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from common.backbones.backbone import Activations

ALIKE = 8  # numbers: rows that begin at multiples of so many are computed alike, in float32 and in bfloat16
APART = {"float32": 1e-4, "bfloat16": 2e-2}  # of a record's norm: by more, its features depend on its company
AT_ONCE = 32  # numbers that a processor works out together, at most; the last ones, where fewer are left, singly
_EXACT = (
    # one number from one or two, as IEEE 754 says
    *("add", "sub", "rsub", "mul", "div", "neg", "abs", "square", "sqrt", "relu", "relu6", "clamp", "clamp_min"),
    *("clamp_max",),
    *("hardtanh", "hardswish", "hardsigmoid", "maximum", "minimum", "sign", "floor", "round", "eq", "ne", "lt", "le"),
    *("gt", "ge", "isnan", "logical_not", "logical_and", "bitwise_not", "bitwise_and"),
    # numbers moved, chosen, made
    *("view", "_unsafe_view", "reshape", "permute", "transpose", "t", "expand", "expand_as", "flatten", "select"),
    *("slice", "squeeze", "unsqueeze", "split", "split_with_sizes", "unbind", "chunk", "alias", "as_strided", "detach"),
    *("clone", "copy", "_to_copy", "to", "contiguous", "cat", "stack", "index", "index_select", "gather", "embedding"),
    *("where", "masked_fill", "fill", "pad", "constant_pad_nd", "flip", "roll", "dropout", "arange", "zeros", "ones"),
    *("zeros_like", "ones_like", "full_like", "empty_like", "new_zeros", "new_ones", "new_empty", "full", "empty"),
    *("scalar_tensor", "lift_fresh", "_local_scalar_dense", "item", "max_pool2d", "max_pool2d_with_indices"),
)
_TRIED = (  # each place in a batch gave the same bits (docs/decisions/0008-feature-pass.md)
    *("batch_norm", "native_batch_norm", "_native_batch_norm_legit_no_training", "_batch_norm_impl_index"),
    *("group_norm", "native_group_norm"),
    *("layer_norm", "native_layer_norm", "avg_pool2d", "_adaptive_avg_pool2d", "adaptive_avg_pool2d"),
    "_convolution_pointwise",  # oneDNN's own, of a single place and of any channels, too
)
_ANYWHERE = frozenset((*_EXACT, *_TRIED))
_ALONG = {  # the same, where records are apart in memory; position of the argument that says along what
    **dict.fromkeys(("mean", "sum", "std", "var", "amax", "softmax", "_softmax", "scatter_add"), 1),
    **dict.fromkeys(("linalg_vector_norm", "norm"), 2),
}
_CONVOLUTIONS = frozenset({"convolution", "_convolution", "mkldnn_convolution", "conv1d", "conv2d", "conv3d"})
_NUMBER_BY_NUMBER = frozenset(
    {*("sigmoid", "silu", "softplus", "mish", "elu", "leaky_relu", "prelu", "gelu", "tanh", "exp", "expm1", "log")}
    | {*("log1p", "pow", "rsqrt", "reciprocal", "erf", "sin", "cos")}
)


@torch.inference_mode()
def computes_alike(
    network: nn.Module,
    run: Callable[[Activations], Tensor],
    examples: Activations,
    batch: int,
    precision: str = "float32",
) -> bool:
    """Whether no place in a batch, and no company, differs from another for any operation, as far as an example shows.

    Args:
        network: its weights are the same for every place, however they lie in memory.
        run: maps the examples to features by it, as records will be.
        examples: two records.
        batch: how many records will go together.
        precision: of products and convolutions; in bfloat16, rounding alone moves features by more.
    """
    examples = examples if isinstance(examples, tuple) else (examples,)
    weights = {_memory(values) for values in (*network.parameters(), *network.buffers())}
    with _Looking(batch, weights) as looking:
        try:
            together = run(_as_given(examples, slice(0, 2)))
        except RuntimeError:  # whoever runs it will hear of it
            return False
    if not looking.alike:
        return False
    with contextlib.suppress(RuntimeError):
        alone = torch.cat([run(_as_given(examples, slice(place, place + 1))) for place in (0, 1)])
        return bool(((together - alone).norm(dim=1) <= APART[precision] * alone.norm(dim=1)).all())
    return False


class _Looking(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Looks at what goes into each operation and comes out."""

    alike: bool

    def __init__(self, batch: int, weights: set[int]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.alike, self._batch, self._weights = True, batch, weights

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False  # or the compiler is imported, in order not to be used

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        found, name = func(*args, **kwargs), func.overloadpacket.__name__.removesuffix("_")
        if self.alike and name in _ALONG:
            self.alike = _keeps_apart(args[0], kwargs.get("dim", next(iter(args[_ALONG[name] :]), None)))
        elif self.alike and (name not in _ANYWHERE or _scaled(kwargs)):
            values = [part for part in _tensors((args, kwargs, found)) if _memory(part) not in self._weights]
            self.alike = self._is_alike(name, args, values)
        return found

    def _is_alike(self, name: str, args: Any, all_: list[Tensor]) -> bool:
        if name in _CONVOLUTIONS:  # one of a single place is a product
            outputs, inputs, *kernel = args[1].shape
            return bool(outputs % ALIKE == 0 and (inputs % ALIKE == 0 or max(kernel) > 1))
        together = [values for values in all_ if values.dim() > 1]
        if name in _NUMBER_BY_NUMBER or name in _ANYWHERE:
            return all(values.numel() // 2 * self._batch % AT_ONCE == 0 for values in together)
        return all(values.shape[-1] % ALIKE == values.numel() % (2 * ALIKE) == 0 for values in together)


def _keeps_apart(values: Tensor, along: Any) -> bool:
    """Whether what is done along these dimensions stays within a record, and records are apart in memory."""
    if values.dim() < 2 or along is None or isinstance(along, bool) or along == []:
        return False
    within = [each % values.dim() for each in (along if isinstance(along, list | tuple) else [along])]
    return 0 not in within and values.stride(0) == max(values.stride())


def _scaled(kwargs: dict[str, Any]) -> bool:
    """Whether an operation of ``_EXACT`` does more than that: several numbers at a time, and the last ones singly."""
    return kwargs.get("alpha", 1) != 1 or kwargs.get("rounding_mode") is not None


def _as_given(examples: tuple[Tensor, ...], rows: slice) -> Activations:
    parts = tuple(part[rows] for part in examples)
    return parts if len(parts) > 1 else parts[0]


def _tensors(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, list | tuple | dict):
        for part in value.values() if isinstance(value, dict) else value:
            yield from _tensors(part)


def _memory(values: Tensor) -> int:
    """What tells tensors apart of which one is not a view of the other; oneDNN's own layouts have no views."""
    return values.untyped_storage().data_ptr() if values.layout == torch.strided else id(values)

"""Fusing: a convolution adds what is added to its output and applies the activation behind it, before it writes.

Its weights are laid out once as the processor's kernels want them. What follows what is read off a traced graph, and
tried out: where the outputs differ by more than rounding, nothing is fused.
"""

from __future__ import annotations

import itertools
import operator
from typing import Any, cast

import torch
from torch import Tensor, fx, nn
from torch.nn import functional

from common import place_products, row_products, small_maps
from common.backbones.backbone import Activations
from common.folding import EXACT_ENOUGH, fold, largest_deviation
from common.grafting import Trunk, threads, twin
from common.tracing import FINITE_MODULES, may_write, stays_finite, traced

_Scalars = list[float]
_Instead = small_maps.MapProduct | place_products.PlaceProducts | row_products.RowProducts
_RELU: tuple[str, _Scalars] = ("relu", [])
_RELU6: tuple[str, _Scalars] = ("hardtanh", [0.0, 6.0])
_MODULES: dict[type[nn.Module], tuple[str, _Scalars]] = {
    nn.ReLU: _RELU,
    nn.ReLU6: _RELU6,
    nn.SiLU: ("swish", []),
    nn.Hardswish: ("hardswish", []),
}
_FUNCTIONS: dict[Any, tuple[str, _Scalars]] = {
    functional.relu: _RELU,
    torch.relu: _RELU,
    torch.relu_: _RELU,
    functional.relu6: _RELU6,
    "relu": _RELU,
    "relu_": _RELU,
}
_ADDITIONS = (operator.add, operator.iadd, torch.add)


def fuse_convolutions(trunk: Trunk, examples: Activations | None, batch: int) -> Trunk | None:
    """A copy with BatchNorms folded and convolutions fused with what follows, where that changes outputs by rounding.

    Args:
        trunk: stays as it is.
        examples: preprocessed records to try it out on; None fuses nothing.
        batch: records of one forward pass, which weights are laid out for.

    Returns:
        The copy, which shares tensors with the trunk, in channels last and float32; None where there is nothing to
        fuse, or no such kernels.
    """
    if not isinstance(examples, Tensor) or examples.dim() != 4 or not has_kernels():
        return None
    try:
        fused = _fused(trunk, batch)
        if not convolutions(fused):
            return None
        found = largest_deviation(trunk, fused, examples.contiguous(memory_format=torch.channels_last))
    except Exception:  # a user's module may raise anything, and so may another torch, or another processor
        return None
    return fused if found <= EXACT_ENOUGH else None


def has_kernels() -> bool:
    """Whether this torch has them at all."""
    return bool(torch._C._has_mkldnn)


def convolutions(module: nn.Module) -> list[FusedConvolution]:
    """Those that are fused."""
    return [part for part in module.modules() if isinstance(part, FusedConvolution)]


class FusedConvolution(nn.Module):
    """A convolution, with an addition and an activation where they follow; weights are laid out at the first call."""

    def __init__(self, conv: nn.Conv2d, activation: tuple[str, _Scalars] | None, batch: int) -> None:
        super().__init__()
        self.weight, self.bias, self.activation, self._batch = conv.weight, conv.bias, activation, batch
        self._how: list[Any] = [list(conv.padding), list(conv.stride), list(conv.dilation), conv.groups]
        self._dtype, self._input_size = conv.weight.dtype, list[int]()
        self.register_buffer("_packed", None)
        self._instead: _Instead | None = None

    def forward(self, inputs: Tensor, other: Tensor | None = None) -> Tensor:
        """Apply the activation to the convolution of (N, C, H, W), plus ``other`` of the output's shape."""
        if not self._input_size:
            self._input_size = [self._batch, *inputs.shape[1:]]
            self._instead = self._cheaper()
        inputs = inputs.to(self._dtype).contiguous(memory_format=torch.channels_last)
        if other is not None:
            other = other.to(self._dtype).contiguous(memory_format=torch.channels_last)
        name, scalars = self.activation or ("none", [])
        if self._instead is not None and inputs.shape[2:] == self._instead.size:
            return cast(Tensor, self._instead(inputs, other, name, scalars))
        if self._packed is None:
            self._pack()
        run, weights = torch.ops.mkldnn._convolution_pointwise, (self._packed, self.bias, *self._how)
        if other is None:
            return cast(Tensor, run(inputs, *weights, name, scalars, ""))
        last = (name, scalars, "") if self.activation else (None, [], None)
        return cast(Tensor, run.binary(inputs, other, *weights, "add", 1.0, *last))

    def settle(self, dtype: torch.dtype) -> None:
        """Take the precision to compute in, and forget the weights where they are laid out; once, after a call."""
        if dtype != self._dtype:
            self._dtype = dtype
            self.weight = nn.Parameter(self.weight.detach().to(dtype), requires_grad=False)
            self.bias = None if self.bias is None else nn.Parameter(self.bias.detach().to(dtype), requires_grad=False)
            self._instead = self._cheaper()
            self._packed = None
        if self._instead is None:
            self._pack()
            del self.weight

    @torch.no_grad()
    def _pack(self) -> None:
        with threads(1):  # as the workers of a pass run
            self._packed = torch.ops.mkldnn._reorder_convolution_weight(self.weight, *self._how, self._input_size)

    @torch.no_grad()
    def _cheaper(self) -> _Instead | None:
        """What does the same to maps of this size with fewer products, if there is anything."""
        (*how, groups), size = self._how, self._input_size[2:]
        with threads(1):
            if place_products.is_worth_it(self.weight, self._how, size):
                return place_products.PlaceProducts(self.weight, self.bias, size)
            if small_maps.is_worth_it(self.weight, groups, size):
                return small_maps.MapProduct(self.weight, self.bias, how, size, self._batch)
            if row_products.is_worth_it(self.weight, self._how, size[0]):
                return row_products.RowProducts(self.weight, self.bias, self._batch, size)
        return None


def _fused(trunk: Trunk, batch: int) -> Trunk:
    """A copy in which all is fused that can be, right or not."""
    fused, finite = fold(trunk), True
    for number, stage in enumerate(fused.stages):
        fused.stages[number], finite = _fused_stage(stage, batch, finite)
    for module in fused.modules():  # those that are not fused; the others lay out their own weights
        if type(module) is nn.Conv2d and "weight" in module._parameters:
            laid_out = module.weight.detach().contiguous(memory_format=torch.channels_last)
            module.weight = nn.Parameter(laid_out, requires_grad=False)
    return fused


def _fused_stage(stage: nn.Module, batch: int, finite: bool) -> tuple[nn.Module, bool]:
    """The stage with its convolutions fused, as far as it can be traced; and whether what leaves it must be finite.

    Args:
        stage: stays as it is.
        batch: see ``fuse_convolutions``.
        finite: whether what enters it must be. The kernels' activations take a NaN for 0, by which a record that
            nothing can be said of would look like any other: they are used only where there can be none.
    """
    if not any(_can_fuse(part) for part in stage.modules()):
        return stage, finite and all(type(part) in FINITE_MODULES for part in stage.modules())
    root = twin(stage)  # a user's module may keep what it saw while it was traced
    try:
        graph = traced(root)
    except Exception:  # a user's module may raise anything; it stays as it is
        return stage, False
    _drop_identities(root, graph)
    for node in list(graph.nodes):
        if node.op == "call_module" and _can_fuse(root.get_submodule(node.target)) and len(node.all_input_nodes) == 1:
            _fuse(root, graph, node, batch, finite)
        elif not node._erased:
            finite = finite and stays_finite(root, node)
    return _Traced(fx.GraphModule(root, graph)), finite


class _Traced(nn.Module):
    """A graph's module, which would print where it failed, to whom nobody asked."""

    def __init__(self, module: fx.GraphModule) -> None:
        super().__init__()
        self.module = module

    def forward(self, inputs: Activations) -> Any:
        """Whatever the stage maps its input to."""
        return self.module.forward(inputs)


def _can_fuse(module: nn.Module) -> bool:
    return type(module) is nn.Conv2d and module.padding_mode == "zeros" and not isinstance(module.padding, str)


def _drop_identities(root: nn.Module, graph: fx.Graph) -> None:
    for node in list(graph.nodes):
        kept = node.op != "call_module" or type(root.get_submodule(str(node.target))) is not nn.Identity
        if not kept and len(node.args) == 1 and isinstance(node.args[0], fx.Node) and not node.kwargs:
            node.replace_all_uses_with(node.args[0])
            graph.erase_node(node)


def _fuse(root: nn.Module, graph: fx.Graph, conv: fx.Node, batch: int, finite: bool) -> None:
    """Put one module in the place of a convolution and of what follows it; of an activation where all is finite."""
    replaced, inputs = [conv], list(conv.all_input_nodes)
    added = _only_user(conv)
    other = None if added is None else _added_before(graph, conv, added)
    if added is not None and other is not None:
        replaced.append(added)
        inputs.append(other)
    behind = _only_user(replaced[-1])
    activation = None if behind is None or not finite else _activation(root, behind)
    if other is not None and activation != _RELU:
        activation = None  # the kernels know no other one behind an addition
    if behind is not None and activation is not None:
        replaced.append(behind)
    nodes = list(graph.nodes)
    between = nodes[nodes.index(conv) : nodes.index(replaced[-1])]
    if any(may_write(root, node) for node in between if node not in replaced):
        replaced, inputs, activation = [conv], inputs[:1], None
    name = f"fused_{conv.name}"
    while hasattr(root, name):
        name += "_"
    root.add_module(name, FusedConvolution(cast(nn.Conv2d, root.get_submodule(str(conv.target))), activation, batch))
    with graph.inserting_before(replaced[-1]):
        fused = graph.call_module(name, tuple(inputs))
    replaced[-1].replace_all_uses_with(fused)
    for node in reversed(replaced):
        graph.erase_node(node)


def _only_user(node: fx.Node) -> fx.Node | None:
    return next(iter(node.users)) if len(node.users) == 1 else None


def _added_before(graph: fx.Graph, conv: fx.Node, added: fx.Node) -> fx.Node | None:
    """What an addition adds to the convolution's output, where that is known before the convolution."""
    if added.op != "call_function" or added.target not in _ADDITIONS or len(added.args) != 2 or added.kwargs:
        return None
    others = [value for value in added.args if value is not conv]
    if len(others) != 1 or not isinstance(others[0], fx.Node) or others[0].op == "get_attr":
        return None
    known = itertools.takewhile(lambda node: node is not conv, graph.nodes)
    return others[0] if others[0] in list(known) else None


def _activation(root: nn.Module, node: fx.Node) -> tuple[str, _Scalars] | None:
    if node.op == "call_module":
        return _MODULES.get(type(root.get_submodule(str(node.target))))
    return _FUNCTIONS.get(node.target) if node.op in ("call_function", "call_method") else None

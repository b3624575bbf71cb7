"""What a module does to its input, as a graph of ``torch.fx`` that is not made in its own way, and what nodes do.

That way replaces ``Module.__call__`` while it traces: every network of the process, in whatever thread, then calls the
tracer. Here only the modules that are traced do.
"""

from __future__ import annotations

import operator
from functools import partial
from typing import Any

import torch
from torch import fx, nn
from torch.nn import functional

FINITE_MODULES = frozenset(
    {
        *(nn.Sequential, nn.Identity, nn.Flatten, nn.Dropout, nn.Dropout2d, nn.ZeroPad2d, nn.Upsample, nn.PixelShuffle),
        *(nn.Conv2d, nn.ConvTranspose2d, nn.Linear, nn.BatchNorm2d, nn.GroupNorm, nn.LayerNorm),
        *(nn.MaxPool2d, nn.AvgPool2d, nn.AdaptiveAvgPool2d, nn.AdaptiveMaxPool2d),
        *(nn.ReLU, nn.ReLU6, nn.SiLU, nn.GELU, nn.ELU, nn.LeakyReLU, nn.PReLU, nn.Tanh, nn.Hardtanh),
        *(nn.Sigmoid, nn.Hardsigmoid, nn.Hardswish),
    }
)
"""What leads from finite numbers to finite ones, short of overflow."""
_FINITE_FUNCTIONS = frozenset(
    {
        *(operator.add, operator.iadd, operator.sub, operator.mul, operator.imul, operator.getitem, getattr),
        *(torch.add, torch.mul, torch.cat, torch.flatten, torch.transpose, torch.permute, torch.reshape, torch.chunk),
        *(functional.conv2d, functional.linear, functional.batch_norm, functional.group_norm, functional.layer_norm),
        *(functional.max_pool2d, functional.avg_pool2d, functional.adaptive_avg_pool2d, functional.interpolate),
        *(functional.relu, functional.relu6, functional.silu, functional.gelu, functional.leaky_relu),
        *(functional.hardtanh, functional.hardswish, functional.hardsigmoid, functional.pad, functional.dropout),
        *(torch.relu, torch.relu_, torch.sigmoid, torch.tanh),
    }
)
_FINITE_METHODS = frozenset(
    {*("relu", "relu_", "add", "add_", "mul", "mul_", "sigmoid", "size", "view", "reshape", "flatten", "permute")}
    | {*("transpose", "contiguous", "chunk", "unsqueeze", "squeeze", "mean")}
)
_DIVISIONS = frozenset({operator.truediv, operator.floordiv})
_WRITING = frozenset({"iadd", "isub", "imul", "itruediv", "setitem"})


def traced(root: nn.Module) -> fx.Graph:
    """Trace a module that takes one input; PyTorch's own modules are its nodes.

    Args:
        root: a copy that nobody else uses: constants become attributes of it, and its modules are changed meanwhile.

    Returns:
        Its graph.

    Raises:
        Exception: what the module raises where it looks at values that are not there.
    """
    tracer = fx.Tracer()
    tracer.root, tracer.graph, tracer.tensor_attrs = root, fx.Graph(tracer_cls=fx.Tracer), {}
    tracer.submodule_paths = {module: name for name, module in root.named_modules()}
    modules = list(root.modules())
    try:
        for module in modules[1:]:  # where a compiled network has itself called
            module._compiled_call_impl = partial(_noted, tracer, module)
        found = root(tracer.create_proxy("placeholder", "inputs", (), {}))
    finally:
        for module in modules[1:]:
            module._compiled_call_impl = None
    tracer.create_node("output", "output", (tracer.create_arg(found),), {})
    return tracer.graph


def _noted(tracer: fx.Tracer, module: nn.Module, *args: Any, **kwargs: Any) -> Any:
    return tracer.call_module(module, module._call_impl, args, kwargs)


def stays_finite(root: nn.Module, node: fx.Node) -> bool:
    """Whether a node of its graph is known to lead from finite numbers to finite ones, short of overflow."""
    if node.op == "call_module":
        return type(root.get_submodule(str(node.target))) in FINITE_MODULES
    if node.op == "call_function" and node.target in _DIVISIONS:
        return isinstance(node.args[1], int | float) and node.args[1] != 0
    if node.op == "call_function":
        return node.target in _FINITE_FUNCTIONS
    return node.op != "call_method" or node.target in _FINITE_METHODS


def may_write(root: nn.Module, node: fx.Node) -> bool:
    """Whether a node of its graph may change what it is given; what is moved behind it would see it changed."""
    if node.op == "call_module":
        return any(getattr(part, "inplace", False) is True for part in root.get_submodule(str(node.target)).modules())
    name = str(getattr(node.target, "__name__", node.target))
    return node.op.startswith("call") and (
        name.endswith("_") or name in _WRITING or bool(node.kwargs.get("inplace")) or "out" in node.kwargs
    )

"""What a module does to its input, as a graph, without ``torch.fx``'s own way of finding out.

That one replaces ``Module.__call__`` while it traces: every network of the process, in whatever thread, then calls the
tracer. Here only the modules that are traced do.
"""

from __future__ import annotations

from functools import partial
from typing import Any

from torch import fx, nn


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

"""Heads: the trained part of the model, above the cut point."""

from __future__ import annotations

import copy
import hashlib
import math
from collections.abc import Mapping, Sequence
from functools import lru_cache
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from common.errors import ConfigError
from common.grafting import Layout
from common.solved_heads import SOLVED_HEADS, SolvedHead, check_task
from common.token_heads import (
    SPAN_OUTPUTS,
    TOKEN_TASKS,
    Notes,
    TokenLinear,
    TokenNetwork,
    sequence_shape,
    zero_linear,
)
from common.upper import build_upper

HEADS = ("linear", "mlp", "upper", *SOLVED_HEADS)


def build_head(
    kind: str,
    layout: int | Sequence[Sequence[int]],
    classes: int,
    *,
    hidden: int = 64,
    seed: int = 0,
    task: str = "classification",
    upper: Mapping[str, nn.Module] | None = None,
    train: str = "all",
) -> nn.Module:
    """Make an untrained head, the same one wherever it is made.

    A linear layer starts at zero, so that the first clipped gradients point at class means and no initial noise has to
    be unlearnt; an MLP needs its symmetry broken and is drawn from ``seed``; upper stages start as they were
    pre-trained.

    Args:
        kind: ``"linear"``, ``"mlp"`` (one hidden layer), ``"upper"`` (the stages above the cut, then a linear layer);
            ``"prototype"`` and ``"ridge"`` give what is added up for a head that the server solves.
        layout: what passes the cut, as ``common.grafting.layout`` finds it; an int D means a vector.
        classes: K.
        hidden: width of the MLP's hidden layer.
        seed: of the initial weights of an MLP and of adapters; public.
        task: ``"tokens"`` and ``"spans"`` give logits for every position, any other task one row a record.
        upper: for ``"upper"``: name -> stage, in order; they are left as they are.
        train: for ``"upper"``: ``"all"``, ``"biases"`` (with the norms) or ``"adapters"``, each with the classifier.

    Returns:
        A module, in eval mode where it has upper stages, that maps flat features (N, D) to (N, K), to (N, T, K) for
        tokens, or to (N, T, 2) for spans, where padding positions have ``token_heads.PADDING_LOGIT``. Its parameters
        are its own; what is frozen may be shared and is never written to.

    Raises:
        ConfigError: ``kind`` or ``train`` is unknown, layout or kind do not suit the task, or nothing can be trained.
    """
    if kind not in HEADS:
        raise ConfigError(f"model.head must be one of {', '.join(HEADS)}, got {kind!r}; choose one of them")
    shape: Layout = ((layout,),) if isinstance(layout, int) else tuple(tuple(part) for part in layout)
    if kind == "upper":
        return build_upper(upper or {}, shape, classes, seed=seed, task=task, train=train)
    return _copy(_template(kind, shape, classes, hidden, seed, task))


def _copy(module: nn.Module) -> nn.Module:
    """A module of its own, four times faster than ``copy.deepcopy``, which every round would wait for."""
    twin = copy.copy(module)
    twin.__dict__.update({key: value.copy() for key, value in vars(module).items() if isinstance(value, dict)})
    twin._parameters = {
        name: None if value is None else nn.Parameter(value.detach().clone(), requires_grad=value.requires_grad)
        for name, value in module._parameters.items()
    }
    twin._modules = {name: None if child is None else _copy(child) for name, child in module._modules.items()}
    return twin


@lru_cache(maxsize=16)
def _template(kind: str, layout: Layout, classes: int, hidden: int, seed: int, task: str) -> nn.Module:
    if kind in SOLVED_HEADS:
        check_task(kind, task)
        return SolvedHead(kind, sum(math.prod(shape) for shape in layout), classes)
    if task not in TOKEN_TASKS:
        inputs = sum(math.prod(shape) for shape in layout)
        return zero_linear(inputs, classes) if kind == "linear" else _mlp(inputs, classes, hidden, seed)
    outputs = SPAN_OUTPUTS if task == "spans" else classes
    if kind == "linear":
        return TokenLinear(layout, outputs, mask_logits=task == "spans")
    _, width = sequence_shape(layout)
    return TokenNetwork(layout, _mlp(width, outputs, hidden, seed), mask_logits=task == "spans")


def _mlp(features: int, classes: int, hidden: int, seed: int) -> nn.Sequential:
    generator = torch.Generator().manual_seed(seed)
    first, last = zero_linear(features, hidden), zero_linear(hidden, classes)
    for layer in (first, last):
        nn.init.kaiming_uniform_(layer.weight, nonlinearity="relu", generator=generator)
    layers = nn.Sequential(first, nn.ReLU(), last)
    layers.notes = Notes()  # type: ignore[assignment]  # neither a tensor nor a module
    return layers


def head_arrays(head: nn.Module) -> dict[str, Tensor]:
    """Copy the trainable parameters of a head, by name; nothing else of it ever travels."""
    return {name: value.detach().clone() for name, value in head.named_parameters() if value.requires_grad}


def trained_arrays(head: nn.Module) -> Mapping[str, Tensor]:
    """The trainable parameters of a head themselves, by name; not copied.

    Which they are is found out once for each head: its values may change afterwards, its parameters may not.
    """
    found = _trained.get(head)
    if found is None:
        found = {name: value.detach() for name, value in head.named_parameters() if value.requires_grad}
        _trained[head] = found
    return found


_trained: WeakKeyDictionary[nn.Module, Mapping[str, Tensor]] = WeakKeyDictionary()


def load_arrays(head: nn.Module, arrays: Mapping[str, Tensor]) -> None:
    """Put ``arrays`` into the head's trainable parameters.

    Raises:
        ConfigError: names or shapes are not those of the head.
    """
    trained = {name: value for name, value in head.named_parameters() if value.requires_grad}
    expected, came = ({name: tuple(value.shape) for name, value in each.items()} for each in (trained, arrays))
    if expected != came:
        raise ConfigError(f"the head has parameters {expected}, got {came}; use the head that the model was made with")
    with torch.no_grad():
        for name, value in trained.items():
            value.copy_(arrays[name])


def arrays_digest(arrays: Mapping[str, Tensor]) -> str:
    """SHA-256, in hex, over names, shapes, types and values."""
    digest = hashlib.sha256()
    for name in sorted(arrays):
        value = arrays[name].detach().cpu().contiguous()
        digest.update(name.encode("unicode_escape") + f" {value.dtype} {tuple(value.shape)}\n".encode())
        digest.update(value.numpy().tobytes())
    return digest.hexdigest()


def arrays_digests(heads: Sequence[Mapping[str, Tensor]]) -> list[str]:
    """The digest of each; of heads that hold the very same tensors it is computed once."""
    known: dict[tuple[tuple[str, int], ...], str] = {}
    found = []
    for head in heads:
        same = tuple((name, id(value)) for name, value in head.items())
        if same not in known:
            known[same] = arrays_digest(head)
        found.append(known[same])
    return found

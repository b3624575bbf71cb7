"""Clipped sums for heads of several layers: which way suits a head, and both ways.

*By layers*: one forward and one backward pass for many units, in which hooks keep what goes into and comes back to
every trained layer; norms and weighted sums follow from that (see ``layer_gradients``). *One by one*: each unit's
gradient by itself, the definition; right for whatever keeps units apart, and the faster way for large layers over long
sequences. Measured against Opacus and ``torch.func.vmap``: docs/decisions/0007-heads.md.

Before a head is used the first time, made-up records show whether it keeps units apart, and whether the first way gives
the gradients that the definition gives. No private record decides anything here.
"""

from __future__ import annotations

import copy
import functools
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from opacus.validators import ModuleValidator
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.modules.batchnorm import _BatchNorm, _NormBase

from client.clipping import ClippedSum, clip_factors, unreduced
from client.layer_gradients import LayerGradients, has_rule, layer_gradients
from common.errors import PrivacyError
from common.tasks import PerUnitLoss
from common.token_heads import Notes
from common.upper import UpperHead, made_up

MEMORY = 2**28  # bytes that the units of one pass may take
MOST_UNITS = 256
MADE_UP_UNITS = 3
WEIGHT_WORK = 140  # reading and adding one entry of a gradient costs as much as so many multiplications
UNIT_WORK = 3e7  # starting a pass of its own for a unit costs as much as so many
TOLERANCES = {torch.float64: 1e-6, torch.float32: 1e-3}  # by which two ways may differ by rounding


@dataclass(frozen=True)
class Way:
    """How a head's clipped sums are computed.

    Attributes:
        units: how many at a time by layers; 0 is one by one.
    """

    units: int


def deep_clipped_sum(
    head: nn.Module, loss: PerUnitLoss, features: Tensor, targets: Tensor, clipping_norm: float
) -> ClippedSum:
    """Clipped sum for any head; see ``mechanism.clipped_sum``.

    Upper stages compute in float32, everything else in float64; norms and sums are float64 in each case.
    """
    with _evaluating(head):
        way = choose_way(head, features.shape[1:])
        copied = _Copied(head, torch.float32 if isinstance(head, UpperHead) else torch.float64)
        sums = {name: torch.zeros(shape, dtype=torch.float64) for name, shape in copied.trained.items()}
        spoiled, step = 0, max(way.units, 1)
        for start in range(0, len(features), step):
            part = (features[start : start + step], targets[start : start + step])
            add = _add_by_layers if way.units else _add_one
            spoiled += add(sums, copied, loss, *part, clipping_norm)
    return ClippedSum(sums, clipping_norm, spoiled)


class _Copied:
    """A head's values in one type, cut off from its parameters, which stay as they are."""

    def __init__(self, head: nn.Module, dtype: torch.dtype) -> None:
        self.head, self.dtype = head, dtype
        self.trained = {name: value.shape for name, value in head.named_parameters() if value.requires_grad}
        named = {**dict(head.named_parameters()), **dict(head.named_buffers())}
        self.values = {
            name: value.detach().to(dtype) if value.is_floating_point() else value for name, value in named.items()
        }

    def logits(self, features: Tensor, trained: Mapping[str, Tensor] | None = None) -> Tensor:
        features = features.detach().to(self.dtype) if features.is_floating_point() else features
        logits: Tensor = functional_call(self.head, {**self.values, **(trained or {})}, (features,))
        return logits


@torch.enable_grad()
def _add_by_layers(
    sums: dict[str, Tensor], copied: _Copied, loss: PerUnitLoss, features: Tensor, targets: Tensor, norm: float
) -> int:
    """Add the clipped gradients of all these units; how many of them were not finite."""
    layers = _by_layers(copied, lambda logits: unreduced(loss(logits, targets), len(features)), features)
    factors, finite = clip_factors(_norms(layers, len(features)), norm)
    for layer in layers:
        for name, value in layer.weighted(factors, finite).items():
            sums[name] += value
    return int((~finite).sum())


def _norms(layers: list[LayerGradients], units: int) -> Tensor:
    squares = torch.zeros(units, dtype=torch.float64)
    return functools.reduce(torch.add, (layer.squares() for layer in layers), squares).sqrt()


@torch.enable_grad()
def _add_one(
    sums: dict[str, Tensor], copied: _Copied, loss: PerUnitLoss, features: Tensor, targets: Tensor, norm: float
) -> int:
    """Add the clipped gradient of one unit; 1 if it was not finite and counted zero."""
    gradients = _one(copied, lambda logits: unreduced(loss(logits, targets), 1), features)
    squares = [torch.linalg.vector_norm(value, dtype=torch.float64) for value in gradients.values()]
    factors, finite = clip_factors(torch.stack(squares).norm()[None], norm)
    if not bool(finite):
        return 1
    for name, value in gradients.items():
        sums[name].add_(value, alpha=float(factors))
    return 0


def _one(copied: _Copied, losses: Any, features: Tensor) -> dict[str, Tensor]:
    """The gradient of one unit by plain autograd; parameters that the head does not use are left out."""
    trained = {name: copied.values[name].detach().requires_grad_() for name in copied.trained}
    total = losses(copied.logits(features, trained)).sum()
    found = torch.autograd.grad(total, list(trained.values()), allow_unused=True)
    return {name: value for name, value in zip(trained, found, strict=True) if value is not None}


@dataclass
class _Call:
    """One call of a trained layer."""

    given: Tensor
    version: int
    edge: Any  # where the slope along the output comes back, whatever is done to the output in place


@dataclass
class _Recorder:
    """Hooks that keep the calls of every trained layer."""

    units: int
    calls: dict[str, list[_Call]] = field(default_factory=dict)

    def record(self, name: str, layer: nn.Module, given: tuple[Any, ...], output: Any) -> Tensor | None:
        """The hook: remember the call; where no gradient flows yet, let it begin at this output."""
        if not given or not isinstance(output, Tensor) or len(given[0]) != self.units or len(output) != self.units:
            raise _NoLayerwiseGradientError(name)
        begins = not output.requires_grad
        source = output.detach().requires_grad_() if begins else output
        call = _Call(given[0].detach(), given[0]._version, torch.autograd.graph.get_gradient_edge(source))
        self.calls.setdefault(name, []).append(call)
        return source.clone() if begins else None

    @contextmanager
    def listening(self, head: nn.Module) -> Iterator[None]:
        handles = []
        try:
            for name, layer in head.named_modules():
                if any(value.requires_grad for value in layer.parameters(recurse=False)):
                    if not has_rule(layer):
                        raise _NoLayerwiseGradientError(name)
                    handles.append(layer.register_forward_hook(functools.partial(self.record, name)))
            yield
        finally:
            for handle in handles:
                handle.remove()


class _NoLayerwiseGradientError(Exception):
    """A layer's gradient cannot be had from what passes through it."""


def _by_layers(copied: _Copied, losses: Any, features: Tensor) -> list[LayerGradients]:
    """Every trained layer's gradients, from one forward and one backward pass."""
    recorder = _Recorder(len(features))
    with recorder.listening(copied.head):
        logits = copied.logits(features)
    edges = [call.edge for calls in recorder.calls.values() for call in calls]
    slopes = iter(torch.autograd.grad(losses(logits).sum(), edges, allow_unused=True))
    layers = []
    for name, calls in recorder.calls.items():
        passed = [(call.given, slope) for call, slope in zip(calls, slopes, strict=False) if slope is not None]
        if any(call.given._version != call.version for call in calls):
            raise _NoLayerwiseGradientError(name)
        if passed:
            layers.append(layer_gradients(name, copied.head.get_submodule(name), passed))
    return layers


def choose_way(head: nn.Module, shape: torch.Size) -> Way:
    """Decide how to treat a head, once for all its copies.

    Args:
        head: in eval mode.
        shape: of one unit's features.

    Raises:
        PrivacyError: the head mixes units, so that no clipping bounds what a unit does.
    """
    notes = getattr(head, "notes", None)
    trained = tuple(name for name, value in head.named_parameters() if value.requires_grad)
    key = ("way", tuple(shape), trained)
    if not isinstance(notes, Notes):
        return _find_way(head, shape)
    if key not in notes.entries:
        notes.entries[key] = _find_way(head, shape)
    way: Way = notes.entries[key]
    return way


def _find_way(head: nn.Module, shape: torch.Size) -> Way:
    _refuse_statistics(head)
    try:
        return _way_in(torch.float64, head, shape)
    except RuntimeError:  # some networks are written for float32 alone
        return _way_in(torch.float32, head, shape)


@torch.enable_grad()
def _way_in(dtype: torch.dtype, head: nn.Module, shape: torch.Size) -> Way:
    """Find out with made-up records of one type."""
    generator = torch.Generator().manual_seed(0)
    twin = copy.deepcopy(head).to(dtype)
    for value in twin.parameters():
        if value.requires_grad:  # a classifier of zeros would hide everything below it
            value.data += 0.1 * torch.randn(value.shape, generator=generator)
    copied = _Copied(twin, dtype)
    features = _made_up_features(head, shape, generator)
    logits = copied.logits(features)
    _refuse_mixing(copied, features, logits)
    pull = torch.randn(logits.shape, generator=generator)
    try:
        layers = _by_layers(copied, lambda logits: (logits * pull).flatten(1).sum(dim=1), features)
    except _NoLayerwiseGradientError:
        return Way(0)
    expected = [
        _one(copied, lambda logits, unit=unit: (logits * pull[unit]).sum(), features[unit : unit + 1])
        for unit in range(len(features))
    ]
    if not _agree(layers, expected, TOLERANCES[dtype]) or _faster_one_by_one(layers, copied):
        return Way(0)
    size = 16 * (sum(layer.stored for layer in layers) + len(layers) * features[0].numel())  # and activations, roughly
    return Way(min(MOST_UNITS, max(1, MEMORY // max(size, 1))))


def _made_up_features(head: nn.Module, shape: torch.Size, generator: torch.Generator) -> Tensor:
    layout = getattr(head, "layout", None)
    if layout is not None:
        return made_up(layout, MADE_UP_UNITS, generator)
    return torch.randn((MADE_UP_UNITS, *shape), generator=generator)


def _agree(layers: list[LayerGradients], expected: list[dict[str, Tensor]], tolerance: float) -> bool:
    """Whether every unit's norm, and every parameter's sum with unequal factors, is what the definition gives."""
    units = len(expected)
    norms = torch.stack([torch.stack([value.double().norm() for value in unit.values()]).norm() for unit in expected])
    if not torch.allclose(_norms(layers, units), norms, rtol=tolerance, atol=0.0):
        return False
    factors = torch.linspace(0.5, 1.5, units, dtype=torch.float64)
    everyone = torch.ones(units, dtype=torch.bool)
    found = {name: value for layer in layers for name, value in layer.weighted(factors, everyone).items()}
    for name in {name for unit in expected for name in unit}:
        parts = [float(factor) * unit[name] for factor, unit in zip(factors, expected, strict=True) if name in unit]
        wanted = torch.stack(parts).sum(dim=0)
        if float((found.get(name, torch.zeros_like(wanted)) - wanted).norm()) > tolerance * float(norms.max()):
            return False
    return True


def _faster_one_by_one(layers: list[LayerGradients], copied: _Copied) -> bool:
    """Whether a pass for each unit costs less than norms and sums in float64, which takes twice the time, for many."""
    entries = sum(shape.numel() for shape in copied.trained.values())
    work, outer = sum(layer.work for layer in layers), sum(layer.outer for layer in layers)
    return 2 * work > outer + WEIGHT_WORK * entries + UNIT_WORK


def _refuse_statistics(head: nn.Module) -> None:
    """Refuse layers that normalise with a batch's statistics, or are trained beside them; in Opacus's words."""
    found = set()
    for module in head.modules():
        if isinstance(module, _BatchNorm) and module.running_mean is None:
            found.add(f"{type(module).__name__} without running statistics")
        validator = ModuleValidator.VALIDATORS.get(type(module))
        if isinstance(module, _NormBase) and validator and any(value.requires_grad for value in module.parameters()):
            found |= {str(error).strip() for error in validator(module)}
    if found:
        raise PrivacyError(
            f"every layer of a head must give each unit a gradient of its own, got: {'; '.join(sorted(found))}"
        )


def _refuse_mixing(copied: _Copied, features: Tensor, logits: Tensor) -> None:
    """Refuse a head that gives a made-up unit other logits in company than alone."""
    if len(logits) != len(features):
        raise PrivacyError(f"a head must give one row of logits a unit, got {len(logits)} for {len(features)} units")
    tolerance = TOLERANCES[copied.dtype]
    for unit in range(len(features)):
        alone = copied.logits(features[unit : unit + 1])[0]
        if not torch.allclose(alone, logits[unit], rtol=tolerance, atol=tolerance, equal_nan=True):
            raise PrivacyError(
                "every layer of a head must treat each unit on its own, got logits that depend on the other units of "
                "the batch; replace the layer that mixes them, or cut above it"
            )


@contextmanager
def _evaluating(head: nn.Module) -> Iterator[None]:
    """Eval mode for a while: dropout is off, and no layer remembers a record."""
    modes = {module: module.training for module in head.modules()}
    for module in modes:
        module.training = False
    try:
        yield
    finally:
        for module, training in modes.items():
            module.training = training

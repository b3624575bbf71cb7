"""Heads that begin with the stages above the cut: fine-tuning from the pre-trained weights."""

from __future__ import annotations

import weakref
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from common.adapters import Adapted, adapt, withdraw
from common.backbones.backbone import Activations
from common.errors import ConfigError
from common.grafting import Layout, flatten, unflatten
from common.rewriting import FixedNorm, copy_sharing, rewritten
from common.token_heads import SPAN_OUTPUTS, TOKEN_TASKS, Notes, is_sequence, masked, sequence_shape, zero_linear

TRAINABLE = ("all", "biases", "adapters")
MADE_UP = 2


class UpperHead(nn.Module):
    """Stages above the cut and a linear classifier; always in eval mode, so that dropout is off."""

    def __init__(self, stages: nn.ModuleDict, layout: Layout, classifier: nn.Linear, task: str) -> None:
        """Take stages that ``rewritten`` made, the layout of what passes the cut, and the classifier."""
        super().__init__()
        self.stages, self.classifier = stages, classifier
        self.layout, self.task, self.notes = layout, task, Notes()
        super().train(False)

    def train(self, mode: bool = True) -> UpperHead:
        """Stay in eval mode; ``mode`` is ignored on purpose."""
        return self

    def forward(self, features: Tensor) -> Tensor:
        """Map flat features (N, D) to logits: (N, K), or (N, T, K) for a task over tokens."""
        activations = run_stages(self.stages, unflatten(features, self.layout))
        if self.task not in TOKEN_TASKS:
            rows: Tensor = self.classifier(activations)
            return rows
        states, mask = activations
        logits: Tensor = self.classifier(states)
        return masked(logits, mask) if self.task == "spans" else logits


def run_stages(stages: nn.ModuleDict, activations: Activations) -> Activations:
    """One stage after the other."""
    for stage in stages.values():
        activations = stage(activations)
    return activations


def build_upper(
    upper: Mapping[str, nn.Module], layout: Layout, classes: int, *, seed: int, task: str, train: str
) -> UpperHead:
    """Make a head of the stages above the cut.

    Its trained parameters are its own; its frozen ones and its buffers are shared with the backbone.

    Args:
        upper: name -> stage, in order.
        layout: of what passes the cut.
        classes: K.
        seed: of the adapters' first weights.
        task: see ``common.heads.build_head``.
        train: one of ``TRAINABLE``.

    Raises:
        ConfigError: see ``common.heads.build_head``.
    """
    if train not in TRAINABLE:
        raise ConfigError(f"model.train must be one of {', '.join(TRAINABLE)}, got {train!r}; choose one of them")
    if not upper:
        raise ConfigError('model.head = "upper" needs stages above the cut, got none; cut lower, or use "linear"')
    kept = _TEMPLATES.setdefault(next(iter(upper.values())), {})
    key = (tuple(map(weakref.ref, upper.values())), tuple(upper), layout, classes, seed, task, train)
    if key not in kept:
        kept[key] = _template(upper, layout, classes, seed, task, train)
    return _own(kept[key])


_TEMPLATES: weakref.WeakKeyDictionary[nn.Module, dict[Any, UpperHead]] = weakref.WeakKeyDictionary()


def _own(template: UpperHead) -> UpperHead:
    """A head with trained parameters of its own; what is frozen stays shared."""
    trained = (value for value in template.parameters() if value.requires_grad)
    twin = copy_sharing(template, {id(value): nn.Parameter(value.detach().clone()) for value in trained})
    assert isinstance(twin, UpperHead)
    return twin


def _template(
    upper: Mapping[str, nn.Module], layout: Layout, classes: int, seed: int, task: str, train: str
) -> UpperHead:
    stages, width = _fitting(rewritten(upper), layout, task)
    _choose_trained(stages, layout, train, seed)
    if not any(value.requires_grad for value in stages.parameters()):
        raise ConfigError(
            f'model.train = "{train}" must find something to train in the stages above the cut ({", ".join(upper)}), '
            'found nothing; cut lower, train something else, or use the head "linear"'
        )
    return UpperHead(stages, layout, zero_linear(width, SPAN_OUTPUTS if task == "spans" else classes), task)


@torch.no_grad()
def _fitting(stages: nn.ModuleDict, layout: Layout, task: str) -> tuple[nn.ModuleDict, int]:
    """The stages that a task needs, and how many numbers the last gives a record or a token."""
    activations = unflatten(made_up(layout, MADE_UP), layout)
    if task in TOKEN_TASKS:
        sequence_shape(layout)
        kept = {}
        for name, stage in stages.items():
            activations = stage(activations)
            if not is_sequence(_shapes(activations)):
                break  # stages that pool the sequence have no use here
            kept[name] = stage
        return nn.ModuleDict(kept), layout[0][1] if not kept else _last_width(nn.ModuleDict(kept), layout)
    shapes = _shapes(run_stages(stages, activations))
    if len(shapes) != 1 or len(shapes[0]) != 1:
        raise ConfigError(f"the last stage must give one vector a record, got shapes {shapes}; repair the backbone")
    return stages, shapes[0][0]


def _last_width(stages: nn.ModuleDict, layout: Layout) -> int:
    return _shapes(run_stages(stages, unflatten(made_up(layout, MADE_UP), layout)))[0][1]


def made_up(layout: Layout, records: int, generator: torch.Generator | None = None) -> Tensor:
    """Features of records that nobody has, (records, D): zeros, or normal draws; a mask that lets most tokens through.

    Args:
        layout: of what passes the cut.
        records: how many.
        generator: of the draws.
    """
    parts = [torch.zeros(records, *shape) for shape in layout]
    if generator is not None:
        parts = [torch.randn(part.shape, generator=generator) for part in parts]
    if is_sequence(layout):
        length = layout[1][0]
        parts[1] = torch.stack([(torch.arange(length) < max(1, length - row)).float() for row in range(records)])
    return flatten(tuple(parts))


def _shapes(activations: Activations) -> Layout:
    parts = (activations,) if isinstance(activations, Tensor) else activations
    return tuple(tuple(part.shape[1:]) for part in parts)


def _choose_trained(stages: nn.ModuleDict, layout: Layout, train: str, seed: int) -> None:
    if train == "all":
        fixed = {id(value) for norm in stages.modules() if isinstance(norm, FixedNorm) for value in norm.parameters()}
        for value in stages.parameters():
            value.requires_grad_(value.is_floating_point() and id(value) not in fixed)
    elif train == "biases":
        for module in stages.modules():
            for name, value in module.named_parameters(recurse=False):
                value.requires_grad_(_is_bias(name) or "Norm" in type(module).__name__)
    else:
        adapted = adapt(stages, torch.Generator().manual_seed(seed))
        withdraw(stages, _uncalled(stages, layout, adapted))
        for adapter in stages.modules():
            if isinstance(adapter, Adapted):
                adapter.down.requires_grad_(True)
                adapter.up.requires_grad_(True)


def _is_bias(name: str) -> bool:
    """Whether torch calls a parameter of a layer a bias: ``bias``, ``in_proj_bias``, ``bias_ih_l0``."""
    return name.startswith("bias") or name.endswith("bias")


@torch.no_grad()
def _uncalled(stages: nn.ModuleDict, layout: Layout, adapted: Mapping[nn.Module, Adapted]) -> dict[nn.Module, Adapted]:
    """Adapters that a pass of made-up records does not go through, such as one inside ``nn.MultiheadAttention``."""
    called: set[nn.Module] = set()
    handles = [adapter.register_forward_hook(lambda module, *_: called.add(module)) for adapter in adapted.values()]
    run_stages(stages, unflatten(made_up(layout, MADE_UP), layout))
    for handle in handles:
        handle.remove()
    return {layer: adapter for layer, adapter in adapted.items() if adapter not in called}

"""Heads over sequences: the same small layers on every token's features, and nothing where the mask says padding."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from common.errors import ConfigError
from common.grafting import Layout, unflatten

TOKEN_TASKS = ("tokens", "spans")
SPAN_OUTPUTS = 2  # where an answer starts and where it ends
PADDING_LOGIT = -1e9
"""Logit of a padding position: its softmax is zero, and no gradient passes."""


class Notes:
    """What was found out about a head's structure, once for all its copies; nothing about weights or records."""

    def __init__(self) -> None:
        self.entries: dict[Any, Any] = {}

    def __deepcopy__(self, memo: dict[int, Any]) -> Notes:
        """The same one."""
        return self


class TokenLinear(nn.Linear):
    """One linear layer on each token: features (N, T d + T), states and then the mask, to logits (N, T, K)."""

    def __init__(self, layout: Layout, outputs: int, *, mask_logits: bool) -> None:
        """Make the layer, all zeros.

        Args:
            layout: ``((T, d), (T,))``: hidden states and their mask of 0 and 1.
            outputs: K.
            mask_logits: padding positions get ``PADDING_LOGIT``, where a softmax runs over the positions.

        Raises:
            ConfigError: ``layout`` is not that of a sequence with its mask.
        """
        _, width = sequence_shape(layout)
        super().__init__(width, outputs, device="meta")
        _fill_with_zeros(self)
        self.layout, self.mask_logits = layout, mask_logits

    def parts(self, features: Tensor) -> tuple[Tensor, Tensor]:
        """States (N, T, d) and mask (N, T)."""
        return sequence_parts(features, self.layout)

    def logits(self, states: Tensor, mask: Tensor) -> Tensor:
        """From states (N, T, d) and mask (N, T) to logits (N, T, K), of the states' type."""
        bias = None if self.bias is None else self.bias.to(states.dtype)
        logits = nn.functional.linear(states, self.weight.to(states.dtype), bias)
        return masked(logits, mask) if self.mask_logits else logits

    def forward(self, features: Tensor) -> Tensor:
        """Map features (N, D) to logits (N, T, K)."""
        return self.logits(*self.parts(features))


class TokenNetwork(nn.Module):
    """Any layers on each token's states; features (N, T d + T) to logits (N, T, K)."""

    def __init__(self, layout: Layout, layers: nn.Sequential, *, mask_logits: bool) -> None:
        """Take the layers, which map (N, T, d) to (N, T, K) position by position.

        Raises:
            ConfigError: ``layout`` is not that of a sequence with its mask.
        """
        super().__init__()
        sequence_shape(layout)
        self.layers = layers
        self.layout, self.mask_logits, self.notes = layout, mask_logits, Notes()

    def forward(self, features: Tensor) -> Tensor:
        """Map features (N, D) to logits (N, T, K)."""
        states, mask = sequence_parts(features, self.layout)
        logits: Tensor = self.layers(states)
        return masked(logits, mask) if self.mask_logits else logits


def masked(logits: Tensor, mask: Tensor) -> Tensor:
    """Logits (N, T, K) with ``PADDING_LOGIT`` where the mask (N, T) is 0."""
    return torch.where(mask[..., None] > 0, logits, PADDING_LOGIT)


def sequence_parts(features: Tensor, layout: Layout) -> tuple[Tensor, Tensor]:
    """Flat features (N, T d + T) as states (N, T, d) and mask (N, T)."""
    states, mask = unflatten(features, layout)
    return states, mask


def sequence_shape(layout: Sequence[Sequence[int]]) -> tuple[int, int]:
    """(T, d) of a sequence's layout.

    Raises:
        ConfigError: ``layout`` is another; the message says which cut points are meant.
    """
    if not is_sequence(layout):
        raise ConfigError(
            f"this task needs states for every token, ((T, d), (T,)), to pass the cut, got {_shown(layout)}; choose a "
            "text backbone and a cut below its last stage"
        )
    return layout[0][0], layout[0][1]


def is_sequence(layout: Sequence[Sequence[int]]) -> bool:
    """Whether a layout is that of hidden states with their mask."""
    return len(layout) == 2 and len(layout[0]) == 2 and tuple(layout[1]) == (layout[0][0],)


def _shown(layout: Sequence[Sequence[int]]) -> str:
    return str(tuple(tuple(shape) for shape in layout))


def zero_linear(inputs: int, outputs: int) -> nn.Linear:
    """A linear layer of zeros."""
    layer = nn.Linear(inputs, outputs, device="meta")
    _fill_with_zeros(layer)
    return layer


def _fill_with_zeros(layer: nn.Linear) -> None:
    """Give a layer on the device "meta" its memory; unlike torch's own start it draws nothing, from no generator."""
    layer.weight = nn.Parameter(torch.zeros(layer.weight.shape))
    layer.bias = nn.Parameter(torch.zeros(layer.bias.shape))

"""Small stages of the kinds that backbones have above a cut, with random weights, for tests of heads."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from common.grafting import Layout


class Then(nn.Module):
    """A module, and what is made of its output."""

    def __init__(self, inner: nn.Module, after: Callable[[Any], Any]) -> None:
        super().__init__()
        self.inner, self.after = inner, after

    def forward(self, values: Any) -> Any:
        return self.after(self.inner(values))


class Masked(nn.Module):
    """A transformers layer over states and mask."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, passed: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        states, mask = passed
        hidden = torch.zeros_like(mask).masked_fill(mask == 0, torch.finfo(mask.dtype).min)[:, None, None, :]
        result = self.inner(states, attention_mask=hidden)
        return (result[0] if isinstance(result, tuple) else result), mask


class MeanOfTokens(nn.Module):
    def forward(self, passed: tuple[Tensor, Tensor]) -> Tensor:
        states, mask = passed
        return (states * mask[..., None]).sum(dim=1) / mask.sum(dim=1, keepdim=True)


Upper = tuple[Mapping[str, nn.Module], Layout]


def residual() -> Upper:
    from torchvision.models.resnet import BasicBlock

    shortcut = nn.Sequential(nn.Conv2d(6, 8, 1, 2, bias=False), nn.BatchNorm2d(8))
    blocks = nn.Sequential(BasicBlock(6, 8, 2, shortcut), BasicBlock(8, 8))
    return {"layer4": blocks, "pool": Then(nn.AdaptiveAvgPool2d(1), lambda map_: map_.flatten(1))}, ((6, 4, 4),)


def grouped() -> Upper:
    """Convolutions with and without groups, padding of several kinds, one dimension and two; GroupNorm and RMSNorm."""
    layers = nn.Sequential(
        nn.Conv2d(4, 8, 3, padding="same", groups=2),
        nn.GroupNorm(2, 8),
        nn.ReLU(inplace=True),
        nn.Conv2d(8, 8, (3, 1), stride=2, padding=(2, 0), dilation=(2, 1), padding_mode="reflect", groups=8),
        nn.Flatten(2),
        nn.Conv1d(8, 6, 3, padding=1, bias=False),
        nn.Tanh(),
        nn.Flatten(),
        nn.RMSNorm(12),
        nn.Linear(12, 5),
    )
    return {"layers": layers}, ((4, 4, 2),)


def bert() -> Upper:
    from transformers import BertConfig
    from transformers.models.bert.modeling_bert import BertLayer

    config = BertConfig(hidden_size=8, num_attention_heads=2, intermediate_size=12)
    return {"layer.1": Masked(BertLayer(config)), "pool": MeanOfTokens()}, ((5, 8), (5,))


def gpt2() -> Upper:
    from transformers import GPT2Config
    from transformers.models.gpt2.modeling_gpt2 import GPT2Block

    block = GPT2Block(GPT2Config(n_embd=8, n_head=2), layer_idx=0)
    return {"h.1": Masked(block), "pool": MeanOfTokens()}, ((5, 8), (5,))


def vit() -> Upper:
    from torchvision.models.vision_transformer import EncoderBlock

    block = EncoderBlock(2, 8, 12, 0.3, 0.3)
    return {"block": block, "pool": Then(nn.LayerNorm(8), lambda states: states[:, 0])}, ((5, 8),)


def convnext() -> Upper:
    from torchvision.models.convnext import CNBlock

    return {"block": CNBlock(6, 0.5, 0.5), "pool": Then(nn.Identity(), lambda map_: map_.mean((2, 3)))}, ((6, 4, 4),)


def swin() -> Upper:
    from torchvision.models.swin_transformer import SwinTransformerBlock

    block = SwinTransformerBlock(8, 2, window_size=[2, 2], shift_size=[1, 1], dropout=0.3, stochastic_depth_prob=0.3)
    return {"block": block, "pool": Then(nn.Identity(), lambda map_: map_.mean((1, 2)))}, ((4, 4, 8),)


def recurrent() -> Upper:
    """A kind without a rule of its own."""
    return {"rnn": Then(nn.LSTM(4, 6, batch_first=True), lambda result: result[0][:, -1])}, ((5, 4),)


KINDS: dict[str, Callable[[], Upper]] = {
    "residual": residual,
    "grouped": grouped,
    "bert": bert,
    "gpt2": gpt2,
    "vit": vit,
    "convnext": convnext,
    "swin": swin,
    "recurrent": recurrent,
}


def stages(kind: str, seed: int = 0) -> Upper:
    """Stages of a kind, frozen and in eval mode as a backbone's are, with random weights and statistics."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        upper, layout = KINDS[kind]()
        for stage in upper.values():
            stage.eval().requires_grad_(False)
            for name, value in (*stage.named_parameters(), *stage.named_buffers()):
                if value.is_floating_point():
                    value.copy_(torch.rand(value.shape) + 0.5 if "var" in name else 0.4 * torch.randn(value.shape))
    return upper, layout


def features_for(layout: Layout, records: int, seed: int, scale: float = 1.0) -> Tensor:
    """Normal features (N, D); the mask of a sequence lets the first tokens of each record through."""
    generator = torch.Generator().manual_seed(seed)
    features = scale * torch.randn(records, sum(map(math.prod, layout)), generator=generator)
    if len(layout) == 2:
        length = layout[1][0]
        lengths = torch.randint(1, length + 1, (records,), generator=generator)
        features[:, -length:] = (torch.arange(length) < lengths[:, None]).float()
    return features


def perturbed(head: nn.Module, seed: int = 0, by: float = 0.5) -> nn.Module:
    """The head with its trained parameters moved, so that no gradient vanishes because the classifier is zero."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for value in head.parameters():
            if value.requires_grad:
                value.add_(by * torch.randn(value.shape, generator=generator))
    return head

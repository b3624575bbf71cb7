"""A transformer of the transformers library as ordered stages: embeddings, one for each block, and a pool."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from common.backbones.backbone import LENGTH_STEP

Sequences = tuple[Tensor, Tensor]
"""Hidden states (N, T, d) and, 1 for each of the T that counts, a mask (N, T); both float32."""


class TokenEmbeddings(nn.Module):
    """Ids, mask and perhaps token types to the first hidden states, 0 in the padding."""

    def __init__(self, embeddings: nn.Module) -> None:
        super().__init__()
        self.embeddings = embeddings

    def forward(self, tokens: tuple[Tensor, ...]) -> Sequences:
        """(N, T) int64, (N, T) and perhaps (N, T) int64 -> ((N, T, d), (N, T))."""
        ids, mask, *types = tokens
        arguments = {"token_type_ids": types[0]} if types else {}
        return self.embeddings(input_ids=ids, **arguments) * mask[:, :, None], mask


class SummedEmbeddings(nn.Module):
    """Embeddings of GPT-2's kind: token plus position."""

    def __init__(self, tokens: nn.Embedding, positions: nn.Embedding) -> None:
        super().__init__()
        self.tokens, self.positions = tokens, positions

    def forward(self, input_ids: Tensor) -> Tensor:
        """(N, T) -> (N, T, d)."""
        places = torch.arange(input_ids.shape[1], device=input_ids.device)
        summed: Tensor = self.tokens(input_ids) + self.positions(places)
        return summed


class WaveEmbeddings(nn.Module):
    """wav2vec2's convolutions over the waveform, with positions added."""

    def __init__(self, model: Any, norm: nn.Module | None, *, masked: bool) -> None:
        """Take what comes before the blocks; ``masked`` as in ``Block``."""
        super().__init__()
        self.extractor, self.projection = model.feature_extractor, model.feature_projection
        self.positions, self.norm = model.encoder.pos_conv_embed, norm or nn.Identity()
        self.steps = tuple(zip(model.config.conv_kernel, model.config.conv_stride, strict=True))
        self.masked = masked

    def forward(self, sound: Sequences) -> Sequences:
        """Waveform (N, S) and mask (N, S) -> ((N, T, d), (N, T))."""
        wave, mask = sound
        hidden, _ = self.projection(self.extractor(wave).transpose(1, 2))
        lengths = mask.sum(dim=1)
        for kernel, stride in self.steps:
            lengths = torch.div(lengths - kernel, stride, rounding_mode="floor") + 1
        frames = (torch.arange(hidden.shape[1], device=wave.device) < lengths[:, None]).to(hidden)
        if self.masked:
            hidden = hidden * frames[:, :, None]
        hidden = self.norm(hidden + self.positions(hidden))
        return (hidden * frames[:, :, None] if self.masked else hidden), frames


class MelEmbeddings(nn.Module):
    """Whisper's two convolutions over a log-mel spectrogram, with positions added."""

    def __init__(self, encoder: Any) -> None:
        super().__init__()
        self.conv1, self.conv2, self.positions = encoder.conv1, encoder.conv2, encoder.embed_positions

    def forward(self, sound: Sequences) -> Sequences:
        """Spectrogram (N, B, 2 T) and mask (N, T) -> ((N, T, d), (N, T))."""
        mel, mask = sound
        hidden = functional.gelu(self.conv2(functional.gelu(self.conv1(mel)))).transpose(1, 2)
        return hidden + self.positions.weight[: hidden.shape[1]], mask


class Block(nn.Module):
    """One transformer block, and after the last one the model's final normalisation."""

    def __init__(self, block: nn.Module, norm: nn.Module | None, *, causal: bool, masked: bool, trims: bool) -> None:
        """Take a block.

        Args:
            block: of the transformers library, called with an additive attention mask.
            norm: of the whole model, after its last block.
            causal: each position sees only itself and those before.
            masked: positions without a token are hidden from the others and 0; False where the model was trained
                without a mask.
            trims: whether padding is left out while features are extracted, as ``features.extract`` allows for texts.
        """
        super().__init__()
        self.block, self.norm = block, norm or nn.Identity()
        self.causal, self.masked, self.trims = causal, masked, trims

    def forward(self, before: Sequences) -> Sequences:
        """((N, T, d), (N, T)) -> the same shapes."""
        hidden, mask = before
        if not self.masked:
            return self.norm(self.block(hidden, attention_mask=None)), mask
        whole = mask.shape[1]
        longest = _longest(mask) if self.trims else whole
        kept = mask[:, :longest]
        hidden = self.norm(self.block(hidden[:, :longest], attention_mask=self._attention(kept))) * kept[:, :, None]
        return functional.pad(hidden, (0, 0, 0, whole - longest)), mask

    def _attention(self, mask: Tensor) -> Tensor:
        """What is added to the scores: (N, 1, 1, T), or (N, 1, T, T) where the order counts."""
        seen = mask[:, None, None, :] > 0
        if self.causal:
            length = mask.shape[1]
            seen = seen & torch.ones(length, length, dtype=torch.bool, device=mask.device).tril()
        return torch.where(seen, 0.0, torch.finfo(mask.dtype).min)


class PatchBlock(nn.Module):
    """One block of a vision transformer, and after the last one its final normalisation."""

    def __init__(self, block: nn.Module, norm: nn.Module | None) -> None:
        super().__init__()
        self.block, self.norm = block, norm or nn.Identity()

    def forward(self, hidden: Tensor) -> Tensor:
        """(N, T, d) -> (N, T, d)."""
        patches: Tensor = self.norm(self.block(hidden))
        return patches


class Pool(nn.Module):
    """One vector a record, of length sqrt(d) whatever the record, so that no constant must be measured on any data."""

    def __init__(self, kind: str) -> None:
        """Pool by ``"mean"`` over the positions that count, or take the ``"first"`` one."""
        super().__init__()
        self.kind = kind

    def forward(self, before: Sequences | Tensor) -> Tensor:
        """((N, T, d), (N, T)), or (N, T, d) where all positions count -> (N, d)."""
        hidden, mask = (before, None) if isinstance(before, Tensor) else before
        if self.kind == "first":
            pooled = hidden[:, 0]
        elif mask is None:
            pooled = hidden.mean(dim=1)
        else:
            pooled = (hidden * mask[:, :, None]).sum(dim=1) / mask.sum(dim=1, keepdim=True).clamp(min=1)
        return functional.normalize(pooled, dim=1) * math.sqrt(pooled.shape[1])


def blocks(
    modules: Iterable[nn.Module],
    final: nn.Module | None,
    *,
    causal: bool = False,
    masked: bool = True,
    trims: bool = True,
) -> dict[str, Block]:
    """Name the blocks ``layer.0 … layer.n``; the last one also normalises."""
    listed = list(modules)
    norms = [None] * (len(listed) - 1) + [final]
    return {
        f"layer.{index}": Block(block, norm, causal=causal, masked=masked, trims=trims)
        for index, (block, norm) in enumerate(zip(listed, norms, strict=True))
    }


def encoder_stages(model: Any, pool: str) -> dict[str, nn.Module]:
    """BERT, RoBERTa and their kind."""
    causal = bool(model.config.is_decoder)
    layers = blocks(model.encoder.layer, None, causal=causal)
    return {"embeddings": TokenEmbeddings(model.embeddings), **layers, "pool": Pool(pool)}


def distilbert_stages(model: Any, pool: str) -> dict[str, nn.Module]:
    """DistilBERT."""
    layers = blocks(model.transformer.layer, None)
    return {"embeddings": TokenEmbeddings(model.embeddings), **layers, "pool": Pool(pool)}


def gpt2_stages(model: Any, pool: str) -> dict[str, nn.Module]:
    """GPT-2; its transposed linear layers become ordinary ones, which heads and their clipping know."""
    for block in model.h:
        _untranspose(block)
    embeddings = TokenEmbeddings(SummedEmbeddings(model.wte, model.wpe))
    return {"embeddings": embeddings, **blocks(model.h, model.ln_f, causal=True), "pool": Pool(pool)}


def vit_stages(model: Any, pool: str) -> dict[str, nn.Module]:
    """ViT."""
    last = len(model.layers) - 1
    norms = [model.layernorm if index == last else None for index in range(last + 1)]
    pairs = zip(model.layers, norms, strict=True)
    layers = {f"layer.{index}": PatchBlock(block, norm) for index, (block, norm) in enumerate(pairs)}
    return {"embeddings": model.embeddings, **layers, "pool": Pool(pool)}


def wav2vec2_stages(model: Any, pool: str) -> dict[str, nn.Module]:
    """wav2vec2; models that normalise over time were trained without a mask and get none."""
    masked = model.config.feat_extract_norm != "group"
    last = model.encoder.layer_norm if model.config.do_stable_layer_norm else None
    first = None if model.config.do_stable_layer_norm else model.encoder.layer_norm
    layers = blocks(model.encoder.layers, last, masked=masked, trims=False)
    return {"embeddings": WaveEmbeddings(model, first, masked=masked), **layers, "pool": Pool(pool)}


def whisper_stages(model: Any, pool: str) -> dict[str, nn.Module]:
    """Whisper's encoder, which knows no mask."""
    encoder = model.encoder
    layers = blocks(encoder.layers, encoder.layer_norm, masked=False)
    return {"embeddings": MelEmbeddings(encoder), **layers, "pool": Pool(pool)}


def _longest(mask: Tensor) -> int:
    """Positions to work on: while features are extracted, no more steps than the longest record of the batch needs."""
    if not torch.is_inference_mode_enabled():
        return mask.shape[1]
    steps = math.ceil(max(1, int(mask.sum(dim=1).max())) / LENGTH_STEP)
    return min(mask.shape[1], steps * LENGTH_STEP)


def _untranspose(module: nn.Module) -> None:
    from transformers.pytorch_utils import Conv1D

    for name, child in list(module.named_children()):
        if isinstance(child, Conv1D):
            linear = nn.Linear(child.weight.shape[0], child.weight.shape[1], device="meta")
            linear.weight = nn.Parameter(child.weight.detach().T.contiguous())
            linear.bias = child.bias
            setattr(module, name, linear)
        else:
            _untranspose(child)

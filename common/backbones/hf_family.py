"""Models of the transformers library: ``hf/<hub id or local folder>[:<length>][@random-<seed> or @<revision>]``."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import nn

from common.backbones.audio import AudioPreprocessing
from common.backbones.backbone import Backbone, backbone_digest, freeze, stage_tensors
from common.backbones.hf_files import (
    Files,
    Reference,
    card,
    check_weights,
    model_folder,
    parse,
    quiet,
    read_files,
    tokenizer,
)
from common.backbones.preprocessing import ImagePreprocessing
from common.backbones.text import TextPreprocessing
from common.errors import ConfigError

DEFAULT_LENGTH = 256
"""Tokens that a text may have where the reference does not say; fewer where the model takes fewer."""
DEFAULT_SECONDS = 10
"""Seconds of a sound for wav2vec2 where the reference does not say; Whisper has its own number."""

_NOT_USED = ("pooler.", "decoder.", "masked_spec_embed", "adapter.")
_VOLATILE = ("_name_or_path", "transformers_version", "torch_dtype", "dtype", "architectures", "use_cache")


def load(reference: str) -> Backbone:
    """Load a model as ordered stages ``embeddings, layer.0 … layer.n, pool``.

    Nothing is unpickled and no code of the model's authors is run. With ``HF_HUB_OFFLINE=1`` only what this machine has
    is used.

    Args:
        reference: ``hf/`` and a hub id or a local folder; ``:<n>`` sets the tokens of a text or the seconds of a
            sound, ``@random-<seed>`` draws the weights at random, ``@<revision>`` chooses one of the hub's.

    Returns:
        The backbone, frozen, in eval mode, on the CPU.

    Raises:
        ConfigError: the model is neither here nor reachable, is of no known kind, or its files are not whole or do not
            fit each other, so that some text could not be run.
    """
    wanted = parse(reference)
    files = read_files(model_folder(wanted))
    stages_of, preprocessing_of = _kind(reference, files)
    model = _network(wanted, files)
    pool = _pooling(files)
    stages = stages_of(model, pool)
    for stage in stages.values():
        freeze(stage)
    preprocessing = preprocessing_of(files, model.config, wanted.length)
    if isinstance(preprocessing, TextPreprocessing):
        _check_texts(reference, stages, preprocessing, model.config.vocab_size)
    said = card(files.folder)
    return Backbone(
        name=reference,
        stages=stages,
        preprocessing=preprocessing,
        licence=said["licence"],
        trained_on=said["trained_on"] if wanted.seed is None else "nothing: random weights",
        digest=backbone_digest(architecture(files, pool), preprocessing.describe(), stage_tensors(stages)),
    )


def architecture(files: Files, pool: str) -> dict[str, Any]:
    """Everything but the weights that decides what the stages compute; part of the digest."""
    config = {name: value for name, value in files.config.items() if name not in _VOLATILE}
    return {"family": "hf-v1", "config": config, "pool": f"{pool}, length sqrt(d)"}


def _kind(reference: str, files: Files) -> tuple[Callable[[Any, str], dict[str, nn.Module]], Callable[..., Any]]:
    from common.backbones import hf_stages

    kinds = {
        **dict.fromkeys(("bert", "roberta", "xlm-roberta", "camembert"), (hf_stages.encoder_stages, _text)),
        "distilbert": (hf_stages.distilbert_stages, _text),
        "gpt2": (hf_stages.gpt2_stages, _text),
        "vit": (hf_stages.vit_stages, _image),
        "wav2vec2": (hf_stages.wav2vec2_stages, _wave),
        "whisper": (hf_stages.whisper_stages, _mel),
    }
    kind = files.config.get("model_type")
    if kind not in kinds:
        raise ConfigError(
            f"expected a model of type {', '.join(sorted(kinds))} at {reference}, got {kind!r}; choose one of them or "
            "write the network's stages as module/<import path>:<factory>"
        )
    return kinds[kind]


def _network(wanted: Reference, files: Files) -> Any:
    from transformers import AutoConfig, AutoModel

    from_config: Callable[..., Any] = AutoModel.from_config
    try:
        with quiet(), torch.random.fork_rng(devices=[]):
            if wanted.seed is not None:
                torch.manual_seed(wanted.seed)
                config = AutoConfig.from_pretrained(files.folder, local_files_only=True, trust_remote_code=False)
                return from_config(config, dtype=torch.float32, attn_implementation="sdpa")
            check_weights(files.folder)
            model, report = AutoModel.from_pretrained(
                files.folder,
                use_safetensors=True,
                local_files_only=True,
                trust_remote_code=False,
                dtype=torch.float32,
                attn_implementation="sdpa",
                output_loading_info=True,
            )
    except ConfigError:
        raise
    except Exception as error:  # whatever transformers and safetensors make of files that are not whole
        raise ConfigError(
            f"the model in {files.folder} cannot be loaded, its config.json or its weights are damaged or do not fit "
            f"each other ({type(error).__name__}); copy the folder anew"
        ) from error
    if absent := sorted(name for name in report["missing_keys"] if not name.startswith(_NOT_USED)):
        raise ConfigError(
            f"the weights in {files.folder} lack {len(absent)} tensors of the network, such as {absent[0]}; "
            "copy the folder anew or choose a model whose weights are whole"
        )
    return model


def _text(files: Files, config: Any, length: int | None) -> TextPreprocessing:
    offset = config.pad_token_id + 1 if config.model_type in ("roberta", "xlm-roberta", "camembert") else 0
    limit = int(config.max_position_embeddings) - offset
    if length is not None and length > limit:
        raise ConfigError(
            f"the model in {files.folder} takes {limit} tokens at most, got {length}; write a smaller number after "
            "the colon in model.backbone"
        )
    own = files.others["sentence_bert_config.json"].get("max_seq_length") or limit
    pad = config.pad_token_id if isinstance(config.pad_token_id, int) else config.eos_token_id
    return TextPreprocessing(
        tokenizer=tokenizer(files.folder),
        max_length=length or min(limit, int(own), DEFAULT_LENGTH),
        pad_id=pad if isinstance(pad, int) else 0,
        token_types=getattr(config, "type_vocab_size", 1) > 1,
    )


@torch.inference_mode()
def _check_texts(
    reference: str, stages: Mapping[str, nn.Module], preprocessing: TextPreprocessing, embedded: int
) -> None:
    """Make sure that every token has an embedding, and that the shortest and the longest text can be run.

    What fails later, fails on a record, and a node that cannot answer says something of that record.
    """
    if preprocessing.greatest_id >= embedded:
        raise ConfigError(
            f"expected a tokenizer with token ids below {embedded}, the rows of the embedding, in {reference}, got "
            f"{preprocessing.greatest_id}; take the tokenizer and the network of one model"
        )
    for prepared in (preprocessing(preprocessing.blank()), preprocessing.fullest()):
        values: Any = prepared
        try:
            for stage in stages.values():
                values = stage(values)
        except Exception as error:  # whatever a network makes of it
            raise ConfigError(
                f"expected a network that takes all texts of up to {preprocessing.max_length} tokens at {reference}, "
                f"but on one it fails ({type(error).__name__}); write another number after the colon in "
                "model.backbone, or choose another model"
            ) from error


def _image(files: Files, config: Any, length: int | None) -> ImagePreprocessing:
    if length is not None:
        raise ConfigError(
            f"images have a size of their own, got a length of {length}; leave out what follows the colon"
        )
    described = files.others["preprocessor_config.json"]
    mean, std = (tuple(described.get(name, [0.5] * config.num_channels)) for name in ("image_mean", "image_std"))
    size = described.get("size", {})
    shorter = size.get("shortest_edge") if isinstance(size, Mapping) and described.get("do_center_crop") else None
    return ImagePreprocessing(
        size=config.image_size,
        channels=config.num_channels,
        mean=mean,
        std=std,
        shorter_side=shorter,
        interpolation="bicubic" if described.get("resample") == 3 else "bilinear",  # numbered as in Pillow
    )


def _wave(files: Files, config: Any, length: int | None) -> AudioPreprocessing:
    del config
    described = files.others["preprocessor_config.json"]
    return AudioPreprocessing(
        rate=described.get("sampling_rate", 16_000),
        seconds=length or DEFAULT_SECONDS,
        normalise=described.get("do_normalize", True),
    )


def _mel(files: Files, config: Any, length: int | None) -> AudioPreprocessing:
    del files
    own = config.max_source_positions // 50  # the encoder has 50 positions a second
    if length is not None and length > own:
        raise ConfigError(f"the model takes {own} seconds at most, got {length}; write a smaller number")
    return AudioPreprocessing(rate=16_000, seconds=length or own, normalise=False, mel_bins=config.num_mel_bins)


def _pooling(files: Files) -> str:
    if files.config.get("model_type") == "vit" or files.others["1_Pooling/config.json"].get("pooling_mode_cls_token"):
        return "first"
    return "mean"

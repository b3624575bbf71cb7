"""Models of the transformers library, cut anywhere, compute what the whole model computes."""

from __future__ import annotations

import functools
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from torch import Tensor, nn

from common.backbones import hf_family, hf_package
from common.backbones.backbone import Backbone
from common.backbones.hf_files import parse, quiet
from common.data.records import Clip, Inputs, Pair
from common.errors import ConfigError
from common.grafting import Trunk, flatten, layout
from tests.models import minilm_folder

TEXTS = ("the heart beats", "", "a much longer text about the heart and the lung and the liver " * 3)
SIZES: dict[str, Any] = {"hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 4, "intermediate_size": 48}


def word_pieces() -> Tokenizer:
    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    trainer = trainers.WordPieceTrainer(
        vocab_size=120, special_tokens=["[PAD]", "[UNK]", "[CLS]", "[SEP]"], show_progress=False
    )
    tokenizer.train_from_iterator(TEXTS, trainer)
    tokenizer.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    return tokenizer


def byte_pairs(special: bool) -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    names = ["<s>", "<pad>", "</s>"]
    trainer = trainers.BpeTrainer(
        vocab_size=300,
        special_tokens=names,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(TEXTS, trainer)
    if special:
        tokenizer.post_processor = processors.RobertaProcessing(("</s>", 2), ("<s>", 0), add_prefix_space=False)
    else:
        tokenizer.post_processor = processors.ByteLevel(trim_offsets=False)
    return tokenizer


def bert(folder: Path) -> nn.Module:
    from transformers import BertConfig, BertModel

    word_pieces().save(str(folder / "tokenizer.json"))
    return BertModel(BertConfig(vocab_size=150, max_position_embeddings=40, **SIZES))


def roberta(folder: Path) -> nn.Module:
    from transformers import RobertaConfig, RobertaModel

    byte_pairs(special=True).save(str(folder / "tokenizer.json"))
    return RobertaModel(RobertaConfig(vocab_size=320, max_position_embeddings=42, type_vocab_size=1, **SIZES))


def distilbert(folder: Path) -> nn.Module:
    from transformers import DistilBertConfig, DistilBertModel

    word_pieces().save(str(folder / "tokenizer.json"))
    return DistilBertModel(
        DistilBertConfig(vocab_size=150, max_position_embeddings=40, dim=32, n_layers=3, n_heads=4, hidden_dim=48)
    )


def gpt2(folder: Path) -> nn.Module:
    from transformers import GPT2Config, GPT2Model

    byte_pairs(special=False).save(str(folder / "tokenizer.json"))
    config = GPT2Config(vocab_size=320, n_positions=40, n_embd=32, n_layer=3, n_head=4, bos_token_id=0, eos_token_id=2)
    return GPT2Model(config)


def vit(folder: Path) -> nn.Module:
    from transformers import ViTConfig, ViTModel

    constants = {"image_mean": [0.4, 0.5, 0.6], "image_std": [0.2, 0.2, 0.3], "size": {"height": 32, "width": 32}}
    (folder / "preprocessor_config.json").write_text(json.dumps(constants))
    return ViTModel(ViTConfig(image_size=32, patch_size=8, **SIZES))


def wav2vec2(folder: Path, norm: str = "layer") -> nn.Module:
    from transformers import Wav2Vec2Config, Wav2Vec2Model

    (folder / "preprocessor_config.json").write_text(json.dumps({"sampling_rate": 4000, "do_normalize": True}))
    config = Wav2Vec2Config(
        conv_dim=(16, 16, 16),
        conv_kernel=(10, 3, 3),
        conv_stride=(5, 4, 4),
        num_conv_pos_embeddings=8,
        num_conv_pos_embedding_groups=4,
        feat_extract_norm=norm,
        do_stable_layer_norm=norm == "layer",
        **SIZES,
    )
    return Wav2Vec2Model(config)


def wav2vec2_base(folder: Path) -> nn.Module:
    return wav2vec2(folder, "group")


def whisper(folder: Path) -> nn.Module:
    from transformers import WhisperConfig, WhisperModel

    config = WhisperConfig(
        vocab_size=60,
        d_model=32,
        encoder_layers=3,
        decoder_layers=1,
        encoder_attention_heads=4,
        decoder_attention_heads=4,
        encoder_ffn_dim=48,
        decoder_ffn_dim=48,
        num_mel_bins=20,
        max_source_positions=100,
        pad_token_id=1,
        bos_token_id=2,
        eos_token_id=3,
        decoder_start_token_id=4,
        suppress_tokens=None,
        begin_suppress_tokens=None,
    )
    return WhisperModel(config)


KINDS: dict[str, Callable[[Path], nn.Module]] = {
    made.__name__: made for made in (bert, roberta, distilbert, gpt2, vit, wav2vec2, wav2vec2_base, whisper)
}
TEXT_KINDS = ("bert", "roberta", "distilbert", "gpt2")


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    made: dict[str, Path] = {}

    def folder(kind: str) -> Path:
        if kind not in made:
            made[kind] = tmp_path_factory.mktemp(kind)
            with torch.random.fork_rng(), quiet():
                torch.manual_seed(1)
                model: Any = KINDS[kind](made[kind])
                for value in model.parameters():  # so that no bias or norm is at its start
                    value.data += 0.05 * torch.randn_like(value)
                model.save_pretrained(made[kind])
        return made[kind]

    return folder


@pytest.fixture(scope="module")
def load(folders: Callable[[str], Path]) -> Callable[[str], Backbone]:
    return functools.cache(lambda kind: hf_family.load(reference(kind, folders(kind))))


def records(kind: str) -> Inputs:
    rng = np.random.default_rng(0)
    if kind == "vit":
        return rng.integers(0, 256, (3, 40, 30, 3), dtype=np.uint8)
    if kind.startswith("wav2vec2") or kind == "whisper":
        return tuple(Clip((3000 * rng.standard_normal(size)).astype(np.int16), 4000) for size in (4000, 900, 9000))
    return TEXTS


def whole_model(kind: str, folder: Path, prepared: tuple[Tensor, ...] | Tensor) -> tuple[Tensor, ...]:
    """The hidden states that transformers itself gives."""
    from transformers import AutoModel

    with quiet():
        model: Any = AutoModel.from_pretrained(folder, attn_implementation="eager").eval()
    more: dict[str, Any] = {"output_hidden_states": True}
    with torch.no_grad():
        if isinstance(prepared, Tensor):
            found: Any = model(prepared, **more)
        elif kind == "whisper":
            found = model.encoder(prepared[0], **more)
        elif kind == "wav2vec2_base":
            found = model(prepared[0], **more)
        elif kind == "wav2vec2":
            found = model(prepared[0], attention_mask=prepared[1].long(), **more)
        else:
            types = {"token_type_ids": prepared[2]} if len(prepared) > 2 else {}
            found = model(prepared[0], attention_mask=prepared[1].long(), **types, **more)
    return (*found.hidden_states[:-1], found.last_hidden_state)


def reference(kind: str, folder: Path, suffix: str = "") -> str:
    return f"hf/{folder}{':2' if 'wav2vec2' in kind else ''}{suffix}"


def counted(hidden: Tensor, mask: Tensor | None) -> Tensor:
    return hidden if mask is None else hidden * mask[:, :, None]


@pytest.mark.parametrize("kind", KINDS)
def test_every_cut_gives_the_hidden_states_of_the_whole_model(
    kind: str, load: Callable[[str], Backbone], folders: Callable[[str], Path]
) -> None:
    backbone = load(kind)
    prepared = backbone.preprocessing(records(kind))
    expected = whole_model(kind, folders(kind), prepared)
    assert list(backbone.stages) == ["embeddings", "layer.0", "layer.1", "layer.2", "pool"]
    for cut, hidden in zip(list(backbone.stages)[:-1], expected, strict=True):
        for context in (torch.inference_mode(), torch.no_grad()):
            with context:
                found = Trunk(backbone, cut).activations(prepared)
            own, mask = (found, None) if isinstance(found, Tensor) else found
            torch.testing.assert_close(counted(own, mask), counted(hidden, mask), rtol=1e-4, atol=2e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_the_pool_gives_one_vector_of_fixed_length(kind: str, load: Callable[[str], Backbone]) -> None:
    backbone = load(kind)
    trunk = Trunk(backbone)
    assert layout(trunk, backbone.preprocessing) == ((32,),)
    features = trunk(backbone.preprocessing(records(kind)))
    empty = features.norm(dim=1) == 0  # only a text without any token
    assert empty.sum() <= (kind == "gpt2")
    torch.testing.assert_close(features.norm(dim=1)[~empty].square(), torch.full((len(features[~empty]),), 32.0))


@pytest.mark.parametrize("kind", KINDS)
def test_records_do_not_depend_on_their_neighbours(kind: str, load: Callable[[str], Backbone]) -> None:
    backbone = load(kind)
    inputs = records(kind)
    with torch.inference_mode():
        trunk = Trunk(backbone, "layer.2")
        together = trunk(backbone.preprocessing(inputs))
        alone = torch.cat([trunk(backbone.preprocessing(inputs[k : k + 1])) for k in range(3)])
    torch.testing.assert_close(together, alone, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_everything_is_frozen_and_in_eval_mode(kind: str, load: Callable[[str], Backbone]) -> None:
    backbone = load(kind)
    for stage in backbone.stages.values():
        assert not any(module.training for module in stage.modules())
        assert not any(value.requires_grad for value in stage.parameters())


@pytest.mark.parametrize("kind", ["bert", "gpt2", "whisper"])
def test_random_weights_come_from_the_seed_alone(kind: str, folders: Callable[[str], Path]) -> None:
    before = torch.random.get_rng_state()
    first, again, other = (hf_family.load(reference(kind, folders(kind), f"@random-{seed}")) for seed in (3, 3, 4))
    assert torch.equal(before, torch.random.get_rng_state())
    trained = hf_family.load(reference(kind, folders(kind)))
    assert first.digest == again.digest
    assert len({first.digest, other.digest, trained.digest}) == 3
    assert first.trained_on == "nothing: random weights"


def test_the_digest_covers_length_and_tokenizer(folders: Callable[[str], Path], tmp_path: Path) -> None:
    source = folders("bert")
    copy = Path(shutil.copytree(source, tmp_path / "copy"))
    described = json.loads((copy / "tokenizer.json").read_text())
    (copy / "tokenizer.json").write_text(json.dumps(described, indent=7, sort_keys=True))
    digest = hf_family.load(f"hf/{source}").digest
    assert hf_family.load(f"hf/{copy}").digest == digest
    assert hf_family.load(f"hf/{source}:16").digest != digest
    described["pre_tokenizer"] = {"type": "Whitespace"}
    (copy / "tokenizer.json").write_text(json.dumps(described))
    assert hf_family.load(f"hf/{copy}").digest != digest


def test_gpt2_has_ordinary_linear_layers(folders: Callable[[str], Path]) -> None:
    from transformers.pytorch_utils import Conv1D

    modules = list(hf_family.load(f"hf/{folders('gpt2')}").stages["layer.0"].modules())
    assert not any(isinstance(module, Conv1D) for module in modules)
    assert sum(isinstance(module, nn.Linear) for module in modules) == 4


@pytest.mark.parametrize(
    ("reference", "expected"),
    [
        ("hf/a/b", ("a/b", None, None, None)),
        ("hf/a/b:64", ("a/b", 64, None, None)),
        ("hf//data/x@y/model:64@random-7", ("/data/x@y/model", 64, 7, None)),
        ("hf/a/b@1a2b3c", ("a/b", None, None, "1a2b3c")),
    ],
)
def test_references_are_taken_apart(reference: str, expected: tuple[Any, ...]) -> None:
    assert tuple(parse(reference)) == expected


def test_the_real_minilm_equals_the_whole_model() -> None:
    folder = minilm_folder()
    backbone = hf_family.load(f"hf/{folder}")
    assert (backbone.licence, backbone.preprocessing.describe()["max_length"]) == ("apache-2.0", 256)
    assert "s2orc" in backbone.trained_on
    pairs = (Pair("what failed?", "the left ventricle failed after the infarction"), Pair("who?", "the patient " * 200))
    prepared = backbone.preprocessing(pairs)
    expected = whole_model("bert", folder, prepared)
    with torch.inference_mode():
        hidden, mask = Trunk(backbone, "layer.5").activations(prepared)
        features = Trunk(backbone)(prepared)
    torch.testing.assert_close(hidden, counted(expected[-1], mask), rtol=1e-4, atol=1e-5)
    mean = (expected[-1] * mask[:, :, None]).sum(1) / mask.sum(1)[:, None]
    cosine = torch.nn.functional.cosine_similarity(features, mean)
    torch.testing.assert_close(cosine, torch.ones(2))


def test_similar_texts_are_near_each_other_for_the_real_minilm() -> None:
    backbone = hf_family.load(f"hf/{minilm_folder()}:32")
    texts = ("a heart attack", "myocardial infarction", "the train to Vienna leaves at nine")
    heart, infarction, train = Trunk(backbone)(backbone.preprocessing(texts))
    assert heart @ infarction > 2 * abs(heart @ train)


def test_the_stages_above_a_cut_can_be_trained(folders: Callable[[str], Path]) -> None:
    backbone = hf_family.load(f"hf/{folders('bert')}")
    upper = nn.Sequential(*[backbone.stages[name] for name in ("layer.2", "pool")]).requires_grad_(True)
    upper(Trunk(backbone, "layer.1").activations(backbone.preprocessing(TEXTS))).sum().backward()
    assert all(value.grad is not None for value in upper.parameters())
    upper.requires_grad_(False)


def saved(folders: Callable[[str], Path], tmp_path: Path) -> Path:
    return Path(shutil.copytree(folders("bert"), tmp_path / "broken"))


def refused(reference: str, *parts: str) -> None:
    with pytest.raises(ConfigError) as caught:
        hf_family.load(reference)
    assert all(part in str(caught.value) for part in parts), str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_folder_that_is_nowhere_is_one_sentence() -> None:
    refused("hf//no/such/folder", "/no/such/folder", "correct the path")


def test_a_hub_id_without_a_network_says_what_to_do(tmp_path: Path) -> None:
    code = "from common.backbones.hf_family import load; load('hf/nobody/nothing')"
    offline = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path)}
    ended = subprocess.run([sys.executable, "-c", code], env=offline, capture_output=True, text=True, check=False)
    last = ended.stderr.strip().splitlines()[-1]
    assert last.startswith("common.errors.ConfigError: the model nobody/nothing is not on this machine")
    assert "hf/<that folder>" in last


def test_pickled_weights_are_refused(folders: Callable[[str], Path], tmp_path: Path) -> None:
    folder = saved(folders, tmp_path)
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    refused(f"hf/{folder}", "pytorch_model.bin", "convert")


def test_damaged_weights_are_refused(folders: Callable[[str], Path], tmp_path: Path) -> None:
    folder = saved(folders, tmp_path)
    weights = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(weights[: len(weights) // 2])
    refused(f"hf/{folder}", "copy the folder anew")


def test_weights_that_are_not_whole_are_refused(folders: Callable[[str], Path], tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    folder = saved(folders, tmp_path)
    tensors = load_file(folder / "model.safetensors")
    del tensors["encoder.layer.1.output.dense.weight"]
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    refused(f"hf/{folder}", "lack 1 tensors", "encoder.layer.1.output.dense.weight")


@pytest.mark.parametrize("content", ["{", "[1]", '{"model_type": "t5"}', '{"model_type": "bert", "hidden_size": 30}'])
def test_a_config_that_does_not_fit_is_refused(folders: Callable[[str], Path], tmp_path: Path, content: str) -> None:
    folder = saved(folders, tmp_path)
    (folder / "config.json").write_text(content)
    refused(f"hf/{folder}", str(folder))


@pytest.mark.parametrize("name", ["config.json", "tokenizer.json"])
def test_a_missing_file_is_named(folders: Callable[[str], Path], tmp_path: Path, name: str) -> None:
    folder = saved(folders, tmp_path)
    (folder / name).unlink()
    refused(f"hf/{folder}", name, "whole folder")


def test_a_damaged_tokenizer_is_refused(folders: Callable[[str], Path], tmp_path: Path) -> None:
    folder = saved(folders, tmp_path)
    (folder / "tokenizer.json").write_text("{}")
    refused(f"hf/{folder}", "tokenizer.json")


def test_lengths_that_the_model_does_not_take_are_refused(folders: Callable[[str], Path]) -> None:
    refused(f"hf/{folders('bert')}:41", "40 tokens", "41")
    refused(f"hf/{folders('roberta')}:41", "40 tokens", "41")
    refused(f"hf/{folders('bert')}:2", "at least 8 tokens")
    refused(f"hf/{folders('vit')}:2", "length of 2")
    refused(f"hf/{folders('whisper')}:9", "2 seconds", "9")


def test_a_token_without_an_embedding_is_refused(tmp_path: Path) -> None:
    model: Any = bert(tmp_path)
    model.save_pretrained(tmp_path)
    described = json.loads((tmp_path / "tokenizer.json").read_text(encoding="utf-8"))
    described["model"]["vocab"]["rare"] = 149
    (tmp_path / "tokenizer.json").write_text(json.dumps(described), encoding="utf-8")
    hf_family.load(f"hf/{tmp_path}")
    described["model"]["vocab"]["rarer"] = 150
    (tmp_path / "tokenizer.json").write_text(json.dumps(described), encoding="utf-8")
    refused(f"hf/{tmp_path}", "token ids below 150", "got 150")


@pytest.mark.parametrize(("chunk", "length", "fits"), [(8, 36, False), (40, 40, False), (8, 40, True)])
def test_a_network_that_fails_on_texts_of_some_length_is_refused(
    tmp_path: Path, chunk: int, length: int, fits: bool
) -> None:
    """Chunks of 8 divide 32, which short texts are padded to, and not 36; chunks of 40 do not divide 32."""
    model: Any = bert(tmp_path)
    model.config.chunk_size_feed_forward = chunk
    model.save_pretrained(tmp_path)
    if fits:
        hf_family.load(f"hf/{tmp_path}:{length}")
    else:
        refused(f"hf/{tmp_path}:{length}", f"all texts of up to {length} tokens", "ValueError")


@pytest.mark.parametrize("kind", TEXT_KINDS)
def test_cached_features_are_zero_in_the_padding(kind: str, folders: Callable[[str], Path]) -> None:
    backbone: Backbone = hf_family.load(f"hf/{folders(kind)}")
    with torch.inference_mode():
        hidden, mask = Trunk(backbone, "layer.2").activations(backbone.preprocessing(TEXTS))
    assert bool((hidden[mask == 0] == 0).all())
    assert flatten((hidden, mask)).shape == (3, 40 * 33)


def test_a_file_of_a_package_stays_in_its_folder(tmp_path: Path) -> None:
    """Slashes in names are written as two underscores, which could lead anywhere, or to folders that are not there."""
    elsewhere = tmp_path / "elsewhere.json"
    for name in (str(elsewhere).replace("/", "__"), "..__elsewhere.json", "a__..__..__elsewhere.json", "a__b__c"):
        with pytest.raises(ConfigError, match="do not use it"):
            hf_package.rebuild({"family": "hf", "length": None}, {}, {name: b"{}"}, seed=0)
    assert not elsewhere.exists()


@pytest.mark.parametrize("length", [-1, "16", "16@main", 16.5, True])
def test_a_length_in_a_package_is_a_number(length: object) -> None:
    with pytest.raises(ConfigError, match=r"expected builder\.length in backbone\.json as .* got "):
        hf_package.rebuild({"family": "hf", "length": length}, {}, {"config.json": b"{}"}, seed=0)

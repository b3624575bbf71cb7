"""Tokens know which words and characters they stand for, whatever the tokenizer does."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, models, pre_tokenizers, processors, trainers

from common.backbones.backbone import CutsTexts
from common.backbones.hf_files import quiet
from common.backbones.text import TextPreprocessing, first_tokens, tokenizer_digest
from common.data.records import Pair
from common.errors import ConfigError
from tests.models import minilm_folder

CORPUS = ("the heart beats, the lung breathes", "hepatitis-B and COVID-19 in the liver's cells")


def byte_level(*, trim: bool, special: bool) -> str:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    trainer = trainers.BpeTrainer(
        vocab_size=290,
        special_tokens=["<s>", "<pad>", "</s>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(CORPUS, trainer)
    tokenizer.post_processor = (
        processors.RobertaProcessing(("</s>", 2), ("<s>", 0), trim_offsets=trim, add_prefix_space=False)
        if special
        else processors.ByteLevel(trim_offsets=trim)
    )
    return tokenizer.to_str()


ROBERTA, GPT2 = byte_level(trim=True, special=True), byte_level(trim=False, special=False)
words = st.text(st.characters(codec="utf-8", exclude_categories=["Z", "C", "M"]), min_size=1, max_size=6)
lines = st.text(st.characters(codec="utf-8"), max_size=60)


@pytest.fixture(scope="module")
def minilm() -> TextPreprocessing:
    return TextPreprocessing((minilm_folder() / "tokenizer.json").read_text(), 64, token_types=True)


@pytest.mark.parametrize("tokenizer", [ROBERTA, GPT2])
@given(records=st.lists(st.lists(words, min_size=1, max_size=5).map(tuple), min_size=1, max_size=3))
@settings(max_examples=60, deadline=None)
def test_every_word_begins_once_and_in_order(tokenizer: str, records: list[tuple[str, ...]]) -> None:
    found = TextPreprocessing(tokenizer, 256).encode(tuple(records))
    for row, record in zip(found.words, records, strict=True):
        assert row[row >= 0].tolist() == list(range(len(record)))
    assert bool((found.offsets == -1).all())
    assert bool((found.mask[found.words >= 0] == 1).all())


@pytest.mark.parametrize("tokenizer", [ROBERTA, GPT2])
@given(text=lines)
@settings(max_examples=100, deadline=None)
def test_offsets_point_into_the_text(tokenizer: str, text: str) -> None:
    found = TextPreprocessing(tokenizer, 256).encode((text,))
    spans = [(start, end) for start, end in found.offsets[0].tolist() if start >= 0]
    covered = {place for start, end in spans for place in range(start, end)}
    assert all(0 <= start <= end <= len(text) for start, end in spans)
    assert {place for place, character in enumerate(text) if not character.isspace()} <= covered


@given(question=lines, context=lines, length=st.integers(8, 80))
@settings(max_examples=100, deadline=None)
def test_a_pair_is_cut_off_in_its_context(question: str, context: str, length: int) -> None:
    preprocessing = TextPreprocessing(ROBERTA, length, pad_id=1)
    pair, pieces = Pair(question, context), Tokenizer.from_str(ROBERTA)
    sizes = [len(pieces.encode(text, add_special_tokens=False).ids) for text in pair]
    found = preprocessing.encode((pair,))
    kept = min(sizes[0], max(length - 4 - sizes[1], (length - 4) // 2))
    assert found.ids.shape == found.mask.shape == found.words.shape == (1, length)
    assert int((found.offsets[0, :, 0] >= 0).sum()) == min(sizes[1], length - 4 - kept)
    assert preprocessing.truncated((pair,)) == int(sum(sizes) > length - 4)
    assert bool((found.ids[found.mask == 0] == 1).all())


def test_offsets_of_a_pair_leave_out_space_and_question() -> None:
    pair = Pair("what beats?", "we know: the heart beats")
    preprocessing = TextPreprocessing(GPT2, 64)
    found = preprocessing.encode((pair,))
    spans = [(start, end) for start, end in found.offsets[0].tolist() if start >= 0]
    assert spans[0][0] == 0
    assert spans[-1][1] == len(pair.context)
    assert not any(pair.context[start].isspace() for start, end in spans if end - start > 1)


def test_rows_depend_on_their_record_alone() -> None:
    preprocessing = TextPreprocessing(ROBERTA, 16, pad_id=1)
    together = preprocessing((*CORPUS, ""))
    alone = [preprocessing((text,)) for text in (*CORPUS, "")]
    for part, single in zip(together, zip(*alone, strict=True), strict=True):
        assert torch.equal(part, torch.cat(single))


def test_no_records_give_no_rows() -> None:
    ids, mask = TextPreprocessing(ROBERTA, 16)(())
    assert ids.shape == mask.shape == (0, 16)
    assert TextPreprocessing(ROBERTA, 16).truncated(()) == 0


def test_types_tell_the_second_text_where_they_are_wanted(minilm: TextPreprocessing) -> None:
    ids, mask, types = minilm((Pair("who?", "the patient"),))
    assert ids[0, :8].tolist() == [101, 2040, 1029, 102, 1996, 5776, 102, 0]
    assert types[0, :8].tolist() == [0, 0, 0, 0, 1, 1, 1, 0]
    assert mask.sum() == 7
    assert isinstance(minilm, CutsTexts)


def test_words_are_cut_up_as_transformers_does(minilm: TextPreprocessing) -> None:
    from transformers import AutoTokenizer

    with quiet():
        tokenizer = AutoTokenizer.from_pretrained(minilm_folder())
    records = (("Germline", "mutations", "in", "BRCA1", "(", "hepatitis-B", ")", "."), ("a", "b"))
    found = minilm.encode(records)
    for row, record in enumerate(records):
        theirs = tokenizer(list(record), is_split_into_words=True)
        assert found.ids[row, : len(theirs["input_ids"])].tolist() == theirs["input_ids"]
        begun = [word for word in theirs.word_ids() if word is not None]
        firsts = found.words[row][found.words[row] >= 0].tolist()
        assert firsts == sorted(set(begun))


def test_truncation_is_counted(minilm: TextPreprocessing) -> None:
    long, short = "heart " * 63, "heart " * 62
    assert minilm.truncated((long, short, "")) == 1
    assert minilm.truncated((tuple(long.split()), tuple(short.split()))) == 1
    assert int(minilm.encode((tuple(long.split()),)).words.max()) == 61


def test_words_without_any_token_are_left_out(minilm: TextPreprocessing) -> None:
    found = minilm.encode((("heart", "\u200b", "", "lung"),))
    assert found.words[0][found.words[0] >= 0].tolist() == [0, 3]


def test_a_lone_surrogate_is_no_crash(minilm: TextPreprocessing) -> None:
    found = minilm.encode(("heart \ud800 lung",))
    assert found.offsets[0, 3].tolist() == [8, 12]


def test_the_first_tokens_of_words() -> None:
    spans = [(-1, -1), (0, 2), (2, 4), (4, 6), (5, 7), (-1, -1)]
    assert first_tokens(("heart", "x"), spans) == [-1, 0, -1, -1, 1, -1]


def test_the_description_ignores_layout_truncation_and_padding() -> None:
    described = json.loads(ROBERTA)
    described["truncation"] = {"max_length": 8, "strategy": "LongestFirst", "stride": 0, "direction": "Right"}
    other = json.dumps(described, indent=3)
    assert tokenizer_digest(other) == tokenizer_digest(ROBERTA) != tokenizer_digest(GPT2)
    assert TextPreprocessing(other, 16).describe() == TextPreprocessing(ROBERTA, 16).describe()
    assert TextPreprocessing(other, 32)((CORPUS[0],))[1].sum() > 8
    json.dumps(TextPreprocessing(ROBERTA, 16).describe())


@pytest.mark.parametrize("content", ["", "{}", "[1, 2]", "not json"])
def test_what_is_no_tokenizer_is_refused(content: str) -> None:
    with pytest.raises(ConfigError, match=r"tokenizer\.json"):
        TextPreprocessing(content, 16)


def test_a_length_without_room_is_refused() -> None:
    with pytest.raises(ConfigError, match="at least 8 tokens, got a length of 4"):
        TextPreprocessing(ROBERTA, 4)


def test_real_answers_lie_on_tokens(minilm: TextPreprocessing, pytestconfig: pytest.Config) -> None:
    path: Path = pytestconfig.rootpath / "../shared/data/qa-xquad-en/xquad_en.jsonl"
    if not path.is_file():
        pytest.skip("the real data sets in ../shared/data are not on this machine")
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()[:200]]
    pairs = tuple(Pair(row["question"], row["context"]) for row in rows)
    offsets = TextPreprocessing(minilm.tokenizer, 384).encode(pairs).offsets.numpy()
    starts = np.array([row["answers"][0]["answer_start"] for row in rows])
    assert np.mean((offsets[:, :, 0] == starts[:, None]).any(axis=1)) > 0.97

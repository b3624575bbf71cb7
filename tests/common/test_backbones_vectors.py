"""Static word vectors: every file form gives the same backbone, and malformed files a sentence."""

from __future__ import annotations

import struct
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import save_file

from common.backbones import vectors
from common.backbones.backbone import CutsTexts
from common.backbones.vector_files import read_vectors
from common.backbones.vectors import WordPreprocessing
from common.data.records import Pair
from common.errors import ConfigError
from common.grafting import Trunk, layout

WORDS = ("the", "heart", "x-ray", "ray", "US", "us", "café", ",")
MATRIX = np.random.default_rng(0).standard_normal((len(WORDS), 3)).astype(np.float32)


def lines() -> list[str]:
    return [" ".join([word, *map(str, vector)]) for word, vector in zip(WORDS, MATRIX, strict=True)]


def glove(path: Path) -> Path:
    path.write_text("\n".join(lines()) + "\n", encoding="utf-8")
    return path


def word2vec_text(path: Path) -> Path:
    path.write_text("\n".join([f"{len(WORDS)} 3", *lines()]), encoding="utf-8")
    return path


def word2vec_binary(path: Path) -> Path:
    path = path.with_suffix(".bin")
    rows = [word.encode() + b" " + struct.pack("<3f", *vector) for word, vector in zip(WORDS, MATRIX, strict=True)]
    path.write_bytes(f"{len(WORDS)} 3\n".encode() + b"\n".join(rows) + b"\n")
    return path


def tensors(path: Path) -> Path:
    path = path.with_suffix(".safetensors")
    save_file({"embedding.weight": MATRIX}, path)
    path.with_name("vocab.txt").write_text("\n".join(WORDS), encoding="utf-8")
    return path


FORMS: list[Callable[[Path], Path]] = [glove, word2vec_text, word2vec_binary, tensors]


@pytest.mark.parametrize("form", FORMS)
def test_every_form_holds_the_same(form: Callable[[Path], Path], tmp_path: Path) -> None:
    path = form(tmp_path / "vectors.txt")
    read = read_vectors(path)
    assert read.words == WORDS
    np.testing.assert_array_equal(read.matrix, MATRIX)
    other = vectors.load(f"vectors/{glove(tmp_path / 'other.txt')}")
    assert vectors.load(f"vectors/{path}").digest == other.digest


def test_words_may_hold_spaces_and_come_twice(tmp_path: Path) -> None:
    path = tmp_path / "vectors.txt"
    path.write_text("a 1 2\n. . 3 4\na 5 6\n")
    read = read_vectors(path)
    assert read.words == ("a", ". .")
    assert read.matrix.tolist() == [[1, 2], [3, 4]]


def rows_of(text: str | tuple[str, ...], length: int = 8) -> list[str]:
    ids, mask = WordPreprocessing(WORDS, length)((text,))
    return [WORDS[row - 1] if row else "?" for row in ids[0, : int(mask.sum())].tolist()]


def test_words_are_found_as_written_else_in_lower_case_else_in_parts() -> None:
    assert rows_of("The Heart,café US uS!") == ["the", "heart", ",", "café", "US", "us"]
    assert rows_of("an X-ray, a heart-ray") == ["x-ray", ",", "heart", "ray"]


def test_unknown_words_leave_a_text_but_keep_their_place_among_words() -> None:
    assert rows_of("the unheard heart") == ["the", "heart"]
    assert rows_of(("the", "unheard", "heart")) == ["the", "?", "heart"]


@given(text=st.text(max_size=80))
@settings(max_examples=100, deadline=None)
def test_offsets_name_the_words_of_a_text(text: str) -> None:
    found = WordPreprocessing(WORDS, 100).encode((text,))
    for row, (start, end) in zip(found.ids[0].tolist(), found.offsets[0].tolist(), strict=True):
        assert (row == 0) == (start == -1)
        if row:
            assert text[start:end].lower() == WORDS[row - 1].lower()


@given(st.lists(st.tuples(st.sampled_from([*WORDS, "unheard"])), max_size=20).map(lambda rows: sum(rows, ())))
@settings(max_examples=50, deadline=None)
def test_every_word_of_a_list_is_one_token(record: tuple[str, ...]) -> None:
    found = WordPreprocessing(WORDS, 16).encode((record,))
    kept = min(len(record), 16)
    assert found.words[0].tolist() == [*range(kept), *[-1] * (16 - kept)]
    assert int(found.mask.sum()) == kept


def test_a_pair_is_cut_off_in_its_context() -> None:
    preprocessing = WordPreprocessing(WORDS, 8)
    pair = Pair("the heart ?", "the heart the heart the heart the")
    found = preprocessing.encode((pair,))
    assert isinstance(preprocessing, CutsTexts)
    assert found.offsets[0].tolist() == [[-1, -1]] * 3 + [[0, 3], [4, 9], [10, 13], [14, 19], [20, 23]]
    assert preprocessing.truncated((pair, Pair("the", "heart"), "the " * 9, "the " * 8)) == 2


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return glove(tmp_path / "vectors.txt")


def test_stages_give_vectors_then_their_mean_and_maximum(path: Path) -> None:
    backbone = vectors.load(f"vectors/{path}:8")
    hidden, mask = Trunk(backbone, "embed").activations(backbone.preprocessing(("the heart", "")))
    assert hidden.shape == (2, 8, 3)
    assert mask.tolist() == [[1, 1, 0, 0, 0, 0, 0, 0], [0] * 8]
    np.testing.assert_array_equal(hidden[0, :2].numpy(), MATRIX[:2])
    pool: vectors.MeanAndMax = backbone.stages["pool"]  # type: ignore[assignment]
    features = pool((hidden, mask))
    expected = np.concatenate([MATRIX[:2].mean(axis=0), MATRIX[:2].max(axis=0)])
    np.testing.assert_allclose((features[0] * pool.std + pool.mean).numpy(), expected, rtol=1e-5)
    assert features[1].tolist() == [0] * 6
    assert layout(Trunk(backbone), backbone.preprocessing) == ((6,),)
    assert layout(Trunk(backbone, "embed"), backbone.preprocessing) == ((8, 3), (8,))


def test_random_vectors_come_from_the_seed_alone(path: Path) -> None:
    before = torch.random.get_rng_state()
    first, again, other = (vectors.load(f"vectors/{path}@random-{seed}") for seed in (1, 1, 2))
    assert torch.equal(before, torch.random.get_rng_state())
    assert first.digest == again.digest != other.digest
    assert first.trained_on == "nothing: random weights"


def test_the_digest_covers_words_vectors_and_length(path: Path) -> None:
    digests = {vectors.load(f"vectors/{path}{suffix}").digest for suffix in ("", ":8", ":9")}
    path.write_text(path.read_text().replace("heart", "lung"))
    digests.add(vectors.load(f"vectors/{path}").digest)
    path.write_text(path.read_text().replace("lung ", "lung 1"))
    digests.add(vectors.load(f"vectors/{path}").digest)
    assert len(digests) == 5


BROKEN: dict[str, tuple[str, bytes, str]] = {
    "too few numbers": ("v.txt", b"a 1 2\nb 1\n", "line 2 of"),
    "too many numbers": ("v.txt", b"a 1 2\nb 1 2 x\n", "line 2 of"),
    "no number": ("v.txt", b"a 1 2\nb 1 x\n", "line 2 of"),
    "a word alone": ("v.txt", b"a\n", "line 1 of"),
    "not finite": ("v.txt", b"a 1 2\nb 1 nan\n", "vector 2"),
    "not UTF-8": ("v.txt", b"a 1 2\n\xff\xfe 1 2\n", "line 2 of"),
    "empty": ("v.txt", b"", "found none"),
    "binary without its first line": ("v.bin", b"\x00\x01\x02", "two numbers"),
    "binary that ends early": ("v.bin", b"2 2\na " + bytes(8) + b"b " + bytes(5), "word 2 of 2"),
    "binary that ends in a word": ("v.bin", b"2 2\na " + bytes(8) + b"bc", "word 2 of 2"),
    "binary with another encoding": ("v.bin", b"1 2\n\xff\xfe " + bytes(8), "not UTF-8"),
    "not safetensors": ("v.safetensors", b"\x00" * 20, "safetensors"),
}


@pytest.mark.parametrize("broken", BROKEN)
def test_a_malformed_file_is_one_sentence(broken: str, tmp_path: Path) -> None:
    name, content, expected = BROKEN[broken]
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ConfigError, match=expected) as caught:
        vectors.load(f"vectors/{tmp_path / name}")
    assert "\n" not in str(caught.value)


def test_a_missing_file_is_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot be read: No such file"):
        vectors.load(f"vectors/{tmp_path / 'none.txt'}")


def test_tensors_need_one_word_each(tmp_path: Path) -> None:
    path = tensors(tmp_path / "v")
    (tmp_path / "vocab.txt").write_text("the\nheart\n")
    with pytest.raises(ConfigError, match=r"expected 8 words in .*, got 2"):
        vectors.load(f"vectors/{path}")
    save_file({"a": MATRIX, "b": MATRIX}, path)
    with pytest.raises(ConfigError, match="got 2 of shapes"):
        vectors.load(f"vectors/{path}")


@pytest.mark.parametrize("reference", ["vectors/", "vectors/v.txt:3"])
def test_references_that_ask_for_too_little_are_refused(reference: str, path: Path) -> None:
    with pytest.raises(ConfigError, match=r"name a file|at least 8 words"):
        vectors.load(reference.replace("v.txt", str(path)))


def test_real_glove_knows_its_neighbours(pytestconfig: pytest.Config) -> None:
    path = pytestconfig.rootpath / "../shared/data/weights-glove/glove_twitter_25d.safetensors"
    if not path.is_file():
        pytest.skip("the real weights in ../shared/data are not on this machine")
    backbone = vectors.load(f"vectors/{path}")
    assert layout(Trunk(backbone), backbone.preprocessing) == ((50,),)
    texts = ("doctor", "hospital", "football")
    doctor, hospital, football = Trunk(backbone, "embed").activations(backbone.preprocessing(texts))[0][:, 0]
    near, far = (torch.cosine_similarity(doctor, other, dim=0) for other in (hospital, football))
    assert near > far

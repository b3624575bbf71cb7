"""Static word vectors, the simplest text backbone: ``vectors/<file>[:<words>][@random-<seed>]``."""

from __future__ import annotations

import functools
import hashlib
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from common.backbones.backbone import Backbone, Encoding, backbone_digest, freeze
from common.backbones.text import MIN_LENGTH, MODALITIES, Rows, empty_rows
from common.backbones.vector_files import read_vectors
from common.data.records import Inputs, Pair
from common.errors import ConfigError

DEFAULT_LENGTH = 256
"""Words that a text may have where the reference does not say."""

UNKNOWN = 0
"""Row of the padding and of unknown words: the zero vector."""

_REFERENCE = re.compile(r"vectors/(?P<file>.+?)(?::(?P<length>\d+))?(?:@random-(?P<seed>\d+))?")
_TOKEN = re.compile(r"\w+(?:['’\-]\w+)*|[^\w\s]")
_PART = re.compile(r"\w+|[^\w\s]")


class Found(NamedTuple):
    """A word of the vocabulary in a text.

    Attributes:
        row: of its vector; 0 for an unknown word.
        start: its first character.
        end: the one after its last.
    """

    row: int
    start: int
    end: int


@dataclass(frozen=True)
class WordPreprocessing:
    """Look words up in a vocabulary.

    A text is cut at white space and punctuation; words with an apostrophe or a hyphen are looked up whole, then in
    parts. A word that the vocabulary has is taken as it is written, else in lower case. Unknown words of a text are
    left out; where each word is judged by itself (words, pairs) they keep their place, with the zero vector.

    Attributes:
        words: the vocabulary, V words; word v has row v + 1.
        max_length: T, words of a record.

    Raises:
        ConfigError: the length is too short.
    """

    words: tuple[str, ...] = field(repr=False)
    max_length: int

    def __post_init__(self) -> None:
        if self.max_length < MIN_LENGTH:
            raise ConfigError(
                f"expected a text of at least {MIN_LENGTH} words, got a length of {self.max_length}; write a larger "
                "number after the colon in model.backbone"
            )

    @property
    def accepts(self) -> frozenset[str]:
        """Texts, words and pairs."""
        return MODALITIES

    def __call__(self, inputs: Inputs) -> tuple[Tensor, Tensor]:
        """Rows of N records' words, int64 (N, T), and a mask, float32 (N, T)."""
        encoding = self.encode(inputs)
        return encoding.ids, encoding.mask

    def blank(self) -> Inputs:
        """One empty text."""
        return ("",)

    def describe(self) -> dict[str, Any]:
        """The vocabulary by its digest."""
        listed = hashlib.sha256("\n".join(self.words).encode()).hexdigest()
        return {"kind": "words-v1", "vocabulary": listed, "max_length": self.max_length, "pattern": _TOKEN.pattern}

    def encode(self, inputs: Inputs) -> Encoding:
        """The words of N records, and where they are."""
        rows = empty_rows(len(inputs), self.max_length, UNKNOWN)
        for number, record in enumerate(inputs):
            _fill(rows, number, record, self._cut(record)[0])
        return rows.encoding()

    def truncated(self, inputs: Inputs) -> int:
        """How many records lost their end."""
        return sum(self._cut(record)[1] for record in inputs)

    @functools.cached_property
    def _rows(self) -> dict[str, int]:
        return {word: row for row, word in enumerate(self.words, UNKNOWN + 1)}

    def _cut(self, record: Any) -> tuple[list[tuple[int, Found]], bool]:
        """What is kept of a record, each with the number of its text or word, and whether something is not."""
        kept = list(self._found(record))
        over = len(kept) > self.max_length
        if isinstance(record, Pair) and over:  # the context gives way, the question only beyond half of the room
            question = [found for found in kept if found[0] == 0]
            context = kept[len(question) :]
            question = question[: max(self.max_length - len(context), self.max_length // 2)]
            kept = question + context
        return kept[: self.max_length], over

    def _found(self, record: Any) -> Iterator[tuple[int, Found]]:
        if isinstance(record, str):
            yield from ((0, found) for found in self._in_text(record) if found.row != UNKNOWN)
        elif isinstance(record, Pair):
            for number, text in enumerate(record):
                yield from ((number, found) for found in self._in_text(text))
        else:
            yield from ((number, Found(self._row(word), 0, len(word))) for number, word in enumerate(record))

    def _in_text(self, text: str) -> Iterator[Found]:
        for match in _TOKEN.finditer(text):
            row = self._row(match[0])
            if row != UNKNOWN or _PART.fullmatch(match[0]):
                yield Found(row, *match.span())
            else:
                for part in _PART.finditer(text, *match.span()):
                    yield Found(self._row(part[0]), *part.span())

    def _row(self, word: str) -> int:
        return self._rows.get(word) or self._rows.get(word.lower(), UNKNOWN)


class Embed(nn.Module):
    """Rows to vectors."""

    def __init__(self, matrix: Tensor) -> None:
        """Take vectors, (V, d)."""
        super().__init__()
        rows = torch.cat([torch.zeros(1, matrix.shape[1]), matrix])
        self.vectors = nn.Embedding(rows.shape[0], rows.shape[1], _weight=rows)

    def forward(self, words: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        """(N, T) int64 and (N, T) -> ((N, T, d), (N, T))."""
        ids, mask = words
        return self.vectors(ids), mask


class MeanAndMax(nn.Module):
    """Mean and greatest value of each dimension over a text's words, centred and scaled by public constants.

    These are measured on texts that are made up of the vocabulary's words, so that they need no data of anybody's.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, matrix: Tensor) -> None:
        """Measure the constants with vectors (V, d), the most frequent words first."""
        super().__init__()
        chosen = made_up_texts(len(matrix))
        pooled = torch.cat([mean_and_max(matrix[rows], torch.ones(rows.shape)) for rows in torch.split(chosen, 100)])
        self.register_buffer("mean", pooled.mean(dim=0))
        self.register_buffer("std", pooled.std(dim=0, correction=0).clamp(min=1e-6))

    def forward(self, before: tuple[Tensor, Tensor]) -> Tensor:
        """((N, T, d), (N, T)) -> (N, 2 d); 0 for a text without a known word."""
        hidden, mask = before
        scaled = (mean_and_max(hidden, mask) - self.mean) / self.std
        return torch.where(mask.any(dim=1, keepdim=True), scaled, 0.0)


def mean_and_max(hidden: Tensor, mask: Tensor) -> Tensor:
    """((N, T, d), (N, T)) -> (N, 2 d) over the positions that count; not finite where none does."""
    seen = mask[:, :, None] > 0
    mean = torch.where(seen, hidden, 0.0).sum(dim=1) / seen.sum(dim=1)
    return torch.cat([mean, torch.where(seen, hidden, -torch.inf).amax(dim=1)], dim=1)


def made_up_texts(words: int) -> Tensor:
    """Rows of random words, int64, (1000, 60), the k-th most frequent word in proportion to 1 / (k + 2.7).

    Source: Mandelbrot 1953, An informational theory of the statistical structure of language.
    """
    generator = torch.Generator().manual_seed(0)
    weights = 1 / (torch.arange(1, words + 1, dtype=torch.float64) + 2.7)
    below = weights.cumsum(0) / weights.sum()
    drawn = torch.rand(1000, 60, generator=generator, dtype=torch.float64)
    return torch.searchsorted(below, drawn).clamp(max=words - 1)


def load(reference: str) -> Backbone:
    """Load word vectors as a backbone of two stages, ``embed`` and ``pool``.

    Args:
        reference: ``vectors/`` and a file as ``vector_files.read_vectors`` takes it; ``:<n>`` sets the words of a text,
            ``@random-<seed>`` draws vectors of the same deviation at random.

    Raises:
        ConfigError: the file is missing or malformed.
    """
    parts = _REFERENCE.fullmatch(reference)
    if parts is None:
        raise ConfigError(f"expected vectors/<file>[:<words>], got {reference!r}; name a file of word vectors")
    vectors = read_vectors(Path(parts["file"]).expanduser())
    matrix = torch.from_numpy(vectors.matrix)
    if parts["seed"]:
        generator = torch.Generator().manual_seed(int(parts["seed"]))
        matrix = matrix.std() * torch.randn(matrix.shape, generator=generator)
    preprocessing = WordPreprocessing(vectors.words, int(parts["length"] or DEFAULT_LENGTH))
    stages: dict[str, nn.Module] = {"embed": freeze(Embed(matrix)), "pool": freeze(MeanAndMax(matrix))}
    return Backbone(
        name=reference,
        stages=stages,
        preprocessing=preprocessing,
        licence="not said, see where the file comes from",
        trained_on="nothing: random weights" if parts["seed"] else "not said, see where the file comes from",
        digest=backbone_digest({"family": "vectors-v1"}, preprocessing.describe(), {"vectors": matrix}),
    )


def _fill(rows: Rows, number: int, record: Any, kept: list[tuple[int, Found]]) -> None:
    """Write what is kept of one record."""
    shown = 1 if isinstance(record, Pair) else 0
    for place, (text, found) in enumerate(kept):
        rows.ids[number, place], rows.mask[number, place] = found.row, 1
        if type(record) is tuple:
            rows.words[number, place] = text
        elif text == shown:
            rows.offsets[number, place] = found.start, found.end

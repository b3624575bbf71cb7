"""From texts to token ids: the tokenizer that travels with a text backbone."""

from __future__ import annotations

import functools
import hashlib
import itertools
import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from tokenizers import Encoding as Tokens
from tokenizers import Tokenizer
from torch import Tensor

from common.backbones.backbone import Encoding
from common.data.records import Inputs, Pair
from common.errors import ConfigError

MODALITIES = frozenset({"text", "words", "pair"})
MIN_LENGTH = 8

Integers = npt.NDArray[np.int64]


class Rows(NamedTuple):
    """What an ``Encoding`` is filled from, arrays of its shapes, with the token types (N, T) that some models want."""

    ids: Integers
    mask: npt.NDArray[np.float32]
    words: Integers
    offsets: Integers
    types: Integers

    def encoding(self) -> Encoding:
        """The same as tensors."""
        ids, mask, words, offsets, _ = map(torch.from_numpy, self)
        return Encoding(ids=ids, mask=mask, words=words, offsets=offsets)


def empty_rows(records: int, length: int, pad_id: int) -> Rows:
    """N records of nothing but padding."""
    shape = (records, length)
    return Rows(
        ids=np.full(shape, pad_id, np.int64),
        mask=np.zeros(shape, np.float32),
        words=np.full(shape, -1, np.int64),
        offsets=np.full((*shape, 2), -1, np.int64),
        types=np.zeros(shape, np.int64),
    )


@dataclass(frozen=True)
class TextPreprocessing:
    """Texts, words, or questions with their contexts to token ids, cut off and padded to one length.

    Attributes:
        tokenizer: the content of a ``tokenizer.json``; what it says of truncation and padding is not used.
        max_length: T, in tokens, special ones included.
        pad_id: of the token that fills up; the mask hides it.
        token_types: whether the backbone wants them as a third part.

    Raises:
        ConfigError: the tokenizer cannot be read, or the length leaves no room for text.
    """

    tokenizer: str
    max_length: int
    pad_id: int = 0
    token_types: bool = False

    def __post_init__(self) -> None:
        if self.max_length < MIN_LENGTH:
            raise ConfigError(
                f"expected a text of at least {MIN_LENGTH} tokens, got a length of {self.max_length}; "
                "write a larger number after the colon in model.backbone"
            )
        _ = self._tokenizer

    @property
    def accepts(self) -> frozenset[str]:
        """Texts, words and pairs."""
        return MODALITIES

    def __call__(self, inputs: Inputs) -> tuple[Tensor, ...]:
        """Prepare N records: ids int64 (N, T), mask float32 (N, T) and, where the backbone has them, types (N, T)."""
        rows = self._rows(inputs)
        parts = (rows.ids, rows.mask, *([rows.types] if self.token_types else []))
        return tuple(map(torch.from_numpy, parts))

    def blank(self) -> Inputs:
        """One empty text."""
        return ("",)

    def fullest(self) -> tuple[Tensor, ...]:
        """A made-up text as ``__call__`` prepares it, of the greatest length, all of the token with the greatest id."""
        parts = (torch.full((1, self.max_length), self.greatest_id), torch.ones(1, self.max_length))
        return (*parts, torch.zeros_like(parts[0])) if self.token_types else parts

    @functools.cached_property
    def greatest_id(self) -> int:
        """Of the tokens that the tokenizer knows."""
        return max(self._tokenizer.get_vocab().values(), default=0)

    def describe(self) -> dict[str, Any]:
        """The tokenizer by its digest, which another layout of the same file does not change."""
        return {
            "kind": "tokenizer",
            "tokenizer": tokenizer_digest(self.tokenizer),
            "max_length": self.max_length,
            "pad_id": self.pad_id,
            "token_types": self.token_types,
            "layout": "specials as the tokenizer adds them, right padding, words joined by spaces",
        }

    def encode(self, inputs: Inputs) -> Encoding:
        """The tokens of N records, and which words or characters they stand for."""
        return self._rows(inputs).encoding()

    def truncated(self, inputs: Inputs) -> int:
        """How many records lost their end."""
        return sum(cut for _, cut in self._tokens(inputs))

    @functools.cached_property
    def _tokenizer(self) -> Tokenizer:
        try:
            tokenizer = Tokenizer.from_str(self.tokenizer)
        except Exception as error:  # the Rust library raises nothing more specific
            raise ConfigError(
                "expected the content of a tokenizer.json, got something else; fetch the model anew"
            ) from error
        tokenizer.no_truncation()
        tokenizer.no_padding()
        return tokenizer

    @functools.cached_property
    def _cutter(self) -> Tokenizer:
        """The same without its last step, which must run only once, when the special tokens are added."""
        cutter = Tokenizer.from_str(self._tokenizer.to_str())
        cutter.post_processor = None
        return cutter

    def _rows(self, inputs: Inputs) -> Rows:
        rows = empty_rows(len(inputs), self.max_length, self.pad_id)
        for row, (record, (tokens, _)) in enumerate(zip(inputs, self._tokens(inputs), strict=True)):
            width = len(tokens.ids)
            rows.ids[row, :width] = tokens.ids
            rows.mask[row, :width] = 1
            rows.types[row, :width] = tokens.type_ids
            if type(record) is tuple:
                rows.words[row, :width] = first_tokens(record, _spans(tokens, 0))
            else:
                shown, second = (record.context, 1) if isinstance(record, Pair) else (record, 0)
                spans = [_without_space(shown, span) for span in _spans(tokens, second)]
                rows.offsets[row, :width] = np.array(spans, np.int64).reshape(width, 2)
        return rows

    def _tokens(self, inputs: Inputs) -> list[tuple[Tokens, bool]]:
        """Each record's tokens with the special ones, and whether they were cut off."""
        if len(inputs) == 0:
            return []
        if not isinstance(inputs[0], Pair):
            texts = [" ".join(record) if type(record) is tuple else record for record in inputs]
            return [self._single(tokens) for tokens in self._pieces(texts)]
        separator = "" if self._tokenizer.num_special_tokens_to_add(True) else "\n"
        questions = self._pieces([record.question + separator for record in inputs])
        contexts = self._pieces([record.context for record in inputs])
        return list(itertools.starmap(self._pair, zip(questions, contexts, strict=True)))

    def _pieces(self, texts: Sequence[str]) -> list[Tokens]:
        # A lone surrogate, as broken exports hold, is no character that the Rust library takes.
        whole = [text.encode("utf-8", "replace").decode() for text in texts]
        return self._cutter.encode_batch(whole, add_special_tokens=False)

    def _single(self, tokens: Tokens) -> tuple[Tokens, bool]:
        room = self.max_length - self._tokenizer.num_special_tokens_to_add(False)
        cut = len(tokens.ids) > room
        tokens.truncate(room)
        return self._tokenizer.post_process(tokens), cut

    def _pair(self, question: Tokens, context: Tokens) -> tuple[Tokens, bool]:
        """Cut off the context; the question only where it takes more than half of the room."""
        room = self.max_length - self._tokenizer.num_special_tokens_to_add(True)
        before = len(question.ids) + len(context.ids)
        question.truncate(max(room - len(context.ids), room // 2))
        context.truncate(room - len(question.ids))
        return self._tokenizer.post_process(question, context), before > room


def tokenizer_digest(content: str) -> str:
    """SHA-256, in hex, over what a ``tokenizer.json`` says, without its truncation and padding."""
    described = {name: value for name, value in json.loads(content).items() if name not in ("truncation", "padding")}
    return hashlib.sha256(json.dumps(described, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def first_tokens(words: Sequence[str], spans: Sequence[tuple[int, int]]) -> list[int]:
    """For each token's span in the words joined by spaces: the word that it is the first token of, else -1.

    >>> first_tokens(("ab", "c"), [(-1, -1), (0, 1), (1, 2), (2, 4)])
    [-1, 0, -1, 1]
    """
    # The space before a word counts as the word's, since byte-level tokenizers put it into the token.
    owner = [word for word, text in enumerate(words) for _ in range(len(text) + (word > 0))]
    begun: set[int] = set()
    firsts = []
    for start, end in spans:
        word = owner[start] if 0 <= start < min(end, len(owner)) else -1
        firsts.append(-1 if word in begun else word)
        begun.add(word)
    return firsts


def _spans(tokens: Tokens, sequence: int) -> list[tuple[int, int]]:
    """Characters of the tokens of one of a pair's texts; (-1, -1) for the others and the special ones."""
    spans = zip(tokens.offsets, tokens.sequence_ids, tokens.special_tokens_mask, strict=True)
    return [span if owner == sequence and not special else (-1, -1) for span, owner, special in spans]


def _without_space(text: str, span: tuple[int, int]) -> tuple[int, int]:
    start, end = span
    while start >= 0 and start < end - 1 and text[start].isspace():
        start += 1
    return start, end

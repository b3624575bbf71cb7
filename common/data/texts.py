"""Texts, pairs of texts, tagged words and questions with answers, from rows."""

from __future__ import annotations

from itertools import chain
from typing import Any

import numpy as np

from common.data.fields import Fields, declared_classes, is_text, read_labels, read_origins
from common.data.labels import index_labels
from common.data.local import Labels, LocalData
from common.data.records import Pair

SPAN_CLASSES = ("start", "end")


def read_texts(fields: Fields) -> LocalData:
    """Texts with one label or several, from the columns ``text`` and ``label`` or ``labels``.

    Raises:
        ConfigError: a column or a value is missing.
    """
    texts = fields.strings("text")
    labels, classes, task = read_labels(fields)
    return LocalData(texts, labels, classes, modality="text", task=task, **read_origins(fields))


def read_pairs(fields: Fields) -> LocalData:
    """Questions on contexts with a label, from ``question``, ``context`` and ``label`` or ``labels``.

    Raises:
        ConfigError: a column or a value is missing.
    """
    labels, classes, task = read_labels(fields)
    return LocalData(_pairs(fields), labels, classes, modality="pair", task=task, **read_origins(fields))


def read_words(fields: Fields) -> LocalData:
    """Words with a tag each, from the columns ``tokens`` and ``tags``, two lists of equal length.

    Raises:
        ConfigError: a column is missing, or its entries are not lists of words of the same length.
    """
    tokens, tags = words_of(fields), fields.read("tags")
    wrong = [not _are_tags(several, len(words)) for words, several in zip(tokens, tags, strict=True)]
    fields.refuse("tags", wrong, "a list with one tag for each word")
    labels, classes = _index_tags(tags, declared_classes(fields))
    return LocalData(tokens, labels, classes, modality="words", task="tokens", **read_origins(fields))


def read_spans(fields: Fields) -> LocalData:
    """Questions whose answer is a part of the context, from ``question``, ``context`` and ``answers``.

    ``answers`` is SQuAD's: a list of ``{"text", "answer_start"}``, empty where the context has no answer (or one such
    object, or lists of texts and of starts). The first counts. Questions on one ``title`` stay together in a hold-out.

    Raises:
        ConfigError: a column or a value is missing, or an answer does not stand where it is said to.
    """
    pairs = _pairs(fields)
    spans = [_span(pair.context, value) for pair, value in zip(pairs, fields.read("answers"), strict=True)]
    fields.refuse(
        "answers",
        [span is None for span in spans],
        "a list of texts with the place of each in the context (answer_start, counted in characters)",
    )
    labels = np.array(spans, dtype=np.int64).reshape(-1, 2)
    return LocalData(pairs, labels, SPAN_CLASSES, modality="pair", task="spans", **read_origins(fields, group="title"))


def words_of(fields: Fields) -> tuple[tuple[str, ...], ...]:
    """The lists of words in the column ``tokens``.

    Raises:
        ConfigError: there is no such column, or an entry is no list of words.
    """
    tokens = fields.read("tokens")
    fields.refuse("tokens", [not _are_words(words) for words in tokens], "a list of words, none of them empty")
    return tuple(tuple(words) for words in tokens)


def _pairs(fields: Fields) -> tuple[Pair, ...]:
    return tuple(map(Pair, fields.strings("question"), fields.strings("context")))


def _are_words(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(map(is_text, value))


def _are_tags(value: Any, length: int) -> bool:
    kinds = {type(tag) for tag in value} if isinstance(value, list) else set()
    return len(kinds) == 1 and kinds <= {str, int} and len(value) == length and "" not in value


def _index_tags(tags: list[list[Any]], declared: tuple[str, ...] | None) -> tuple[Labels, tuple[str, ...]]:
    """The index of each word's tag, -1 after the last word, shape (N, W)."""
    flat, classes = index_labels(np.array(list(chain.from_iterable(tags))), declared)
    lengths = np.array([len(several) for several in tags])
    labels = np.full((len(tags), lengths.max(initial=0)), -1, dtype=np.int64)
    labels[np.arange(labels.shape[1]) < lengths[:, None]] = flat
    return labels, classes


def _span(context: str, value: Any) -> tuple[int, int] | None:
    """Where the first answer stands, (-1, -1) where there is none, None where this cannot be read."""
    if isinstance(value, dict) and isinstance(value.get("text"), list) and isinstance(value.get("answer_start"), list):
        pairs = zip(value["text"], value["answer_start"], strict=False)
        value = [{"text": text, "answer_start": start} for text, start in pairs]
    answers = [value] if isinstance(value, dict) else value
    if not isinstance(answers, list):
        return None
    if not answers:
        return -1, -1
    first = answers[0] if isinstance(answers[0], dict) else {}
    text, start = first.get("text"), first.get("answer_start")
    if not isinstance(text, str) or not text or type(start) is not int or start < 0:
        return None
    return (start, start + len(text)) if context.startswith(text, start) else None

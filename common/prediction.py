"""What a trained model says of new records, in the words of its task."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from common.backbones.backbone import CutsTexts
from common.data.records import Inputs, Pair
from common.errors import ConfigError
from common.metrics import best_spans, entities
from common.model_folder import Model

Prediction = dict[str, Any]


def predict_records(model: Model, inputs: Inputs) -> list[Prediction]:
    """Predict, record by record.

    Args:
        model: as ``load_model`` reads it.
        inputs: N records of its modality.

    Returns:
        By task: ``class`` and ``probabilities``; ``labels`` and ``probabilities``; ``tags`` (one a word, None where the
        text was cut off before it) and ``entities``; ``answer`` (a piece of the context, None where there is none) and
        ``score`` (its probability).
    """
    logits, classes = model.logits(inputs), model.facts.model.classes
    match model.facts.model.task:
        case "classification":
            return [_class(row, classes) for row in logits.softmax(dim=1)]
        case "multilabel":
            return [_labels(row, classes) for row in logits.sigmoid()]
        case "tokens":
            return _tags(model, inputs, logits)
        case _:
            return _answers(model, inputs, logits)


def _class(row: Tensor, classes: tuple[str, ...]) -> Prediction:
    return {"class": classes[int(row.argmax())], "probabilities": dict(zip(classes, row.tolist(), strict=True))}


def _labels(row: Tensor, classes: tuple[str, ...]) -> Prediction:
    probabilities = dict(zip(classes, row.tolist(), strict=True))
    return {"labels": [name for name, value in probabilities.items() if value > 0.5], "probabilities": probabilities}


def _tags(model: Model, inputs: Inputs, logits: Tensor) -> list[Prediction]:
    classes, found = model.facts.model.classes, []
    best = logits.argmax(dim=2)
    for words, begins, row in zip(inputs, _cutter(model).encode(inputs).words, best, strict=True):
        tags: list[str | None] = [None] * len(words)
        for token in torch.nonzero(begins >= 0).flatten().tolist():
            tags[int(begins[token])] = classes[int(row[token])]
        marked = sorted(entities([tag or "O" for tag in tags]))
        named = [{"text": " ".join(words[first:after]), "kind": kind} for first, after, kind in marked]
        found.append({"words": list(words), "tags": tags, "entities": named})
    return found


def _answers(model: Model, inputs: Inputs, logits: Tensor) -> list[Prediction]:
    offsets, best = _cutter(model).encode(inputs).offsets, best_spans(logits)
    chances = logits.double().softmax(dim=1)
    found = []
    for pair, place, (first, last), chance in zip(inputs, offsets, best.tolist(), chances, strict=True):
        start, after = int(place[first, 0]), int(place[last, 1])
        answer = pair.context[start:after] if isinstance(pair, Pair) and 0 <= start < after else None
        found.append({"answer": answer, "score": float(chance[first, 0] * chance[last, 1])})
    return found


def _cutter(model: Model) -> CutsTexts:
    if not isinstance(model.preprocessing, CutsTexts):
        raise ConfigError("expected a model on a backbone for texts, got another; copy the model folder again")
    return model.preprocessing

"""Metrics beside accuracy; F1 and AUROC as scikit-learn has them, but without importing it, which takes a second."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

Metrics = dict[str, float | None]
LONGEST_ANSWER = 30  # tokens

IGNORED = -100  # the target of a token that has nothing to be predicted
CUT_OFF = -1  # first and last token of an answer that no token of its record holds
_PLAIN = {"S": "B", "U": "B", "E": "I", "L": "I"}


def classification(logits: Tensor, targets: Tensor, classes: tuple[str, ...]) -> Metrics:
    """Balanced accuracy, macro-F1 and AUROC (one against the rest, the mean over classes that have both kinds).

    The macro-F1 is the mean over all classes that a record has or was taken for.
    """
    predicted, truth = logits.argmax(dim=1).numpy(), targets.numpy()
    recalls = [float((predicted[truth == label] == label).mean()) for label in np.unique(truth)]
    named = np.union1d(truth, predicted)
    return {
        "balanced_accuracy": float(np.mean(recalls)),
        "macro_f1": macro_f1(truth[:, None] == named, predicted[:, None] == named),
        "auroc": _mean_auroc(_log_odds(logits.double()), torch.nn.functional.one_hot(targets, len(classes))),
    }


def multilabel(logits: Tensor, targets: Tensor, classes: tuple[str, ...]) -> Metrics:
    """Records with all labels right, macro-F1 at probability 1/2, AUROC (mean over labels that have both kinds)."""
    predicted, truth = (logits > 0).numpy(), (targets > 0.5).numpy()
    return {
        "exact_match": float((predicted == truth).all(axis=1).mean()),
        "macro_f1": macro_f1(truth, predicted),
        "auroc": _mean_auroc(logits.double(), targets),
    }


def tokens(logits: Tensor, targets: Tensor, classes: tuple[str, ...]) -> Metrics:
    """Precision, recall and F1 of whole entities: first word, last word and kind all right (as CoNLL counts).

    An entity that ends in the words that were cut off is a true one like any other, and is not found.
    """
    tagged = targets != IGNORED
    predicted = logits.argmax(dim=2)
    true, found, both = 0, 0, 0
    for row in range(len(targets)):
        here = tagged[row]
        wanted = entities([classes[tag] for tag in targets[row][here].tolist()])
        came = entities([classes[tag] for tag in predicted[row][here[: predicted.shape[1]]].tolist()])
        true, found, both = true + len(wanted), found + len(came), both + len(wanted & came)
    precision, recall = both / max(1, found), both / max(1, true)
    return {
        "entity_f1": 2 * both / max(1, found + true),
        "entity_precision": precision,
        "entity_recall": recall,
    }


def entities(tags: list[str]) -> set[tuple[int, int, str]]:
    """First word, word after the last, and kind of each entity that BIO tags mark.

    An I- tag without its B- begins an entity, as the CoNLL script has it. E- or L- ends one, S- or U- is one by itself
    (IOBES and BILOU).

    >>> sorted(entities(["O", "B-Drug", "I-Drug", "B-Drug", "I-Gene"]))
    [(1, 3, 'Drug'), (3, 4, 'Drug'), (4, 5, 'Gene')]
    """
    found, start, kind = set(), 0, ""
    for position, tag in enumerate([*tags, "O"]):
        prefix, _, name = tag.partition("-")
        prefix = _PLAIN.get(prefix, prefix)
        if kind and (prefix != "I" or name != kind):
            found.add((start, position, kind))
            kind = ""
        if not kind and prefix in ("B", "I"):
            start, kind = position, name
    return found


def spans(logits: Tensor, targets: Tensor, classes: tuple[str, ...]) -> Metrics:
    """Exact match, and the overlap of found and true answers in tokens, as F1 (the mean over records).

    An answer that was cut off overlaps with nothing: both are 0 for its record.
    """
    best = best_spans(logits)
    low = torch.maximum(best[:, 0], targets[:, 0])
    high = torch.minimum(best[:, 1], targets[:, 1])
    shared = (high - low + 1).clamp(min=0).double()
    lengths = (best[:, 1] - best[:, 0] + 1 + targets[:, 1] - targets[:, 0] + 1).double()
    return {
        "exact_match": float((best == targets).all(dim=1).double().mean()),
        "token_f1": float((2 * shared / lengths).mean()),
    }


def best_spans(logits: Tensor) -> Tensor:
    """The likeliest first and last token of each record, shape (B, 2): the last not before the first, nor far after it.

    Args:
        logits: shape (B, T, 2).
    """
    length = logits.shape[1]
    allowed = torch.ones(length, length).triu().tril(LONGEST_ANSWER - 1).bool()
    best = []
    for start, end in zip(logits[..., 0].double(), logits[..., 1].double(), strict=True):
        together = (start[:, None] + end[None, :]).masked_fill(~allowed, -torch.inf)
        best.append(divmod(int(together.argmax()), length))
    return torch.tensor(best, dtype=torch.int64).reshape(-1, 2)


def macro_f1(truth: NDArray[np.bool_], predicted: NDArray[np.bool_]) -> float:
    """Mean over columns of F1; 0 for a column without one record of the kind, true or predicted.

    Args:
        truth: shape (N, K), whether a record is of a kind.
        predicted: shape (N, K), whether it was taken for one.
    """
    both, either = (truth & predicted).sum(axis=0), truth.sum(axis=0) + predicted.sum(axis=0)
    return float(np.mean(2 * both / np.maximum(either, 1)))


def auroc(positive: NDArray[np.bool_], scores: NDArray[np.float64]) -> float:
    """The chance that a positive record scores above a negative one, ties counted half: Mann and Whitney's U.

    Args:
        positive: shape (N,), both kinds among them.
        scores: shape (N,), finite.

    Source: Hanley and McNeil 1982, doi:10.1148/radiology.143.1.7063747.
    """
    _, place, tied = np.unique(scores, return_inverse=True, return_counts=True)
    ranks = np.cumsum(tied) - (tied - 1) / 2
    positives = int(positive.sum())
    above = float(ranks[place][positive].sum()) - positives * (positives + 1) / 2
    return above / (positives * (len(positive) - positives))


def _log_odds(logits: Tensor) -> Tensor:
    """Logit of the probability of each class, shape (N, K), which orders records where the probability rounds to 1.

    That is a class's logit less the logarithm of the others' summed exponentials: those before it, and those after it.
    """
    edge = torch.full((len(logits), 1), -torch.inf, dtype=logits.dtype)
    before = torch.cat([edge, logits[:, :-1].logcumsumexp(dim=1)], dim=1)
    after = torch.cat([edge, logits[:, 1:].flip(1).logcumsumexp(dim=1)], dim=1).flip(1)
    return logits - torch.logaddexp(before, after)


def _mean_auroc(scores: Tensor, truth: Tensor) -> float | None:
    """Mean over columns that have both kinds of records; None where none has."""
    values = []
    for column in range(truth.shape[1]):
        positive = truth[:, column].numpy() > 0.5
        if positive.any() and not positive.all() and bool(scores[:, column].isfinite().all()):
            values.append(auroc(positive, scores[:, column].numpy()))
    return float(np.mean(values)) if values else None

"""Records as the rows that a transferability score adds up: one a record, or one a token."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from common.data.records import TaskName
from common.grafting import Layout
from common.metrics import IGNORED
from common.scored_targets import Rows
from common.token_heads import sequence_parts, sequence_shape


def rows_of(features: NDArray[np.float32], targets: Tensor, task: TaskName, layout: Layout, classes: int) -> Rows:
    """Turn records into rows, each record's depending on it alone.

    A record is one row, its class or its labels the targets. For tags each tagged token is a row, for answers each
    token, which is or is not the first and the last of the answer; a record's rows share its weight of 1 equally, as
    they share its loss.

    Args:
        features: shape (N, D), as they pass the cut.
        targets: of the N records, see ``common.targets``.
        task: what is learnt.
        layout: of what passes the cut.
        classes: how many there are.

    Raises:
        ConfigError: the task needs a vector for each token, and the cut gives none.
    """
    if task == "classification":
        return Rows(features, np.eye(classes)[targets.numpy()], np.ones(len(features)))
    if task == "multilabel":
        return Rows(features, _with_one(targets.double()), np.ones(len(features)))
    sequence_shape(layout)
    states, mask = sequence_parts(torch.from_numpy(np.array(features)), layout)
    if task == "tokens":
        return _tagged(states, targets, classes)
    return _answering(states, mask > 0, targets)


def _tagged(states: Tensor, tags: Tensor, classes: int) -> Rows:
    tags = tags[:, : states.shape[1]]  # words that were cut off have no row
    kept = tags != IGNORED
    targets = np.eye(classes)[tags[kept].numpy()]
    return Rows(states[kept].numpy(), targets, _shares(kept))


def _answering(states: Tensor, present: Tensor, spans: Tensor) -> Rows:
    positions, spans = torch.arange(states.shape[1]), spans.clamp(min=0)  # an answer that was cut off is taken for none
    marks = torch.stack([positions == spans[:, :1], positions == spans[:, 1:]], dim=2)  # (N, T, 2)
    return Rows(states[present].numpy(), _with_one(marks[present].double()), _shares(present))


def _with_one(targets: Tensor) -> NDArray[np.float64]:
    whole: NDArray[np.float64] = torch.cat([targets, torch.ones(len(targets), 1)], dim=1).double().numpy()
    return whole


def _shares(kept: Tensor) -> NDArray[np.float64]:
    """One over the rows of the record that a row belongs to, for each row that is kept."""
    each = 1 / kept.sum(dim=1, keepdim=True).clamp(min=1).double()
    shares: NDArray[np.float64] = each.expand(kept.shape)[kept].numpy()
    return shares

"""From labels to what a head is to predict: for tags and answers that depends on how a backbone cuts texts up."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from common.backbones.backbone import Backbone, CutsTexts, Encoding
from common.data.local import LocalData
from common.errors import ConfigError
from common.metrics import CUT_OFF, IGNORED


def make_targets(data: LocalData, backbone: Backbone) -> Tensor:
    """Targets of every record.

    Args:
        data: N records.
        backbone: whose preprocessing cuts texts into tokens.

    Returns:
        By task: int64 (N,); float32 (N, K); int64 (N, T + L), the tags of T tokens and then of the words that were cut
        off (L is 0 where none was), ``IGNORED`` where nothing is to be predicted (a word counts once, at its first
        token); int64 (N, 2), first and last token of the answer, (0, 0) where there is none, ``CUT_OFF`` where no
        tokens hold it. What was cut off counts where a head is scored, and never where it is trained.

    Raises:
        ConfigError: the task needs tokens, and this backbone has none.
    """
    if data.task == "multilabel":
        return torch.from_numpy(data.labels).float()
    if data.task == "classification":
        return torch.from_numpy(data.labels)
    if not isinstance(backbone.preprocessing, CutsTexts):
        raise ConfigError(
            f"the task {data.task!r} needs a backbone for texts, got {backbone.name}; choose one of the families hf "
            "and vectors"
        )
    encoding = backbone.preprocessing.encode(data.inputs)
    return _tags(data, encoding) if data.task == "tokens" else _answers(data, encoding)


def _tags(data: LocalData, encoding: Encoding) -> Tensor:
    tags, words = torch.from_numpy(data.labels), encoding.words
    seen = torch.where(words >= 0, torch.gather(tags, 1, words.clamp(min=0)), IGNORED)
    after = torch.arange(tags.shape[1]) > words.max(dim=1, keepdim=True).values  # (N, W)
    unseen = torch.where(after & (tags >= 0), tags, IGNORED)
    return torch.cat([seen, unseen[:, (unseen != IGNORED).any(dim=0)]], dim=1)


def _answers(data: LocalData, encoding: Encoding) -> Tensor:
    offsets = encoding.offsets.numpy()
    first, after = data.labels[:, 0], data.labels[:, 1]
    here = offsets[:, :, 0] >= 0
    starts = here & (offsets[:, :, 0] <= first[:, None]) & (first[:, None] < offsets[:, :, 1])
    ends = here & (offsets[:, :, 0] < after[:, None]) & (after[:, None] <= offsets[:, :, 1])
    found = starts.any(axis=1) & ends.any(axis=1)
    spans = np.where(found, np.stack([starts.argmax(axis=1), ends.argmax(axis=1)]), CUT_OFF)
    return torch.from_numpy(np.where(first >= 0, spans, 0).T.astype(np.int64))

"""A model as a ``ModelSpec`` means it: the layout at its cut, and its head."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from functools import lru_cache

from torch import Tensor, nn

from common.backbones.backbone import Backbone
from common.backbones.tabular import for_columns
from common.data.local import LocalData
from common.errors import ConfigError
from common.features import cached_backbone, check_modality
from common.grafting import Layout, Trunk, cut_point, layout
from common.heads import build_head, load_arrays
from common.messages import ModelSpec
from common.token_heads import TOKEN_TASKS, is_sequence


@lru_cache(maxsize=16)
def layout_at(reference: str, cut: str) -> Layout:
    """Shapes of what passes a cut of a backbone, without the batch.

    Raises:
        ConfigError: backbone or cut are not usable.
    """
    backbone = cached_backbone(reference)
    return layout(Trunk(backbone, cut), backbone.preprocessing)


def suited(reference: str, data: LocalData) -> str:
    """The reference of the backbone, fitted to the data: ``tabular/identity`` learns how many columns there are.

    Raises:
        ConfigError: the backbone takes other records, or a table with other columns.
    """
    if data.modality == "table":
        reference = re.sub(r"^tabular/identity(?!:)", f"tabular/identity:{len(data.columns)}", reference)
    backbone = cached_backbone(reference)
    check_modality(backbone, data.modality)
    if data.modality == "table":
        for_columns(backbone, data.columns)
    return reference


def choose_cut(reference: str, cut: str | None, task: str) -> str:
    """The cut that is asked for; without one, the last stage that gives what the task needs.

    Raises:
        ConfigError: there is no such stage, or it gives the task no vector for each token.
    """
    backbone = cached_backbone(reference)
    if task not in TOKEN_TASKS:
        return cut_point(backbone, cut)
    names = list(backbone.stages) if cut is None else [cut_point(backbone, cut)]
    fitting = [name for name in names if is_sequence(layout_at(reference, name))]
    if not fitting:
        where = "none" if cut is None else f"not {cut!r}"
        raise ConfigError(
            f"the task {task!r} needs a stage that gives a vector for each token: {where} of {backbone.name}; "
            "choose another model.backbone or model.cut"
        )
    return fitting[-1]


def make_head(model: ModelSpec, seed: int = 0) -> nn.Module:
    """Build the untrained head that a model means; it maps flat features (N, D) to logits.

    Raises:
        ConfigError: there is no such head, or no stage is left for it above the cut.
    """
    shapes = layout_at(model.backbone, model.cut)
    upper = upper_stages(cached_backbone(model.backbone), model.cut) if model.head == "upper" else None
    return build_head(
        model.head,
        shapes,
        len(model.classes),
        hidden=model.hidden,
        seed=seed,
        task=model.task,
        upper=upper,
        train=model.train,
    )


def classifier_width(model: ModelSpec) -> int:
    """How many numbers the classifier is given, for a record or, where each token has its own logits, for a token."""
    backbone = cached_backbone(model.backbone)
    cut = list(backbone.stages)[-1] if model.head == "upper" and model.task not in TOKEN_TASKS else model.cut
    shapes = layout_at(model.backbone, cut)
    if model.task in TOKEN_TASKS:
        return shapes[0][-1]
    return sum(math.prod(shape) for shape in shapes)


def upper_stages(backbone: Backbone, cut: str) -> Mapping[str, nn.Module]:
    """The stages above a cut, in order.

    Raises:
        ConfigError: there is none.
    """
    names = list(backbone.stages)
    above = names[names.index(cut) + 1 :]
    if not above:
        raise ConfigError(
            f'model.head = "upper" trains the stages above model.cut, but {cut!r} is the last of {backbone.name}; '
            f"choose a lower cut out of {', '.join(names[:-1])}"
        )
    return {name: backbone.stages[name] for name in above}


def trained_head(model: ModelSpec, arrays: Mapping[str, Tensor]) -> nn.Module:
    """The head that a model means, with these parameters.

    Raises:
        ConfigError: names or shapes are not those of the head.
    """
    head = make_head(model)
    load_arrays(head, arrays)
    return head


def shared_head(model: ModelSpec, arrays: Mapping[str, Tensor], digest: str) -> nn.Module:
    """As ``trained_head``, one for all who ask for the same in this process: it is to be read only.

    Args:
        model: whose head it is.
        arrays: its parameters.
        digest: of the arrays.

    Raises:
        ConfigError: names or shapes are not those of the head.
    """
    known = _shared.get(digest)
    if known is None or known[0] != model:
        while len(_shared) >= MOST_SHARED:
            _shared.pop(next(iter(_shared)))
        known = _shared[digest] = (model, trained_head(model, arrays))
    return known[1]


MOST_SHARED = 2
_shared: dict[str, tuple[ModelSpec, nn.Module]] = {}

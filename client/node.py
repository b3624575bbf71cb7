"""What a round needs to know of the node that it is at; none of it comes from the server."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from client.last_look import Speaker
from client.ledger import Ledger
from client.policy import Policy
from client.secagg_node import SumNode
from common.errors import BackboneMismatchError, PrivacyError
from common.features import as_tensor, cached_backbone
from common.messages import ModelSpec
from common.privacy.noise import Randomness, SystemRandomness, WordSource
from common.privacy.statement import Balance


@dataclass(frozen=True)
class Records:
    """A node's records as the head sees them.

    Attributes:
        features: float32, shape (N, D) or more rows, read-only, possibly memory-mapped.
        rows: which rows of ``features`` are this node's, shape (n,).
        targets: of this node's records, shape (n, ...).
        patients: number of the patient of each record, shape (n,), 0 … P-1; None where the data name none.
    """

    features: NDArray[np.float32]
    rows: NDArray[np.int64]
    targets: Tensor
    patients: NDArray[np.int64] | None = None

    def __len__(self) -> int:
        """Number of records (sensitive)."""
        return len(self.rows)

    def take(self, sampled: NDArray[np.bool_] | NDArray[np.int64]) -> tuple[Tensor, Tensor]:
        """Features (B, D) and targets (B, ...) of the sampled records: by flags, or by their places."""
        targets = torch.from_numpy(self.targets.numpy()[sampled])  # NumPy takes a fifth of torch's time for a few
        return as_tensor(self.features, self.rows[sampled]), targets

    def everything(self) -> tuple[Tensor, Tensor]:
        """Features (n, D) and targets (n, ...) of all records."""
        return as_tensor(self.features, self.rows), self.targets


def _no_sums() -> SumNode:
    raise PrivacyError("this node is not set up for secure aggregation; take part in runs of local trust")


@dataclass(frozen=True)
class Node:
    """What a round at this node needs.

    Attributes:
        name: as the server knows the node.
        declared_size: number of units (records, or patients) that the operator declares; public.
        classes: label names of its data, in the order of the labels; public.
        task: what its labels say; public.
        policy: what the operator allows.
        simulated: whether an engine on one machine plays this node.
        open_ledger: opens the budget of the data set.
        records: computes, or finds in the cache, the features that a model needs.
        randomness: for a round's sampling and noise, in this order.
        own: the model with its backbone named as this node knows it; refuses one that nobody approved.
        sums: this node's half of secure aggregation.
        share_of_noise: for a round's share of the noise in a sum.
        untouched: what the ledger would say that is not there yet; None where there is one, or one is made at once.
        answer_after_s: answers that records went into leave at a multiple of so many seconds; 0 for at once.
    """

    name: str
    declared_size: int
    classes: tuple[str, ...]
    task: str
    policy: Policy
    simulated: bool
    open_ledger: Callable[[], AbstractContextManager[Ledger]]
    records: Callable[[ModelSpec], Records]
    randomness: Callable[[int], tuple[Randomness, Randomness]]
    own: Callable[[ModelSpec], ModelSpec] = lambda model: model
    sums: Callable[[], SumNode] = _no_sums
    share_of_noise: Callable[[int], WordSource] = lambda _: SystemRandomness()
    untouched: Callable[[], Balance | None] = lambda: None
    answer_after_s: float = 0.0

    @property
    def speaker(self) -> Speaker:
        """Who answers, and whether exact metrics may leave."""
        return Speaker(self.name, self.declared_size, exact=self.simulated and self.policy.metrics == "exact")


def check_backbone(model: ModelSpec) -> None:
    """Make sure that this node's copy of a backbone is the one that a model means.

    Raises:
        BackboneMismatchError: this node's copy has another digest.
    """
    backbone = cached_backbone(model.backbone)
    if backbone.digest != model.backbone_digest:
        raise BackboneMismatchError(
            f"expected the backbone {model.backbone} with digest {model.backbone_digest}, this node has "
            f"{backbone.digest}; install the same release on both sides"
        )

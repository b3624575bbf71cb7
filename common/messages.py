"""What server and node say to each other, free of any transport."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from common.data.records import TaskName
from common.head_kinds import SOLVED_HEADS
from common.privacy.plan import PrivacyTerms
from common.secagg.messages import Stage
from common.strict import Strict

if TYPE_CHECKING:
    from torch import Tensor

MOST_HIDDEN = 16_384


class Reason(StrEnum):
    """Why a node refuses: a fixed, coarse vocabulary, because free text could carry data.

    ``INTERNAL`` stands for everything unforeseen; the details stay in the node's own log. The last two are Flower's
    answers, not the node's: its operator has not approved the app, or it is not there.
    """

    BUDGET = "budget"
    POLICY = "policy"
    BACKBONE = "backbone"
    DATA = "data"
    PROTOCOL = "protocol"
    INTERNAL = "internal"
    APP = "app"
    ABSENT = "absent"


class ModelSpec(Strict):
    """Which model is trained: public constants, equal for all nodes.

    Attributes:
        backbone: reference, as ``common.backbones.controls.load_reference`` reads it.
        backbone_digest: SHA-256 the node's copy must have.
        cut: name of the last frozen stage.
        head: kind of head, see ``common.heads``.
        hidden: width of an MLP head.
        classes: the label names, in the order of the logits.
        task: what is learnt, see ``common.tasks``.
        train: which parameters of the stages above the cut are trained by the head ``upper``.
        precision: that features are computed in; the server resolves ``"auto"``, and no node chooses otherwise.
    """

    backbone: str = Field(max_length=1024, pattern=r"^[^\x00-\x1f]*$")  # it ends up in logs
    backbone_digest: str = Field(pattern=r"^[0-9a-f]{64}$")
    cut: str = Field(max_length=256, pattern=r"^[^\x00-\x1f]*$")
    head: str = Field(max_length=64, pattern=r"^[^\x00-\x1f]*$")
    hidden: int = Field(ge=1, le=MOST_HIDDEN)
    classes: tuple[str, ...] = Field(min_length=1)
    task: TaskName = "classification"
    train: Literal["all", "biases", "adapters"] = "all"
    precision: Literal["float32", "bfloat16"] = "float32"

    @property
    def finished(self) -> ModelSpec:
        """The model that a run ends with: the server solves the sums of some heads for a linear one."""
        return self.model_copy(update={"head": "linear"}) if self.head in SOLVED_HEADS else self


@dataclass(frozen=True)
class Offer:
    """What the server proposes before the first round: the model and the privacy terms."""

    run_id: str
    model: ModelSpec
    terms: PrivacyTerms


@dataclass(frozen=True)
class TrainTask:
    """One round's work for one node.

    Attributes:
        offer: the run's model and privacy terms, as accepted.
        round: 1-based.
        head: the global head, name to float32 tensor.
        learning_rate: of the local steps.
        proximal_mu: weight of FedProx's pull towards the global head; 0 without.
    """

    offer: Offer
    round: int
    head: dict[str, Tensor]
    learning_rate: float
    proximal_mu: float = 0.0


@dataclass(frozen=True)
class SumTask:
    """One stage of a round in which the nodes' gradients are summed by secure aggregation.

    Attributes:
        offer: the run's model and privacy terms, as accepted.
        round: 1-based.
        stage: of the round.
        request: the protocol's, see ``common.secagg.messages``.
        head: the global head; empty but at the stage ``VECTOR``.
    """

    offer: Offer
    round: int
    stage: Stage
    request: bytes
    head: dict[str, Tensor]


@dataclass(frozen=True)
class EvaluateTask:
    """Ask a node how well a head does on its own records; its metrics policy decides."""

    offer: Offer
    head: dict[str, Tensor]


@dataclass(frozen=True)
class Hello:
    """A node's answer to an offer that it accepts.

    Attributes:
        name: of the node.
        declared_size: number of units (records, or patients), a public constant that the operator declares.
    """

    name: str
    declared_size: int


@dataclass(frozen=True)
class Update:
    """What a node releases after a round: the global head after its own private steps.

    Attributes:
        head: name to float32 tensor, or to an array in a SuperNode; noise is already in it, so anybody may see it.
    """

    head: dict[str, Tensor]


@dataclass(frozen=True)
class Metrics:
    """What a node's metrics policy lets out."""

    accuracy: float


@dataclass(frozen=True)
class Statistics:
    """What a node releases of a candidate backbone, see ``common.noised_moments``.

    Attributes:
        values: shape (P,), float64; noise is already in it.
    """

    values: NDArray[np.float64]


@dataclass(frozen=True)
class SumAnswer:
    """A node's reply to a stage of a sum.

    Attributes:
        data: one of the protocol's replies, see ``common.secagg.messages``.
    """

    data: bytes


@dataclass(frozen=True)
class Holding:
    """How far a node is with a backbone that is sent to it.

    Attributes:
        digest: of the backbone.
        received: bytes that it has, from the first; all of them once the backbone is checked and approved.
    """

    digest: str
    received: int


@dataclass(frozen=True)
class Refusal:
    """A node's answer when it does not do what it was asked."""

    reason: Reason


Reply = Hello | Update | Metrics | Statistics | SumAnswer | Holding | Refusal

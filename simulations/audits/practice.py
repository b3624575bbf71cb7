"""What is audited: how a node does its private work, and a head with records to see it at work.

The shipped way is ``SHIPPED``. Tests put deliberately broken copies in its place, so that one audit runs over both.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from client.ledger import Ledger, Reservation, Spend
from client.node import Records
from client.summing import noised_sum
from client.training import private_update, train_round
from common.backbones.backbone import Backbone
from common.data.local import LocalData
from common.features import extract
from common.heads import head_arrays, load_arrays
from common.messages import Offer, TrainTask, Update
from common.privacy.noise import Randomness
from common.privacy.plan import PrivacyPlan
from simulations.audits.probes import PatientSampling, Sampling, Who, sampling_of

NO_CAP = 1e12  # an epsilon that no test of a node reaches
PATIENT_SIZES = (1, 2, 5, 12)  # records of the patients that a replay makes up

PrivateSteps = Callable[[nn.Module, TrainTask, Records, PrivacyPlan, tuple[Randomness, Randomness]], dict[str, Tensor]]


@dataclass(frozen=True)
class Practice:
    """How a node does its private work.

    Attributes:
        update: the private steps of one round, see ``client.training.private_update``.
        train: one whole round, from a task to what leaves the node (``train_round``): it takes a ``TrainTask`` and a
            ``client.node.Node``.
        spent: epsilon that the node's own books show after so many rounds of a plan.
        features: of records, from a backbone, the name of its last frozen stage and the records.
        share: what a node masks in a round of sums, see ``client.summing.noised_sum``: it takes a head, a ``SumTask``,
            a ``client.node.Node`` and the node's plan.
    """

    update: PrivateSteps
    train: Callable[..., Update]
    spent: Callable[[PrivacyPlan, int], float]
    features: Callable[[Backbone, str, LocalData], NDArray[np.float32]]
    share: Callable[..., NDArray[np.int64]] = noised_sum


@dataclass(frozen=True)
class Specimen:
    """A head and records.

    Attributes:
        name: of the kind of head.
        head: with the parameters that a server would send; they are put back after every use.
        offer: model and privacy terms.
        features: shape (n, D), float32, n >= 2.
        targets: of the n records, as the task's loss takes them; at least two differ.
        declared_size: number of records that the node declares.
    """

    name: str
    head: nn.Module
    offer: Offer
    features: Tensor
    targets: Tensor
    declared_size: int

    @property
    def plan(self) -> PrivacyPlan:
        """The node's plan."""
        return self.offer.terms.for_node(self.declared_size)

    def with_terms(self, **changes: float) -> Specimen:
        """The same with other privacy terms."""
        return replace(self, offer=replace(self.offer, terms=replace(self.offer.terms, **changes)))  # type: ignore[arg-type]  # mypy cannot see which field a key names


@dataclass(frozen=True)
class Company:
    """Records of a data set, each with a number that stays its own in every data set that it is in.

    Attributes:
        features: shape (n, D).
        targets: of the n records.
        numbers: shape (n,), int64.
        patients: of each record the number of its patient, which stays the patient's own; None where records are the
            unit.
    """

    features: Tensor
    targets: Tensor
    numbers: NDArray[np.int64]
    patients: NDArray[np.int64] | None = None

    @property
    def records(self) -> Records:
        """As a node holds them."""
        own = None if self.patients is None else np.unique(self.patients, return_inverse=True)[1]
        return Records(self.features.numpy(), np.arange(len(self.features)), self.targets, own)

    @property
    def units(self) -> NDArray[np.int64]:
        """Of each record the number of its unit."""
        return self.numbers if self.patients is None else self.patients

    @property
    def nobody(self) -> Company:
        """The same data set without a unit."""
        return self.take(np.zeros(len(self.numbers), dtype=bool))

    def drawn(self, flags: NDArray[np.bool_]) -> Company:
        """The units whose flags are set, shape (units,), in the order of their numbers."""
        return self.take(flags[np.unique(self.units, return_inverse=True)[1]])

    @property
    def key(self) -> bytes:
        """What tells two of them apart."""
        return self.features.numpy().tobytes() + self.targets.numpy().tobytes() + self.numbers.tobytes()

    def sampling(self, who: Who = "sampled", seed: int = 0) -> Sampling | PatientSampling:
        """Streams of sampling that stay a unit's own in every data set."""
        return sampling_of(self.numbers, self.patients, who, seed)

    def take(self, rows: NDArray[np.int64] | NDArray[np.bool_]) -> Company:
        """Some of them."""
        chosen = torch.from_numpy(rows)
        patients = None if self.patients is None else self.patients[rows]
        return Company(self.features[chosen], self.targets[chosen], self.numbers[rows], patients)

    def joined_by(self, features: Tensor, target: Tensor) -> Company:
        """With one record more at the end, which has a number that nobody has."""
        return self.joined_by_unit(features[None], target[None])

    def joined_by_unit(self, features: Tensor, targets: Tensor) -> Company:
        """With one unit more at the end, all of these records, which have numbers that nobody has."""
        numbers = self.numbers.max(initial=-1) + 1_000_003 + np.arange(len(targets))
        patients = self.patients
        if patients is not None:
            patients = np.append(patients, np.full(len(targets), patients.max(initial=-1) + 1_000_003))
        return Company(
            torch.cat([self.features, features]),
            torch.cat([self.targets, targets]),
            np.concatenate([self.numbers, numbers]),
            patients,
        )


def company(specimen: Specimen) -> Company:
    """All records of a specimen; for the unit patient dealt out to patients of ``PATIENT_SIZES``, over and over."""
    if specimen.offer.terms.unit == "record":
        return Company(specimen.features, specimen.targets, np.arange(len(specimen.features), dtype=np.int64))
    patients = np.repeat(np.arange(len(PATIENT_SIZES)), PATIENT_SIZES)
    rows = torch.arange(len(patients)) % len(specimen.features)
    return Company(specimen.features[rows], specimen.targets[rows], np.arange(len(patients)), patients)


def learning_rate(plan: PrivacyPlan) -> float:
    """One at which a record moves the head by a thousand: what was there before then costs no digits."""
    return 1e3 * plan.expected_batch / plan.terms.clipping_norm


def task_for(specimen: Specimen, round_: int = 1) -> TrainTask:
    """The task of a round, from the specimen's head."""
    return TrainTask(specimen.offer, round_, head_arrays(specimen.head), learning_rate(specimen.plan))


def released_sum(released: dict[str, Tensor], task: TrainTask, plan: PrivacyPlan) -> NDArray[np.float64]:
    """What a release tells of the noisy sum of clipped gradients: shape (P,), in the sum's own units.

    Args:
        released: the head after the round.
        task: of the round.
        plan: whose divisor is public.
    """
    parts = [(task.head[name].double() - released[name].double()).flatten().numpy() for name in sorted(task.head)]
    return np.asarray(np.concatenate(parts) * plan.expected_batch / task.learning_rate)


def ledger_epsilon(plan: PrivacyPlan, rounds: int) -> float:
    """Epsilon in a real ledger after so many rounds of a plan, each paid for and committed."""
    delta = plan.terms.delta
    with (
        tempfile.TemporaryDirectory() as folder,
        Ledger.open(Path(folder) / "books.sqlite", "audit", delta=delta, epsilon_cap=NO_CAP, durable=False) as ledger,
    ):
        for round_ in range(1, rounds + 1):
            reservation = ledger.reserve(Spend("audit", round_, "0" * 64), plan)
            assert isinstance(reservation, Reservation)
            ledger.commit(reservation, b"reply")
        return ledger.statement().epsilon


def private_steps(
    practice: Practice, specimen: Specimen, task: TrainTask, records: Records, randomness: tuple[Randomness, Randomness]
) -> NDArray[np.float64]:
    """Run a round's private steps and read the noisy sum from what would be released, shape (P,)."""
    load_arrays(specimen.head, task.head)
    released = practice.update(specimen.head, task, records, specimen.plan, randomness)
    load_arrays(specimen.head, task.head)
    return released_sum(released, task, specimen.plan)


SHIPPED = Practice(private_update, train_round, ledger_epsilon, extract)

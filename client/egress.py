"""The egress gate: the only way out of a node.

A reply is one of the types of ``common.messages.Reply``, and each holds nothing but what is listed here: no loss, no
gradient norm, no number of examples, no text of an exception. What is not on the list does not leave.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, TypeGuard

import numpy as np
from numpy.typing import NDArray

from common.backbones.parcel import Contents
from common.errors import BackboneMismatchError, BudgetSpentError, ConfigError, PrivacyError, ProtocolError
from common.lockstep import SMALL
from common.messages import Hello, Holding, Metrics, Reason, Refusal, Statistics, SumAnswer, Update
from common.secagg.messages import Stage, check_reply
from common.secagg.session import SumTerms

if TYPE_CHECKING:
    from torch import Tensor

Values = NDArray[np.float32]


def release_hello(name: str, declared_size: int) -> Hello:
    """Let the node's name and its declared size out: two public constants that its operator chose."""
    return Hello(str(name), int(declared_size))


def release_update(head: Mapping[str, Tensor], sent: Mapping[str, Tensor]) -> Update:
    """Let a noised head out, if it has the shape of the one that came in.

    Args:
        head: the node's head after its private steps, name to float32 tensor.
        sent: the global head that the server sent.

    Raises:
        PrivacyError: anything but finite float32 tensors of the same names and shapes; nothing is released.
    """
    leaving = Leaving.like(head, sent)
    return release_shaped(leaving.head, leaving.shapes)


def release_shaped(head: Mapping[str, Tensor | Values], shapes: Mapping[str, tuple[int, ...]]) -> Update:
    """Let a noised head out, as ``release_update``, by the names and shapes of the head that came in.

    The node's SuperNode, which never imports torch, brings arrays in place of tensors.
    """
    values = {name: head[name] for name in head} if isinstance(head, Mapping) else None
    if values is None or not all(_is_array(value) or _is_tensor(value) for value in values.values()):
        raise PrivacyError("expected an update of named tensors, got something else; nothing was released")
    copies = {name: _finite_copy(value) for name, value in values.items()}
    if any(copied is None for copied in copies.values()):
        raise _not_finite()
    if {name: tuple(copied.shape) for name, copied in copies.items()} != dict(shapes):
        raise PrivacyError("expected an update shaped as the head that was sent, got another; nothing was released")
    return Update({name: copies[name] for name in shapes})


@dataclass(frozen=True)
class Leaving:
    """A noised head before the gate.

    Attributes:
        head: whatever a node's private steps made.
        shapes: of the global head that the server sent, by name.
    """

    head: Mapping[str, Tensor | Values]
    shapes: Mapping[str, tuple[int, ...]]

    @classmethod
    def like(cls, head: Mapping[str, Tensor | Values], sent: Mapping[str, Tensor]) -> Leaving:
        """A head that must have the names and shapes of the one that was sent."""
        return cls(head, {name: tuple(value.shape) for name, value in sent.items()})


def release_updates(leaving: Sequence[Leaving]) -> list[Update]:
    """Let noised heads out, each as ``release_shaped`` does; small ones of one shape are looked at together.

    Raises:
        PrivacyError: one may not leave, and none is released; ask for each by itself.
    """
    small = len(leaving) > 1 and sum(map(math.prod, leaving[0].shapes.values())) <= SMALL
    heads = [head for each in leaving if small and (head := _tensors(each, leaving[0].shapes)) is not None]
    if len(heads) < len(leaving):
        return [release_shaped(each.head, each.shapes) for each in leaving]
    from torch import from_numpy

    copies = [{name: value.detach().numpy().copy() for name, value in head.items()} for head in heads]
    if not _is_finite(np.concatenate([value.reshape(-1) for copied in copies for value in copied.values()])):
        raise _not_finite()
    return [Update({name: from_numpy(value) for name, value in copied.items()}) for copied in copies]


def _tensors(leaving: Leaving, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Tensor] | None:
    """The head in its order, where it is a plain dict of plain float32 tensors of these shapes, on the processor."""
    from torch import Tensor, float32, strided

    head = leaving.head
    if type(head) is not dict or [*leaving.shapes.items()] != [*shapes.items()] or head.keys() != shapes.keys():
        return None
    found: dict[str, Tensor] = {}
    for name, shape in shapes.items():
        value = head[name]
        if type(value) is not Tensor or value.dtype is not float32 or value.layout is not strided or not value.is_cpu:
            return None
        if value.shape != shape:
            return None
        found[name] = value
    return found


def _not_finite() -> PrivacyError:
    return PrivacyError("expected an update of finite float32 values, got others; nothing was released")


def _is_array(value: object) -> TypeGuard[Values]:
    return type(value) is np.ndarray


def _is_tensor(value: object) -> TypeGuard[Tensor]:
    torch = sys.modules.get("torch")  # without it nobody can have made one
    return torch is not None and isinstance(value, torch.Tensor)


def _finite_copy(value: Tensor | Values) -> Any:
    """A copy, of the kind that came; None where not all of it is finite float32.

    The copy is what is looked at. For a small one NumPy takes less than half of the time that torch does.
    """
    if isinstance(value, np.ndarray):
        copied = value.copy()
        return copied if _is_finite(copied) else None
    from torch import float32, from_numpy

    if value.dtype != float32:
        return None
    copied = value.detach().cpu().numpy().copy()
    return from_numpy(copied) if _is_finite(copied) else None


def _is_finite(values: Values) -> bool:
    return values.dtype == np.float32 and bool(np.isfinite(values).all())


def release_statistics(values: NDArray[np.float64], size: int) -> Statistics:
    """Let the noised statistics of a candidate backbone out, see ``common.noised_moments``.

    Args:
        values: with their noise.
        size: how many numbers they are, by public constants.

    Raises:
        PrivacyError: anything but so many finite float64 numbers; nothing is released.
    """
    typed = isinstance(values, np.ndarray) and values.dtype == np.float64 and values.shape == (size,)
    if not typed or not bool(np.isfinite(values).all()):
        raise PrivacyError(f"expected {size} finite float64 statistics, got others; nothing was released")
    return Statistics(values.copy())


def release_sum(data: bytes, stage: Stage, terms: SumTerms) -> SumAnswer:
    """Let a reply of secure aggregation out: keys, sealed shares, a masked vector, a signature, or revealed shares.

    Args:
        data: as ``client.secagg_node`` made it.
        stage: that was asked for.
        terms: of the sum; only a masked vector depends on them.

    Raises:
        PrivacyError: anything but a reply of that stage; nothing is released.
    """
    if type(data) is not bytes:
        raise PrivacyError("expected the bytes of a reply of secure aggregation, got others; nothing was released")
    check_reply(stage, data, terms)
    return SumAnswer(data)


def release_holding(received: int, contents: Contents) -> Holding:
    """Let out how far this node is with a backbone that the server sends: a count of the server's own pieces.

    Args:
        received: bytes that are here.
        contents: of the backbone, as the server announced it.

    Raises:
        PrivacyError: anything but whole pieces, or all of it; nothing is released.
    """
    if type(received) is not int or not contents.may_be_held(received):
        raise PrivacyError("expected a count of the pieces that are here, got something else; nothing was released")
    return Holding(contents.digest, received)


def release_metrics(accuracy: float, policy: Literal["none", "exact"], *, simulated: bool) -> Metrics:
    """Let an exact metric out: in a simulation whose configuration asks for it, never on a real node.

    Raises:
        PrivacyError: the metrics policy is ``"none"``, or the node is real.
    """
    if policy != "exact" or not simulated:
        raise PrivacyError("this node's metrics policy lets no exact metric out; set node_metrics in a simulation")
    if not isinstance(accuracy, int | float) or not 0 <= accuracy <= 1:
        raise PrivacyError("expected an accuracy from 0 to 1, got something else; nothing was released")
    return Metrics(float(accuracy))


def refuse(error: Exception) -> Refusal:
    """Turn what went wrong into a word of the fixed vocabulary; its text stays here."""
    if isinstance(error, BudgetSpentError):
        return Refusal(Reason.BUDGET)
    if isinstance(error, PrivacyError):
        return Refusal(Reason.POLICY)
    if isinstance(error, BackboneMismatchError):
        return Refusal(Reason.BACKBONE)
    if isinstance(error, ProtocolError):
        return Refusal(Reason.PROTOCOL)
    if isinstance(error, ConfigError):
        return Refusal(Reason.DATA)
    return Refusal(Reason.INTERNAL)

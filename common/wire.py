"""Flower messages <-> our types: the one module in common that knows Flower.

Heads are tensors to those who train or average them. A node's SuperNode, which only looks at them and passes them on,
reads and writes arrays (``read_values``), and never imports torch.
"""

from __future__ import annotations

import io
import json
import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import asdict
from functools import lru_cache
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeVar

import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, MessageType, MetricRecord, RecordDict
from flwr.common.constant import ErrorCode, SType
from numpy.typing import NDArray
from pydantic import Field, ValidationError

from common.backbones.package_facts import FACTS
from common.backbones.parcel import MOST_FACTS_BYTES, Contents, Part
from common.errors import ProtocolError
from common.messages import (
    EvaluateTask,
    Hello,
    Holding,
    Metrics,
    ModelSpec,
    Offer,
    Reason,
    Refusal,
    Reply,
    Statistics,
    SumAnswer,
    SumTask,
    TrainTask,
    Update,
)
from common.noised_moments import Sketch, StatisticsTask
from common.privacy.plan import PrivacyTerms
from common.secagg.messages import Stage
from common.strict import Strict

if TYPE_CHECKING:
    from torch import Tensor

Number = TypeVar("Number", int, float)
Record = TypeVar("Record", ArrayRecord, ConfigRecord, MetricRecord)
Filled = TypeVar("Filled", ArrayRecord, RecordDict)
Values = NDArray[np.float32]

LARGEST = float(np.finfo(np.float32).max)
ARRAYS = "arrays"  # Flower's strategies look for these names
CONFIG = "config"
TASK = "task"
ROUND = "server-round"
STATISTICS = "statistics"
FLOWERS = {
    ErrorCode.INVALID_FAB: Reason.APP,
    ErrorCode.NODE_UNAVAILABLE: Reason.ABSENT,
    ErrorCode.MESSAGE_UNAVAILABLE: Reason.ABSENT,
    ErrorCode.REPLY_MESSAGE_UNAVAILABLE: Reason.ABSENT,
}
PROXIMAL_MU = "proximal-mu"
HELLO_ACTION = "hello"
QUERY_HELLO = f"query.{HELLO_ACTION}"
STATISTICS_ACTION = "statistics"
QUERY_STATISTICS = f"query.{STATISTICS_ACTION}"
SUM_ACTION = "sum"
TRAIN_SUM = f"{MessageType.TRAIN}.{SUM_ACTION}"
STAGE, REQUEST, SUMMED = "stage", "request", "summed"
BACKBONE_ACTION = "backbone"
QUERY_BACKBONE = f"query.{BACKBONE_ACTION}"
DATA = "data"
MOST_FILES = 64


_FileName = Annotated[str, Field(pattern=r"^[0-9A-Za-z_][0-9A-Za-z._ -]{0,127}$")]
_FileSize = Annotated[int, Field(ge=0, lt=2**50)]


class _Terms(Strict):
    run_id: str = Field(pattern=r"^[0-9A-Za-z._-]{1,128}$")  # it ends up in ledgers and reports
    model: ModelSpec
    terms: dict[str, str | int | float]

    def offer(self) -> Offer:
        return Offer(self.run_id, self.model, PrivacyTerms.from_dict(self.terms))


class _Offer(_Terms):
    learning_rate: float | None = Field(default=None, gt=0, allow_inf_nan=False)


class _Sketch(Strict):
    seed: int = Field(ge=0, lt=2**63)
    width: int


class _Statistics(_Terms):
    candidate: int
    sketch: _Sketch


class _Part(Strict):
    digest: str = Field(pattern=r"^[0-9a-f]{64}$")
    files: list[tuple[_FileName, _FileSize]] = Field(min_length=2, max_length=MOST_FILES)
    offset: int = Field(ge=0, lt=2**50)

    def contents(self) -> Contents:
        return Contents(self.digest, tuple(self.files))


def encode_task(offer: Offer, learning_rate: float | None = None) -> ConfigRecord:
    """Put an offer, and the learning rate of a training task, into the config record that every message carries."""
    body = {
        "run_id": offer.run_id,
        "model": offer.model.model_dump(),
        "terms": offer.terms.to_dict(),
        "learning_rate": learning_rate,
    }
    return ConfigRecord({TASK: json.dumps(body)})


def encode_statistics_task(task: StatisticsTask) -> ConfigRecord:
    """Put a question about a candidate backbone into the config record of a message."""
    body = {
        "run_id": task.offer.run_id,
        "model": task.offer.model.model_dump(),
        "terms": task.offer.terms.to_dict(),
        "candidate": task.candidate,
        "sketch": asdict(task.sketch),
    }
    return ConfigRecord({TASK: json.dumps(body)})


def encode_sum_task(task: SumTask) -> RecordDict:
    """Put a stage of a sum into the content of a message."""
    config = encode_task(task.offer)
    config[STAGE], config[ROUND] = task.stage.value, task.round
    content = RecordDict({CONFIG: config, REQUEST: _encode_bytes(task.request)})
    if task.head:
        content[ARRAYS] = encode_head(task.head)
    return content


def encode_part(part: Part) -> ConfigRecord:
    """Put a piece of a backbone into the config record of a message."""
    body = {"digest": part.contents.digest, "files": part.contents.files, "offset": part.offset}
    return ConfigRecord({TASK: json.dumps(body), DATA: part.data})


def encode_head(head: Mapping[str, Tensor | Values]) -> ArrayRecord:
    """Put a head into an array record, float32, in the head's own order."""
    arrays = (
        value if isinstance(value, np.ndarray) else value.detach().cpu().float().numpy() for value in head.values()
    )
    return filled(ArrayRecord(), dict(zip(head, map(_array, arrays), strict=True)))


def decode_head(record: ArrayRecord) -> dict[str, Tensor]:
    """Take a head out of an array record.

    Raises:
        ProtocolError: an array cannot be read, is not a float, or holds a value that is not finite.
    """
    return decode_arrays((name, array.data) for name, array in record.items())


def decode_arrays(arrays: Iterable[tuple[str, bytes]]) -> dict[str, Tensor]:
    """Take a head out of named bytes in NumPy's own format; errors as in ``decode_head``."""
    import torch

    return {name: torch.from_numpy(values) for name, values in _values(arrays)}


def read_values(record: ArrayRecord) -> dict[str, Values]:
    """Take a head out of an array record, without torch; errors as in ``decode_head``."""
    return dict(_values((name, array.data) for name, array in record.items()))


def _values(arrays: Iterable[tuple[str, bytes]]) -> Iterator[tuple[str, Values]]:
    for name, data in arrays:
        try:
            values = _read_npy(data)
        except Exception as error:
            raise ProtocolError(f"the array {name!r} of a message cannot be read; the sender must be mended") from error
        known = values.dtype in (np.float32, np.float64)
        if not known or not (np.abs(values) <= LARGEST).all():  # a NaN is not; a larger float64 would become infinite
            raise ProtocolError(f"expected finite floats in the array {name!r}, got something else; stop the sender")
        yield name, np.array(values, dtype=np.float32)


class ReadArray(Array):
    """Flower's array, read by our own reader, which parses the header of a shape once; Flower's does it each time.

    It is for a strategy's eyes, and never sent: Flower writes the name of the class into what it sends.
    """

    @classmethod
    def of(cls, array: Array) -> ReadArray:
        """The same array."""
        read = cls.__new__(cls)
        read.__dict__.update(array.__dict__)
        return read

    def numpy(self) -> NDArray[Any]:
        """The values, read-only."""
        return _read_npy(self.data)


def head_shapes(message: Message) -> dict[str, tuple[int, ...]]:
    """The shapes of the head in a message as it declares them, without reading a value.

    Raises:
        ProtocolError: there is no head.
    """
    return {name: tuple(array.shape) for name, array in _arrays(message).items()}


def decode_offer(message: Message) -> Offer:
    """Read the offer that a message carries.

    Raises:
        ProtocolError: it is missing or malformed.
        PrivacyError: its privacy terms are not a promise that can be kept.
    """
    return _parse(message)[0]


def decode_train_task(message: Message) -> TrainTask:
    """Read a training message of the server.

    Raises:
        ProtocolError: it is malformed.
        PrivacyError: its privacy terms are not a promise that can be kept.
    """
    offer, learning_rate = _parse(message)
    config = record(message.content, CONFIG, ConfigRecord)
    if learning_rate is None:
        raise ProtocolError("expected a learning rate in the training message, got none; update the server")
    return TrainTask(
        offer=offer,
        round=_number(config, ROUND, int),
        head=_sent_head(_arrays(message)),
        learning_rate=learning_rate,
        proximal_mu=_number(config, PROXIMAL_MU, float) if PROXIMAL_MU in config else 0.0,
    )


def decode_evaluate_task(message: Message) -> EvaluateTask:
    """Read an evaluation message of the server; errors as in ``decode_train_task``."""
    return EvaluateTask(offer=_parse(message)[0], head=decode_head(_arrays(message)))


def decode_statistics_task(message: Message) -> StatisticsTask:
    """Read a question about a candidate backbone; errors as in ``decode_train_task``, where it offers no learning."""
    try:
        parsed = _Statistics.model_validate_json(str(record(message.content, CONFIG, ConfigRecord)[TASK]))
    except (KeyError, ValidationError) as error:
        raise _no_task() from error
    return StatisticsTask(parsed.offer(), parsed.candidate, Sketch(parsed.sketch.seed, parsed.sketch.width))


def decode_sum_task(message: Message) -> SumTask:
    """Read a stage of a sum; errors as in ``decode_train_task``."""
    stage = decode_stage(message)
    return SumTask(
        offer=_parse(message)[0],
        round=_number(record(message.content, CONFIG, ConfigRecord), ROUND, int),
        stage=stage,
        request=_request(message),
        head=decode_head(_arrays(message)) if stage is Stage.VECTOR else {},
    )


def decode_stage(message: Message) -> Stage:
    """Which stage of a sum a message asks for; errors as in ``decode_offer``."""
    try:
        return Stage(str(record(message.content, CONFIG, ConfigRecord)[STAGE]))
    except (KeyError, ValueError) as error:
        raise _no_task() from error


def decode_part(message: Message) -> Part:
    """Read a piece of a backbone.

    Raises:
        ProtocolError: it is malformed, no whole piece, or lists a file twice, or facts too large to be some.
    """
    try:
        config = record(message.content, CONFIG, ConfigRecord)
        parsed, data = _Part.model_validate_json(str(config[TASK])), config[DATA]
    except (KeyError, ValidationError) as error:
        raise _no_part() from error
    part = Part(parsed.contents(), parsed.offset, data) if isinstance(data, bytes) else None
    if part is None or not part.is_one():
        raise _no_part()
    names = [name for name, _ in parsed.files]
    if len(set(names)) < len(names) or names[0] != FACTS or parsed.files[0][1] > MOST_FACTS_BYTES:
        raise _no_part()
    return part


def encode_reply(reply: Reply, to: Message) -> Message:
    """Turn what the egress gate let through into a Flower message."""
    match reply:
        case Hello(name=name, declared_size=size):
            content = RecordDict({"hello": ConfigRecord({"name": name, "declared-size": size})})
        case Update(head=head):
            content = filled(RecordDict(), {ARRAYS: encode_head(head)})
        case Metrics(accuracy=accuracy):
            content = RecordDict({"metrics": MetricRecord({"accuracy": accuracy})})
        case Statistics(values=values):
            content = RecordDict({STATISTICS: ArrayRecord({STATISTICS: Array(values)})})
        case SumAnswer(data=data):
            content = RecordDict({SUMMED: _encode_bytes(data)})
        case Holding(digest=digest, received=received):
            content = RecordDict({"holding": ConfigRecord({"digest": digest, "received": received})})
        case Refusal(reason=reason):
            content = RecordDict({"refusal": ConfigRecord({"reason": reason.value})})
    return Message(content, reply_to=to)


def decode_reply(message: Message, head: Callable[[ArrayRecord], Mapping[str, Any]] | None = None) -> Reply:
    """Read a node's reply.

    Args:
        message: the reply.
        head: reads an update's head, ``decode_head`` unless ``read_values`` is given.

    Raises:
        ProtocolError: it is none of the replies that a node may send.
    """
    if message.has_error():
        return Refusal(FLOWERS.get(message.error.code, Reason.INTERNAL))
    content = message.content
    try:
        if "refusal" in content:
            return Refusal(Reason(str(record(content, "refusal", ConfigRecord)["reason"])))
        if "hello" in content:
            hello = record(content, "hello", ConfigRecord)
            return Hello(str(hello["name"]), _number(hello, "declared-size", int))
        if "holding" in content:
            holding = record(content, "holding", ConfigRecord)
            return Holding(str(holding["digest"]), _number(holding, "received", int))
        if "metrics" in content:
            return Metrics(_number(record(content, "metrics", MetricRecord), "accuracy", float))
        if STATISTICS in content:
            return Statistics(_decode_statistics(record(content, STATISTICS, ArrayRecord)))
        if SUMMED in content:
            return SumAnswer(_decode_bytes(record(content, SUMMED, ArrayRecord)))
        return Update(dict((head or decode_head)(record(content, ARRAYS, ArrayRecord))))
    except ProtocolError:
        raise
    except Exception as error:  # a hostile node may write anything, and NumPy is not made for that
        raise ProtocolError(
            "expected an update, metrics, a hello or a refusal from a node, got another reply"
        ) from error


def record(content: RecordDict, name: str, kind: type[Record]) -> Record:
    """One record of a message. Flower's own views by kind copy all records of that kind, checks included.

    Raises:
        KeyError: there is none of this name and kind.
    """
    found = content[name]
    if not isinstance(found, kind):
        raise KeyError(name)
    return found


def filled(fresh: Filled, items: Mapping[str, Any]) -> Filled:
    """A new record with these items in it, as they are.

    Flower's own way looks at the type of each, which takes longer than writing a small head, and copies arrays.
    """
    fresh.__dict__["_data"].update(items)
    return fresh


def _sent_head(record: ArrayRecord) -> dict[str, Tensor]:
    """The head in a server's message: the same bytes, which all nodes of a process get, are decoded once."""
    return dict(_decoded(tuple((name, array.data) for name, array in record.items())))


@lru_cache(maxsize=2)
def _decoded(arrays: tuple[tuple[str, bytes], ...]) -> Mapping[str, Tensor]:
    return decode_arrays(arrays)


def _parse(message: Message) -> tuple[Offer, float | None]:
    try:
        return _parse_text(str(record(message.content, CONFIG, ConfigRecord)[TASK]))
    except (KeyError, ValidationError) as error:
        raise _no_task() from error


def _no_part() -> ProtocolError:
    return ProtocolError("expected a piece of a backbone in the server's message, got something else")


def _no_task() -> ProtocolError:
    return ProtocolError("expected a fedgraft task in the server's message, got something else")


def _decode_statistics(arrays: ArrayRecord) -> NDArray[np.float64]:
    values = _read_npy(arrays[STATISTICS].data)
    if values.dtype != np.float64 or values.ndim != 1 or not np.isfinite(values).all():
        raise ValueError("not a vector of finite numbers")
    return np.array(values)


def _request(message: Message) -> bytes:
    try:
        return _decode_bytes(record(message.content, REQUEST, ArrayRecord))
    except Exception as error:
        raise _no_task() from error


def _encode_bytes(data: bytes) -> ArrayRecord:
    return ArrayRecord({SUMMED: Array(np.frombuffer(data, dtype=np.uint8))})


def _decode_bytes(arrays: ArrayRecord) -> bytes:
    values = _read_npy(arrays[SUMMED].data)
    if values.dtype != np.uint8 or values.ndim != 1:
        raise ValueError("not bytes")
    return values.tobytes()


def _array(values: NDArray[np.float32]) -> Array:
    """Flower's array of these values; the header of NumPy's format is written once, as heads come in few shapes.

    Its own way to make one finds out first what it was given, which takes longer than all the rest.
    """
    data = _written_header(values.shape) + values.tobytes()
    array = Array.__new__(Array)
    array.__dict__.update(dtype="float32", shape=values.shape, stype=SType.NUMPY, data=data)
    return array


@lru_cache(maxsize=256)
def _written_header(shape: tuple[int, ...]) -> bytes:
    file = io.BytesIO()
    header = {"descr": np.lib.format.dtype_to_descr(np.dtype(np.float32)), "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(file, header)
    return file.getvalue()


def _read_npy(data: bytes) -> NDArray[Any]:
    """Read an array in NumPy's own format, never an object; a header is parsed once, as heads come in few shapes."""
    start = 10 + int.from_bytes(data[8:10], "little")
    shape, order, dtype = _npy_header(data[:start])
    return np.frombuffer(data, dtype=dtype, offset=start).reshape(shape, order=order)


@lru_cache(maxsize=256)
def _npy_header(header: bytes) -> tuple[tuple[int, ...], Literal["C", "F"], np.dtype[Any]]:
    file = io.BytesIO(header)
    if np.lib.format.read_magic(file) != (1, 0):
        raise ValueError("expected version 1.0 of the format")
    shape, fortran_order, dtype = np.lib.format.read_array_header_1_0(file)
    if dtype.hasobject:
        raise ValueError("expected plain values, no objects")
    return shape, "F" if fortran_order else "C", dtype


@lru_cache(maxsize=64)
def _parse_text(text: str) -> tuple[Offer, float | None]:
    """Offer and learning rate: the same text in every round, so that the same frozen values serve."""
    parsed = _Offer.model_validate_json(text)
    return parsed.offer(), parsed.learning_rate


def _arrays(message: Message) -> ArrayRecord:
    try:
        return record(message.content, ARRAYS, ArrayRecord)
    except KeyError:
        raise ProtocolError("expected a head in the server's message, got none; update the server") from None


def _number(record: Mapping[str, object], key: str, kind: type[Number]) -> Number:
    value = record.get(key)
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise ProtocolError(f"expected a finite number as {key!r} of a message, got {type(value).__name__}")
    if kind is int and not isinstance(value, int):
        raise ProtocolError(f"expected a whole number as {key!r} of a message, got a fraction; update the sender")
    return kind(value)

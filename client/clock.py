"""How far this machine's clock is from the coordinator's, measured by which signed times the coordinator accepts.

A node signs the time with each call, and Flower's SuperLink refuses one that is 5 s or more ahead of its own clock, or
305 s or more behind it. The doctor asks with times that are shifted, finds the edge by halving, and knows the other
clock by it, to the length of a call. TLS and gRPC tell no time. The calls name no node, so that every one is refused,
for the one reason or the other; nothing is changed at the coordinator, and the key need not be registered.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

import grpc
from cryptography.hazmat.primitives.asymmetric import ec
from flwr.common.constant import (
    PUBLIC_KEY_HEADER,
    SIGNATURE_HEADER,
    SYSTEM_TIME_TOLERANCE,
    TIMESTAMP_HEADER,
    TIMESTAMP_TOLERANCE,
)
from flwr.proto.fleet_pb2 import PullMessagesRequest, PullMessagesResponse
from flwr.supercore.primitives.asymmetric import public_key_to_bytes, sign_message

from common.errors import FederationError
from common.privacy.keys import load_private

METHOD = "/flwr.proto.Fleet/PullMessages"
WINDOW_S = float(TIMESTAMP_TOLERANCE + 2 * SYSTEM_TIME_TOLERANCE)
FARTHEST_S = 3600.0
EXACT_S = 0.1
TIMEOUT_S = 10.0


@dataclass(frozen=True)
class Skew:
    """What was measured.

    Attributes:
        ahead_s: by how much this clock is ahead of the coordinator's; None where more than an hour lies between them.
        exact_to_s: how far that may be off.
        accepted: whether the coordinator accepts this clock's times.
    """

    ahead_s: float | None
    exact_to_s: float
    accepted: bool


def measure_skew(
    address: str, root_certificates: bytes, private_key: Path, now: Callable[[], datetime] = lambda: datetime.now(UTC)
) -> Skew:
    """Compare this machine's clock with the coordinator's.

    Args:
        address: of the coordinator, as in ``node.toml``.
        root_certificates: PEM.
        private_key: the node's.
        now: this machine's clock.

    Raises:
        FederationError: the coordinator cannot be reached, or answers otherwise than Flower 1.39.
    """
    with _asking(address, root_certificates, load_private(private_key), now) as accepts:
        began = time.monotonic()
        accepted = accepts(0.0)
        call_s = time.monotonic() - began  # the first one connects: an upper bound
        inside = 0.0 if accepted else _inside(accepts)
        if inside is None:
            return Skew(None, call_s, accepted)
        low, high = inside, inside + WINDOW_S
        while high - low > EXACT_S:
            middle = (low + high) / 2
            began = time.monotonic()
            low, high = (middle, high) if accepts(middle) else (low, middle)
            call_s = min(call_s, time.monotonic() - began)
    return Skew(SYSTEM_TIME_TOLERANCE - low, EXACT_S + call_s, accepted)


def signed(key: ec.EllipticCurvePrivateKey, moment: datetime) -> tuple[tuple[str, str | bytes], ...]:
    """What Flower's SuperNode says of itself with each call: its key, the time, and its signature of that."""
    stamp = moment.isoformat()
    return (
        (PUBLIC_KEY_HEADER, public_key_to_bytes(key.public_key())),
        (TIMESTAMP_HEADER, stamp),
        (SIGNATURE_HEADER, sign_message(key, stamp.encode("ascii"))),
    )


def _inside(accepts: Callable[[float], bool]) -> float | None:
    """A shift, in seconds, that is accepted; None within an hour."""
    steps = range(1, int(FARTHEST_S / TIMESTAMP_TOLERANCE) + 1)
    shifts = [sign * step * float(TIMESTAMP_TOLERANCE) for step in steps for sign in (1, -1)]
    return next((shift for shift in shifts if accepts(shift)), None)


@contextmanager
def _asking(
    address: str, root_certificates: bytes, key: ec.EllipticCurvePrivateKey, now: Callable[[], datetime]
) -> Iterator[Callable[[float], bool]]:
    """Whether the coordinator accepts a time that is shifted by so many seconds."""
    with grpc.secure_channel(address, grpc.ssl_channel_credentials(root_certificates)) as channel:
        call = channel.unary_unary(
            METHOD,
            request_serializer=PullMessagesRequest.SerializeToString,
            response_deserializer=PullMessagesResponse.FromString,
        )

        def accepts(shift_s: float) -> bool:
            try:
                call(
                    PullMessagesRequest(),
                    metadata=signed(key, now() + timedelta(seconds=shift_s)),
                    timeout=TIMEOUT_S,
                )
            except grpc.RpcError as error:
                said = {"Invalid timestamp": False, "Invalid node ID": True}
                if error.code() == grpc.StatusCode.UNAUTHENTICATED and error.details() in said:
                    return said[error.details()]
                raise FederationError(
                    f"expected {address} to answer about a time, it said {error.code().name}; is it a coordinator of "
                    "this release?"
                ) from error
            raise FederationError(f"expected {address} to refuse a call that names no node, it did not; report this")

        yield accepts

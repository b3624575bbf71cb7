"""Whether the coordinator knows this node's key.

The doctor asks to be let in, with a heartbeat that no coordinator accepts. Flower's SuperLink looks the key up first,
then at the heartbeat, so that the one refusal or the other tells; nothing is changed there.
"""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

import grpc
from flwr.proto.fleet_pb2 import ActivateNodeRequest, ActivateNodeResponse
from flwr.supercore.error import ApiErrorCode, FlowerError
from flwr.supercore.primitives.asymmetric import public_key_to_bytes

from client.clock import TIMEOUT_S, signed
from common.errors import FederationError
from common.privacy.keys import load_private

METHOD = "/flwr.proto.Fleet/ActivateNode"
NO_HEARTBEAT_S = 0.0
KNOWN: dict[int | None, bool] = {
    ApiErrorCode.FLEET_INVALID_HEARTBEAT_INTERVAL: True,
    ApiErrorCode.FLEET_NODE_ACTIVATION_FAILED: False,
}


def is_registered(address: str, root_certificates: bytes, private_key: Path) -> bool:
    """Whether the coordinator lets a node with this key in.

    Args:
        address: of the coordinator, as in ``node.toml``.
        root_certificates: PEM.
        private_key: the node's.

    Raises:
        FederationError: the coordinator cannot be reached, or answers otherwise than Flower 1.39.
    """
    key = load_private(private_key)
    request = ActivateNodeRequest(public_key=public_key_to_bytes(key.public_key()), heartbeat_interval=NO_HEARTBEAT_S)
    with grpc.secure_channel(address, grpc.ssl_channel_credentials(root_certificates)) as channel:
        call = channel.unary_unary(
            METHOD,
            request_serializer=ActivateNodeRequest.SerializeToString,
            response_deserializer=ActivateNodeResponse.FromString,
        )
        try:
            call(request, metadata=signed(key, datetime.now(UTC)), timeout=TIMEOUT_S)
        except grpc.RpcError as error:
            known = KNOWN.get(_code(error))
            if error.code() == grpc.StatusCode.UNAUTHENTICATED:
                raise FederationError(
                    f"expected {address} to accept the time that this node signs, it does not; set this machine's clock"
                ) from error
            if known is None:
                raise FederationError(
                    f"expected {address} to say whether it knows this node's key, it said {error.code().name}; is it a "
                    "coordinator of this release?"
                ) from error
            return known
    raise FederationError(f"expected {address} to refuse a call with no heartbeat, it did not; report this")


def _code(error: grpc.RpcError) -> int | None:
    told = FlowerError.from_json(error.details())
    return None if told is None else told.code

"""The node's connection to its coordinator, which notices that the other end is gone without a word.

A firewall that forgets a connection, or a coordinator whose machine loses power, sends nothing. Flower asks with no
deadline and sets no keep-alive, so that its SuperNode would wait for an answer for ever.
"""

from __future__ import annotations

import json
from collections.abc import Sequence

import grpc

SILENCE_MS, ANSWER_MS = 20_000, 30_000
OPTIONS = (
    ("grpc.keepalive_time_ms", SILENCE_MS),
    ("grpc.keepalive_timeout_ms", ANSWER_MS),
    ("grpc.http2.ping_timeout_ms", ANSWER_MS),  # what counts in today's gRPC; a minute otherwise
)
REPEATED = {
    "maxAttempts": 5,  # gRPC's most
    "initialBackoff": "1s",
    "maxBackoff": "10s",
    "backoffMultiplier": 2,
    "retryableStatusCodes": ["INTERNAL", "UNKNOWN"],  # deliberate refusals of Flower's have other codes
}
CALLS = (("grpc.service_config", json.dumps({"methodConfig": [{"name": [{}], "retryPolicy": REPEATED}]})),)


def create_channel(
    server_address: str,
    insecure: bool,
    root_certificates: bytes | None = None,
    max_message_length: int = -1,
    interceptors: Sequence[grpc.UnaryUnaryClientInterceptor] | None = None,
) -> grpc.Channel:
    """Flower's ``create_channel``, with TLS always, asking after ``SILENCE_MS`` whether the other end is there.

    A call that is answered with an error of the coordinator's own is repeated as ``REPEATED`` says.

    Raises:
        ValueError: TLS is not wanted, or there is no certificate.
    """
    if insecure or root_certificates is None:
        raise ValueError("a node talks to its coordinator over TLS, with the certificate of the join file")
    sizes = [
        ("grpc.max_send_message_length", max_message_length),
        ("grpc.max_receive_message_length", max_message_length),
    ]
    credentials = grpc.ssl_channel_credentials(root_certificates)
    channel = grpc.secure_channel(server_address, credentials, options=[*sizes, *OPTIONS, *CALLS])
    return grpc.intercept_channel(channel, *(interceptors or ()))

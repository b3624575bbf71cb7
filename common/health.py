"""Asks a SuperLink, a SuperNode or its apps on this machine whether they serve, as gRPC's health protocol defines it.

Usage: ``python -m common.health PORT``, for a container's health check; exit status 0 when it serves, else 1.
"""

from __future__ import annotations

import sys

import grpc
from grpc_health.v1.health_pb2 import HealthCheckRequest, HealthCheckResponse
from grpc_health.v1.health_pb2_grpc import HealthStub

TIMEOUT_S = 5.0


def serves(port: int, timeout_s: float = TIMEOUT_S) -> bool:
    """Whether a program on a port of the loopback answers that it serves."""
    with grpc.insecure_channel(f"127.0.0.1:{port}", options=[("grpc.enable_http_proxy", 0)]) as channel:
        try:
            answer = HealthStub(channel).Check(HealthCheckRequest(), timeout=timeout_s)
        except grpc.RpcError:
            return False
    return bool(answer.status == HealthCheckResponse.SERVING)


if __name__ == "__main__":
    sys.exit(0 if serves(int(sys.argv[1])) else 1)

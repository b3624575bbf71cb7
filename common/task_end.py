"""Tells Flower of an app that ended without saying so itself: killed, out of memory, or never started.

Flower would find out by its missing heartbeats, about a minute later; a node takes no other message until then.
"""

from __future__ import annotations

import logging
from pathlib import Path

import httpx
from flwr.common.constant import SubStatus
from flwr.proto.runtime_pb2 import PushTaskOutputRequest
from flwr.supercore.interceptors import RuntimeTokenHttpInterceptor, RuntimeVersionHttpInterceptor
from flwr.supercore.runtime import RuntimeHttpClient
from flwr.supercore.superexec.executor.types import ExecutionSpec

WORDS = "the app ended without an answer"

log = logging.getLogger("fedgraft.executor")


def tell_failed(spec: ExecutionSpec) -> bool:
    """Say that a task has failed; False where nobody wants to know: it was over already, or there is nobody.

    Args:
        spec: what the app was started with; its token speaks for this one task.
    """
    certificates = None if spec.insecure else Path(str(spec.root_certificates_path)).read_bytes()
    client = RuntimeHttpClient.from_server_address(
        server_address=spec.runtime_api_address,
        insecure=spec.insecure,
        root_certificates=certificates,
        interceptors=[
            RuntimeVersionHttpInterceptor(component_name="executor"),
            RuntimeTokenHttpInterceptor(spec.token),
        ],
    )
    try:
        client.PushTaskOutput(PushTaskOutputRequest(sub_status=SubStatus.FAILED, details=WORDS))
    except httpx.HTTPError:
        return False
    finally:
        client.close()
    log.warning("an app ended without an answer; its task is given up")
    return True

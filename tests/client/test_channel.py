"""A node's connection: over TLS, and not waiting for ever for an answer that nobody will send."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import grpc
import pytest

from client import channel
from server.certificates import make_certificates
from tests.faults.relay import Relay

PATIENCE_S = 40.0
SHORT = (  # gRPC asks no earlier
    ("grpc.keepalive_time_ms", 10_000),
    ("grpc.keepalive_timeout_ms", 1_000),
    ("grpc.http2.ping_timeout_ms", 1_000),
)


@pytest.mark.slow
def test_a_connection_that_was_forgotten_is_noticed_and_without_asking_is_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The control asks nothing of the silent other end, and still waits when its patience is over."""
    assert dict(channel.OPTIONS).keys() == dict(SHORT).keys()
    files = make_certificates(tmp_path, ["127.0.0.1"])
    server = grpc.server(ThreadPoolExecutor(4), handlers=(Echo(),))
    pairs = ((files.server_key.read_bytes(), files.server.read_bytes()),)
    port = server.add_secure_port("127.0.0.1:0", grpc.ssl_server_credentials(pairs))
    server.start()
    with Relay(port) as relay, ThreadPoolExecutor(2) as pool:
        calls = []
        for options in (SHORT, ()):
            monkeypatch.setattr(channel, "OPTIONS", options)
            made = channel.create_channel(f"127.0.0.1:{relay.port}", False, files.ca.read_bytes())
            calls.append((made, made.unary_unary("/echo/echo")))
            assert calls[-1][1](b"there?", timeout=30) == b"there?"
        time.sleep(2)  # gRPC's own pings, which measure the line, are answered by now
        relay.forget()
        waiting = [pool.submit(call, b"still there?", timeout=PATIENCE_S) for _, call in calls]
        codes = [one.exception().code() for one in waiting]  # type: ignore[union-attr]
        for made, _ in calls:
            made.close()
    server.stop(None)
    assert codes == [grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED]


def test_nothing_is_sent_in_the_clear() -> None:
    with pytest.raises(ValueError, match="over TLS"):
        channel.create_channel("127.0.0.1:1", True)


class Echo(grpc.GenericRpcHandler):  # type: ignore[misc]
    """Sends back what it gets."""

    def service(self, _: grpc.HandlerCallDetails) -> grpc.RpcMethodHandler:
        return grpc.unary_unary_rpc_method_handler(lambda request, _: request)

"""A node's connection: over TLS, and not waiting for ever for an answer that nobody will send."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import grpc
import pytest

from client import channel
from server.certificates import Certificates, make_certificates
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


@pytest.mark.parametrize("code", [grpc.StatusCode.INTERNAL, grpc.StatusCode.UNKNOWN])
def test_a_coordinator_that_fails_for_reasons_of_its_own_is_asked_again(
    code: grpc.StatusCode, failing: Failing, files: Certificates, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The control is Flower's: its SuperNode ends with the first such answer."""
    quick = json.loads(channel.CALLS[0][1])
    quick["methodConfig"][0]["retryPolicy"] |= {"initialBackoff": "0.01s", "maxBackoff": "0.01s"}
    for calls, answer in (((("grpc.service_config", json.dumps(quick)),), b"there?"), ((), None)):
        monkeypatch.setattr(channel, "CALLS", calls)
        failing.codes = [code] * 4
        made = channel.create_channel(f"127.0.0.1:{failing.port}", False, files.ca.read_bytes())
        with made:
            call = made.unary_unary("/echo/echo")
            if answer:
                assert call(b"there?", timeout=30) == answer
            else:
                with pytest.raises(grpc.RpcError) as raised:
                    call(b"there?", timeout=30)
                assert raised.value.code() == code


def test_a_refusal_is_not_repeated(failing: Failing, files: Certificates) -> None:
    failing.codes = [grpc.StatusCode.FAILED_PRECONDITION, grpc.StatusCode.INTERNAL]
    made = channel.create_channel(f"127.0.0.1:{failing.port}", False, files.ca.read_bytes())
    with made, pytest.raises(grpc.RpcError):
        made.unary_unary("/echo/echo")(b"there?", timeout=30)
    assert failing.codes == [grpc.StatusCode.INTERNAL]


def test_nothing_is_sent_in_the_clear() -> None:
    with pytest.raises(ValueError, match="over TLS"):
        channel.create_channel("127.0.0.1:1", True)


class Echo(grpc.GenericRpcHandler):  # type: ignore[misc]
    """Sends back what it gets."""

    def service(self, _: grpc.HandlerCallDetails) -> grpc.RpcMethodHandler:
        return grpc.unary_unary_rpc_method_handler(lambda request, _: request)


class Failing(grpc.GenericRpcHandler):  # type: ignore[misc]
    """Answers with errors, one after the other, then sends back what it gets."""

    port = 0

    def __init__(self) -> None:
        self.codes: list[grpc.StatusCode] = []

    def service(self, _: grpc.HandlerCallDetails) -> grpc.RpcMethodHandler:
        def answer(request: bytes, context: grpc.ServicerContext) -> bytes:
            if self.codes:
                context.abort(self.codes.pop(0), "no reason of yours")
            return request

        return grpc.unary_unary_rpc_method_handler(answer)


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Certificates:
    return make_certificates(tmp_path_factory.mktemp("certificates"), ["127.0.0.1"])


@pytest.fixture
def failing(files: Certificates) -> Iterator[Failing]:
    made = Failing()
    server = grpc.server(ThreadPoolExecutor(4), handlers=(made,))
    pairs = ((files.server_key.read_bytes(), files.server.read_bytes()),)
    made.port = server.add_secure_port("127.0.0.1:0", grpc.ssl_server_credentials(pairs))
    server.start()
    yield made
    server.stop(None).wait()

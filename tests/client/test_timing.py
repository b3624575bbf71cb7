"""When an answer leaves tells nothing that its policy hides."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from flwr.app import Context, Message, RecordDict
from hypothesis import given
from hypothesis import strategies as st

import client.app
from client.approvals import Approvals, keep_approvals
from client.node_config import NODE_TOML, load_node_config
from client.timing import Pad, wait_s
from common import paths, wire
from common.backbones.controls import load_reference
from common.config import to_flat
from common.errors import ConfigError
from common.messages import Hello, Reason, Refusal, Update
from simulations.engine import task_identity
from tests.client.test_withdrawals import CONFIG
from tests.deployment.hospitals import write_digits
from tests.federations import small_config, small_offer, small_task

INTERVAL_S = 40.0


class Clock:
    """Time that passes when somebody sleeps, and by ``work_s`` a look."""

    def __init__(self, work_s: float) -> None:
        self.now, self.work_s, self.slept = 0.0, work_s, list[float]()

    def __call__(self) -> float:
        self.now += self.work_s
        return self.now

    def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
        self.now += seconds


@given(took=st.floats(0, 1e5), interval=st.floats(0.01, 1e4))
def test_an_answer_leaves_at_a_multiple_of_the_interval_and_never_earlier(took: float, interval: float) -> None:
    waited = wait_s(took, interval)
    multiples = (took + waited) / interval
    assert waited >= 0
    assert multiples == pytest.approx(max(1, round(multiples)), rel=1e-6)
    assert waited <= interval * (1 + 1e-9)


def test_short_and_long_work_leave_together_and_without_an_interval_at_once() -> None:
    ends = []
    for work_s in (1.0, 3.0, 9.5):
        clock = Clock(work_s)
        began = clock.now + work_s
        pad = Pad(clock, clock.sleep)
        pad.interval_s = 10.0
        assert pad.hold() == work_s
        ends.append(clock.now - began)
    assert ends == [10.0, 10.0, 10.0]
    clock = Clock(3.0)
    Pad(clock, clock.sleep).hold()
    assert clock.slept == [0.0]


@pytest.fixture
def node_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A node whose answers leave after 40 seconds; sleeping is noted, not done."""
    folder = tmp_path / "node"
    write_digits(folder / "records", range(60))
    (folder / NODE_TOML).write_text(CONFIG.replace("delta =", f"answer_after_s = {INTERVAL_S}\ndelta ="))
    keep_approvals(folder, Approvals().with_backbone(load_reference("pixels/8").digest, "pixels/8"))
    monkeypatch.setenv(paths.NODE_FOLDER, str(folder))
    monkeypatch.setenv(paths.CACHE, str(folder / "cache"))
    with task_identity():
        yield folder


@pytest.fixture
def slept(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    waits: list[float] = []
    monkeypatch.setattr(client.app, "Pad", lambda: Pad(sleep=waits.append))
    return waits


def ask(kind: str) -> object:
    sent = small_task()
    config = wire.encode_task(sent.offer, sent.learning_rate)
    if kind == "train":
        config[wire.ROUND] = 1
    content = RecordDict({wire.CONFIG: config, wire.ARRAYS: wire.encode_head(sent.head)})
    if kind == wire.QUERY_HELLO:
        content = RecordDict({wire.CONFIG: wire.encode_task(small_offer())})
    context = Context(1, 2, {"partition-id": 0}, RecordDict(), to_flat(small_config()))
    return wire.decode_reply(client.app.app(Message(content, 2, kind), context))


def test_rounds_and_their_refusals_are_held_back_and_offers_are_not(node_folder: Path, slept: list[float]) -> None:
    assert ask(wire.QUERY_HELLO) == Hello("st-mary", 60)
    assert slept == []
    assert isinstance(ask("train"), Update)
    assert isinstance(ask("train"), Update)  # the stored reply
    for path in (node_folder / "approved.json", node_folder / "index"):
        path.rename(node_folder / f"{path.name}.gone")
    assert ask("train") == Refusal(Reason.POLICY)
    assert len(slept) == 3
    assert all(0 < wait < INTERVAL_S for wait in slept)


def test_a_round_that_needs_longer_is_logged(
    node_folder: Path, slept: list[float], caplog: pytest.LogCaptureFixture
) -> None:
    path = node_folder / NODE_TOML
    path.write_text(path.read_text().replace(f"= {INTERVAL_S}", "= 1e-4"))
    assert isinstance(ask("train"), Update)
    assert "needed more than privacy.answer_after_s" in caplog.text
    path.write_text(path.read_text().replace("= 1e-4", "= -1"))
    with pytest.raises(ConfigError, match="answer_after_s: expected a number of at least 0"):
        load_node_config(node_folder)

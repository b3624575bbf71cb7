"""A backbone over the wire with the real apps: nodes that await it get it once, and join; hostile ones harm nobody."""

from __future__ import annotations

import json
import logging
import math
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from flwr.app import ConfigRecord, Context, Message, RecordDict
from flwr.clientapp import ClientApp
from PIL import Image

import client.app
from client.approvals import Approvals, keep_approvals
from client.node_config import NODE_TOML
from client.sent_backbones import BACKBONES, LOCK, sent_reference
from common import paths, wire
from common.backbones import parcel as parcels
from common.backbones.controls import load_reference
from common.backbones.package import save
from common.backbones.package_facts import FACTS
from common.backbones.parcel import Parcel, parcel_of
from common.data import load_source
from common.durable import read_lines
from common.heads import head_arrays
from common.messages import Offer, Reason, Refusal
from common.model import make_head
from server.aggregation import build_strategy
from server.backbone_sending import joining, send_backbone
from server.checkpoints import RunStore
from server.link import Link
from server.rounds import RoundPlan, run_rounds
from server.sent_bytes import SENT, bytes_sent, note_sent
from simulations.engine import FIRST_NODE_ID, InProcessGrid, task_identity
from tests.client.test_own_node import CONFIG
from tests.federations import small_config, small_offer, small_terms

NAMES = ("north", "south")
STEP = 64 << 10


@pytest.fixture(autouse=True)
def quiet(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(parcels, "PIECE_BYTES", STEP)
    before = {name: logging.getLogger(name).level for name in ("flwr", "fedgraft.node")}
    for name in before:
        logging.getLogger(name).setLevel(logging.CRITICAL + 1)
    with task_identity():
        yield
    for name, level in before.items():
        logging.getLogger(name).setLevel(level)


@pytest.fixture(scope="module")
def packed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("coordinator") / "packed"
    save(load_reference("torchvision/shufflenet_v2_x0_5:32@random-3"), folder)
    return folder


@pytest.fixture
def parcel(packed: Path) -> Parcel:
    digest = json.loads((packed / FACTS).read_text())["digest"]
    found = parcel_of(f"package/{packed}", digest)
    assert found is not None
    return found


@pytest.fixture
def homes(parcel: Parcel, packed: Path, tmp_path: Path) -> dict[str, Path]:
    """Two real nodes with 30 digits each: north has a copy of the backbone, south awaits it."""
    digits, digest = load_source("digits"), parcel.contents.digest
    made = {}
    for number, name in enumerate(NAMES):
        home = made[name] = tmp_path / name
        for row in range(number * 30, number * 30 + 30):
            place = home / "records" / digits.classes[digits.labels[row]]
            place.mkdir(parents=True, exist_ok=True)
            Image.fromarray(np.asarray(digits.inputs[row])).save(place / f"{row}.png")
        text = CONFIG.replace("st-mary-digits", f"{name}-digits").replace("st-mary", name).replace("= 60", "= 30")
        (home / NODE_TOML).write_text(text.replace("max_epsilon = 8.0", "max_epsilon = 50.0"))
    shutil.copytree(packed, tmp_path / "carried")
    keep_approvals(made["north"], Approvals().with_backbone(digest, f"package/{tmp_path / 'carried'}"))
    keep_approvals(made["south"], Approvals().with_sent(digest, 10_000_000))
    return made


class Hospitals(InProcessGrid):
    """The in-process grid, playing real nodes: each in its own folder, as its operator set it up."""

    def __init__(self, homes: dict[str, Path], folder: Path, app: ClientApp = client.app.app) -> None:
        super().__init__(app, small_config(), range(len(homes)), folder)
        self.homes = dict(zip(self.get_node_ids(), homes.values(), strict=True))
        self.kinds: list[tuple[int, str]] = []

    def _play(self, messages: Sequence[Message]) -> list[Message]:
        return [self._play_one(message) for message in messages]

    def _play_one(self, message: Message) -> Message:
        node = message.metadata.dst_node_id
        self.kinds.append((node, message.metadata.message_type))
        os.environ[paths.NODE_FOLDER] = str(self.homes[node])
        try:
            return self._app(message, Context(message.metadata.run_id, node, {}, RecordDict(), {}))
        finally:
            del os.environ[paths.NODE_FOLDER]


def linked(homes: dict[str, Path], folder: Path, app: ClientApp = client.app.app) -> Link:
    grid = Hospitals(homes, folder, app)
    return Link(grid, named=dict(zip(grid.homes, homes, strict=True)), timeout_s=60.0)


@pytest.fixture
def plan(parcel: Parcel) -> RoundPlan:
    stages = json.loads((parcel.folder / FACTS).read_text())["stages"]
    model = small_offer().model.model_copy(
        update={
            "backbone": f"package/{parcel.folder}",
            "backbone_digest": parcel.contents.digest,
            "cut": stages[-1],
        }
    )
    offer = Offer("run-0", model, small_terms(rounds=2))
    return RoundPlan(2, offer, learning_rate=0.5, cohort=None, seed=1, weighting="equal", evaluate_every=1)


def test_a_node_without_the_backbone_gets_it_once_and_joins(
    parcel: Parcel, homes: dict[str, Path], plan: RoundPlan, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    run.mkdir()
    for number in range(2):  # the second run finds the backbone there
        link = linked(homes, run)
        offer = replace(plan.offer, run_id=f"run-{number}")
        folder = run / str(number)
        folder.mkdir()
        store, join = RunStore(folder, offer.run_id), joining(parcel, folder)
        start = head_arrays(make_head(offer.model, seed=0))
        run_rounds(
            replace(plan, offer=offer), link, build_strategy("fedavg"), store, start, lambda _: _scores(), join=join
        )
        assert [line["nodes"] for line in read_lines(store.log)] == [2, 2]
        assert bytes_sent(folder) == (parcel.contents.total if number == 0 else 0)
    assert isinstance(link.grid, Hospitals)
    assert (FIRST_NODE_ID, wire.QUERY_BACKBONE) not in link.grid.kinds
    reference = sent_reference(homes["south"], parcel.contents.digest)
    assert reference.startswith(f"package/{homes['south']}")
    assert load_reference(reference).digest == parcel.contents.digest


def _scores() -> Any:
    return SimpleNamespace(accuracy=0.5, loss=1.0)


class CutError(Exception):
    """The connection breaks."""


@pytest.mark.parametrize("calls", [1, 4])
def test_a_server_that_is_killed_goes_on_where_it_stopped(
    calls: int, parcel: Parcel, homes: dict[str, Path], plan: RoundPlan, tmp_path: Path
) -> None:
    link = linked(homes, tmp_path)
    link.offer(plan.offer)
    whole, left = link.hand_over, iter([True] * calls)

    def cut(parts: Any, timeout_s: float) -> Any:
        if not next(left, False):
            raise CutError
        return whole(parts, timeout_s)

    link.hand_over = cut  # type: ignore[method-assign]
    with pytest.raises(CutError):
        send_backbone(link, parcel, tmp_path, None)
    again = linked(homes, tmp_path)
    joining(parcel, tmp_path)(again, plan.offer)
    assert set(again.members) == {"north", "south"}
    asked_twice = STEP if calls > 0 else 0  # the piece that was counted and never left
    assert parcel.contents.total <= bytes_sent(tmp_path) <= parcel.contents.total + asked_twice


@pytest.mark.parametrize("silent", [[1], [1, 2, 3], [2, 3]])
def test_while_nobody_takes_part_an_interrupted_node_is_waited_for(
    silent: list[int], parcel: Parcel, homes: dict[str, Path], plan: RoundPlan, tmp_path: Path
) -> None:
    link, calls = linked({"south": homes["south"]}, tmp_path), iter(range(1000))
    whole = link.hand_over
    link.hand_over = lambda parts, timeout_s: {} if next(calls) in silent else whole(parts, timeout_s)  # type: ignore[method-assign]
    joining(parcel, tmp_path, patience_s=math.inf, retry_s=0.0)(link, plan.offer)
    assert set(link.members) == {"south"}
    assert parcel.contents.total <= bytes_sent(tmp_path) <= parcel.contents.total + len(silent) * STEP


def test_a_node_that_gets_no_further_is_given_up(
    parcel: Parcel, homes: dict[str, Path], plan: RoundPlan, tmp_path: Path
) -> None:
    link = linked({"south": homes["south"]}, tmp_path)
    link.hand_over = lambda parts, timeout_s: {}  # type: ignore[method-assign]
    joining(parcel, tmp_path, patience_s=0.0, retry_s=0.0)(link, plan.offer)
    assert link.refused == {"south": "backbone"}


def test_two_runs_that_send_at_once_share_the_work(
    parcel: Parcel, homes: dict[str, Path], plan: RoundPlan, tmp_path: Path
) -> None:
    """The second sends two pieces in between; the first goes on behind them."""
    runs = {name: linked({"south": homes["south"]}, tmp_path / name) for name in ("first", "second")}
    for name, link in runs.items():
        (tmp_path / name).mkdir()
        link.offer(plan.offer)
    whole, calls = runs["first"].hand_over, iter(range(1000))

    def other_between(parts: Any, timeout_s: float) -> Any:
        if next(calls) == 2:
            (node,) = runs["second"].lacking()
            for number in (1, 2):
                runs["second"].hand_over({node: parcel.part(number * STEP)}, timeout_s)
        return whole(parts, timeout_s)

    runs["first"].hand_over = other_between  # type: ignore[method-assign]
    send_backbone(runs["first"], parcel, tmp_path / "first", None)
    sent = bytes_sent(tmp_path / "first")
    assert sent == parcel.contents.total - STEP
    runs["second"].welcome(next(iter(runs["second"].connected())))
    runs["second"].offer(plan.offer)
    assert set(runs["second"].members) == {"south"}


def answering(answer: Callable[[Message], Message | None]) -> ClientApp:
    """The real app, but for what it answers to pieces of a backbone."""
    app = ClientApp()
    app.query(wire.HELLO_ACTION)(client.app.hello)

    @app.query(wire.BACKBONE_ACTION)
    def backbone(message: Message, context: Context) -> Message:
        return answer(message) or client.app.backbone(message, context)

    return app


def _holding(message: Message, received: object, digest: str | None = None) -> Message:
    part = wire.decode_part(message)
    record = ConfigRecord({"digest": digest or part.contents.digest, "received": received})  # type: ignore[dict-item]
    return Message(RecordDict({"holding": record}), reply_to=message)


HOSTILE: dict[str, Callable[[Message], Message | None]] = {
    "always nothing yet": lambda message: _holding(message, 0),
    "a negative number": lambda message: _holding(message, -1),
    "beyond the end": lambda message: _holding(message, 1 << 60),
    "no number": lambda message: _holding(message, "all"),
    "another backbone": lambda message: _holding(message, 0, "ab" * 32),
    "nonsense": lambda message: Message(RecordDict(), reply_to=message),
}


@pytest.mark.parametrize("kind", HOSTILE)
def test_a_node_that_answers_nonsense_gets_little_and_the_others_go_on(
    kind: str, parcel: Parcel, homes: dict[str, Path], plan: RoundPlan, tmp_path: Path
) -> None:
    link = linked(homes, tmp_path, answering(HOSTILE[kind]))
    joining(parcel, tmp_path)(link, plan.offer)
    assert set(link.members) == {"north"}
    assert bytes_sent(tmp_path) <= STEP


def test_a_node_that_says_it_has_it_is_asked_again_and_found_lacking(
    parcel: Parcel, homes: dict[str, Path], plan: RoundPlan, tmp_path: Path
) -> None:
    lying = answering(lambda message: _holding(message, parcel.contents.total))
    link = linked(homes, tmp_path, lying)
    joining(parcel, tmp_path)(link, plan.offer)
    assert link.refused == {"south": "backbone"}


def test_a_server_whose_bytes_are_others_is_refused_and_nothing_is_kept(
    parcel: Parcel, homes: dict[str, Path], plan: RoundPlan, tmp_path: Path
) -> None:
    shutil.copytree(parcel.folder, tmp_path / "spoilt")
    weights = tmp_path / "spoilt" / "weights.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"x")
    link = linked(homes, tmp_path)
    joining(Parcel(tmp_path / "spoilt", parcel.contents), tmp_path)(link, plan.offer)
    assert link.refused == {"south": "protocol"}
    assert [path.name for path in (homes["south"] / BACKBONES).iterdir()] == [LOCK]


def test_a_node_whose_operator_approved_nothing_is_sent_nothing(
    parcel: Parcel, homes: dict[str, Path], plan: RoundPlan, tmp_path: Path
) -> None:
    keep_approvals(homes["south"], Approvals())
    link = linked(homes, tmp_path)
    joining(parcel, tmp_path)(link, plan.offer)
    assert link.refused == {"south": "policy"}
    assert bytes_sent(tmp_path) == 0


def test_bytes_that_are_noted_after_a_line_was_cut_short_count(tmp_path: Path) -> None:
    note_sent(tmp_path, {"north": 100, "south": 0})
    with (tmp_path / SENT).open("a") as file:
        file.write('{"north": 20')
    note_sent(tmp_path, {"north": 700, "south": 300})
    assert bytes_sent(tmp_path) == 1100


def test_a_simulated_node_takes_no_backbone(parcel: Parcel, tmp_path: Path) -> None:
    config = small_config()
    link = Link(InProcessGrid(client.app.app, config, range(4), tmp_path))
    replies = link.hand_over({FIRST_NODE_ID: parcel.part(0)}, 60.0)
    assert replies[FIRST_NODE_ID] == Refusal(Reason.PROTOCOL)

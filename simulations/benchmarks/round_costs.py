"""What a round in process costs for each node, beside the bare arithmetic, and where the rest goes.

Processor time of one process that plays server and nodes, ledgers included: a machine that is busy with other work
changes it less than the clock. Rounds and the bare arithmetic take turns, so that both see the same machine.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table
from torch import Tensor

import client.app
import client.egress
import client.last_look
import client.ledger
import client.mechanism
import client.node
import client.simulated_node
import client.training
import server.aggregation
import server.link
import server.rounds
import simulations.engine
from client.mechanism import clipped_sum, noisy_gradient
from client.open_ledgers import OpenLedgers, room_for_files
from common import wire
from common.config import RunConfig, load_config
from common.data.federation import assemble, source_features, source_targets
from common.features import as_tensor
from common.grafting import threads
from common.model import trained_head
from common.privacy.noise import SeededRandomness
from common.tasks import task_named
from server.app import strategy_of
from server.checkpoints import Checkpoint, RunStore
from server.coordinator import Proposal, propose
from server.link import Link
from server.run_folder import run_identity
from simulations import preflight
from simulations.engine import InProcessGrid, all_kept, task_identity

CONFIG = Path(__file__).resolve().parents[1] / "configs" / "digits.toml"
RECORDS = 20
SIZES = (10, 100, 1000, 10_000)
NODES_A_SIZE = 4000  # rounds of all sizes play about so many nodes, and nine rounds at most
STAGES: tuple[tuple[str, Any, tuple[str, ...]], ...] = (
    ("clipped sum", client.training, ("clipped_sums",)),
    ("noise", client.training, ("noisy_gradients",)),
    ("head and step", client.training, ("head_for", "descend")),
    ("plan and digest", client.training, ("accepted", "arrays_digests")),
    ("features", client.simulated_node, ("_simulated_records",)),
    ("features", client.node.Records, ("take",)),
    ("ledger reserve", client.ledger.Ledger, ("reserve",)),
    ("ledger commit", client.ledger.Ledger, ("settle",)),
    ("ledger open", client.simulated_node, ("open_simulated_ledger",)),
    ("egress gate", client.egress, ("release_updates",)),
    ("egress gate", client.app, ("all_permitted",)),
    ("node and app", simulations.engine.InProcessGrid, ("_play",)),
    ("wire", simulations.engine.InProcessGrid, ("push_messages",)),
    ("wire", wire, ("encode_reply", "decode_train_task")),
    ("message making", server.rounds, ("run_round",)),
    ("message making", server.link.Link, ("collect",)),
    ("aggregation", server.rounds, ("aggregate",)),
    ("log and checkpoint", RunStore, ("save",)),
    ("log and checkpoint", server.rounds, ("_line", "_count")),
)


@dataclass(frozen=True)
class Cost:
    """Processor time of one round, in milliseconds a node, medians.

    Attributes:
        round: with everything.
        bare: clipped sums and noise alone, on features that lie ready.
        stages: name to time, from further rounds in which every stage is timed by itself.
    """

    round: float
    bare: float
    stages: dict[str, float]


def main() -> None:
    """Print the table for 10 to 10,000 nodes."""
    show({nodes: measure(nodes) for nodes in SIZES})


def show(costs: dict[int, Cost]) -> None:
    """Print a table with a column for each number of nodes."""
    table = Table("ms of processor time a node", *(f"{nodes} nodes" for nodes in costs), title="a round in process")
    rows: dict[str, Callable[[Cost], float]] = {
        "a round": lambda cost: cost.round,
        "bare arithmetic": lambda cost: cost.bare,
        "difference": lambda cost: cost.round - cost.bare,
        "ratio": lambda cost: cost.round / cost.bare,
    }
    for name, value in rows.items():
        table.add_row(name, *(f"{value(cost):.3f}" for cost in costs.values()))
    table.add_section()
    for name in dict.fromkeys(stage for stage, _, _ in STAGES):
        table.add_row(name, *(f"{cost.stages.get(name, 0.0):.3f}" for cost in costs.values()))
    Console().print(table)


def measure(nodes: int) -> Cost:
    """Play rounds of so many nodes, in turn with the bare arithmetic, then some with every stage timed."""
    repeats = min(9, max(3, NODES_A_SIZE // nodes))
    with tempfile.TemporaryDirectory() as place:
        config = many_nodes(Path(place), nodes, rounds=2 * repeats + 2)
        preflight.check(config)
        folder = Path(place) / "run"
        folder.mkdir()
        with playing(config, folder, nodes) as play, threads(1):
            bare = bare_round(config, propose(config, "bare"))
            play(), bare()  # what happens once: ledgers are made, code and data are loaded
            turns = [(_seconds(play), _seconds(bare)) for _ in range(repeats)]
            with timed_stages() as seconds:
                play()
                seconds.clear()
                for _ in range(repeats):
                    play()
            stages = {name: 1000 * value / repeats / nodes for name, value in seconds.items()}
    whole, alone = (1000 * statistics.median(each) / nodes for each in zip(*turns, strict=True))
    return Cost(whole, alone, stages)


@contextmanager
def playing(config: RunConfig, folder: Path, nodes: int) -> Iterator[Callable[[], None]]:
    """Yield what plays the next round of a run with its apps, engine, ledgers and checkpoints, in this process."""
    with ExitStack() as stack:
        stack.enter_context(task_identity())
        stack.enter_context(all_kept())
        ledgers = stack.enter_context(OpenLedgers(room_for_files()))
        grid = stack.enter_context(InProcessGrid(client.app.app, config, range(nodes), folder, ledgers))
        proposal = propose(config, run_identity(folder))
        link, strategy = Link(grid), strategy_of(config)
        store = RunStore(folder, proposal.plan.offer.run_id, durable=False)
        link.offer(proposal.plan.offer)
        rate = server.rounds.learning_rate(proposal.plan, link.members.values(), proposal.start)
        plan = replace(proposal.plan, learning_rate=rate)
        state = Checkpoint(0, proposal.start, {}, {}, {})

        def play() -> None:
            nonlocal state
            state = server.rounds.run_round(state, plan, link, strategy, proposal.evaluate)
            store.save(state)

        yield play


def bare_round(config: RunConfig, proposal: Proposal) -> Callable[[], None]:
    """The clipped sums and the noise of a round's nodes and nothing else, in one tight loop."""
    federation, offer = assemble(config), proposal.plan.offer
    model, terms = offer.model, offer.terms
    features = source_features(federation, model.backbone, model.cut, model.precision)
    targets = source_targets(federation, model.backbone)
    head, loss = trained_head(model, proposal.start), task_named(model.task).loss
    ready: list[tuple[str, Tensor, Tensor]] = [
        (name, as_tensor(features, share), targets[share]) for name, share in federation.shares.items()
    ]
    plans = {name: terms.for_node(len(share)) for name, share in federation.shares.items()}

    def bare() -> None:
        for name, inputs, labels in ready:
            clipped = clipped_sum(head, loss, inputs, labels, terms.clipping_norm)
            noisy_gradient(clipped, plans[name], SeededRandomness(0, name, 1, "noise"))

    return bare


@contextmanager
def timed_stages() -> Iterator[dict[str, float]]:
    """Time every stage by itself, without the stages inside it, for as long as the block lasts."""
    seconds: dict[str, float] = defaultdict(float)
    inner = [0.0]
    before = [(owner, name, getattr(owner, name)) for _, owner, names in STAGES for name in names]
    for stage, owner, names in STAGES:
        for name in names:
            setattr(owner, name, _timed(getattr(owner, name), stage, seconds, inner))
    try:
        yield seconds
    finally:
        for owner, name, function in before:
            setattr(owner, name, function)


def _timed(
    function: Callable[..., Any], stage: str, seconds: dict[str, float], inner: list[float]
) -> Callable[..., Any]:
    def call(*arguments: Any, **named: Any) -> Any:
        inner.append(0.0)
        began = time.process_time()
        try:
            return function(*arguments, **named)
        finally:
            took = time.process_time() - began
            seconds[stage] += took - inner.pop()
            inner[-1] += took

    return call


def many_nodes(folder: Path, nodes: int, records: int = RECORDS, **federation: int) -> RunConfig:
    """A federation on generated digits-like images, so many records a node."""
    generator = np.random.default_rng(0)
    count = nodes * records
    images = generator.integers(0, 256, (count + 1000, 8, 8), dtype=np.uint8)
    split = np.array(["train"] * count + ["test"] * 1000)
    np.savez(folder / "many.npz", images=images, labels=np.arange(count + 1000) % 10, split=split)
    changes = [f'data.source="{folder / "many.npz"}"', f"federation.nodes={nodes}"]
    changes += [f"federation.{name}={value}" for name, value in federation.items()]
    return load_config(CONFIG, [*changes, "privacy.epsilon=8", 'data.partition="iid"'])


def _seconds(work: Callable[[], None]) -> float:
    began = time.process_time()
    work()
    return time.process_time() - began

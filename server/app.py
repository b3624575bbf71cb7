"""The Flower ServerApp: read the configuration, run the rounds. It decides nothing."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from flwr.app import Context
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import FedAvg

from common import durable
from common.backbones.parcel import parcel_of
from common.config import RunConfig, from_flat
from common.data.federation import Federation, assemble, held_by_server
from common.errors import FederationError
from common.messages import EvaluateTask
from common.secagg.simulated import simulated_roster
from server.aggregation import build_strategy
from server.backbone_sending import joining
from server.checkpoints import RunStore
from server.coordinator import Proposal, propose
from server.link import Link
from server.outcome import conclude
from server.peers import peers_of
from server.rounds import run_rounds
from server.run_folder import (
    FAILURE,
    alone_in,
    check_inputs,
    expected_nodes,
    keep_config,
    last_round,
    named_nodes,
    run_folder,
    run_identity,
)
from server.sum_rounds import SumRounds

app = ServerApp()


@app.main()
def main(grid: Grid, context: Context) -> None:
    """Run a federation in its run folder, or continue it there."""
    folder = run_folder(context)
    try:
        config = from_flat(context.run_config)
        keep_config(folder, config)
        named = named_nodes(folder)
        if named is None:
            nodes = expected_nodes(context)
            run(config, grid, folder, nodes, last_round(context), on_ray=nodes is None)
        else:
            with alone_in(folder):
                run_deployed(config, grid, folder, named)
    except FederationError as error:
        durable.write_json(folder / FAILURE, {"kind": type(error).__name__, "message": str(error)})
        raise


def run_deployed(config: RunConfig, grid: Grid, folder: Path, named: Mapping[int, str]) -> None:
    """Run, or continue, a federation of real nodes, and save the model.

    Args:
        config: of the run; its data are the coordinator's own, public test records.
        grid: Flower's link to the nodes.
        folder: the run folder; exists.
        named: nodes that the run may reach, Flower's id to name.

    Raises:
        FederationError: as the parts raise it; what was saved stays.
    """
    federation = held_by_server(config)
    proposal = _begun(config, folder, federation)
    plan = replace(proposal.plan, nodes=len(named))
    link = Link(grid, named=named, timeout_s=config.federation.round_timeout_s)
    store = RunStore(folder, plan.offer.run_id)
    model = plan.offer.model
    join = joining(parcel_of(model.backbone, model.backbone_digest), folder)
    strategy = strategy_of(config)
    play = SumRounds(store, peers_of(folder)) if plan.offer.terms.trust == "secagg" else None
    final = run_rounds(plan, link, strategy, store, proposal.start, proposal.evaluate, proposal.watch, join, play)
    conclude(folder, config, federation, replace(proposal, plan=plan), final)


def run(
    config: RunConfig,
    grid: Grid,
    folder: Path,
    nodes: int | None = None,
    ends_after: int | None = None,
    *,
    on_ray: bool = False,
) -> None:
    """Run, or continue, the simulated federation that a configuration describes.

    Args:
        config: of the run.
        grid: Flower's link to the nodes.
        folder: the run folder; exists.
        nodes: to wait for; None waits for all that the configuration describes.
        ends_after: the round that is played last, under the plan of all; None plays all.
        on_ray: an error in the place of a node's answer is Ray's, which is being stopped, and ends the run.

    Raises:
        FederationError: as the parts raise it; what was saved stays.
    """
    proposal = _begun(config, folder, assemble(config))
    plan = replace(proposal.plan, nodes=proposal.plan.nodes if nodes is None else nodes, last_round=ends_after)
    strategy = strategy_of(config)
    link, store = Link(grid, keeps_all=on_ray), RunStore(folder, plan.offer.run_id, durable=False)
    play = SumRounds(store, simulated_roster) if plan.offer.terms.trust == "secagg" else None
    final = run_rounds(plan, link, strategy, store, proposal.start, proposal.evaluate, proposal.watch, play=play)
    if config.evaluation.node_metrics == "exact":
        finished = replace(plan.offer, model=plan.offer.model.finished)
        accuracies = link.accuracies(EvaluateTask(finished, final.head))
        durable.write_json(folder / "node_metrics.json", accuracies)


def _begun(config: RunConfig, folder: Path, federation: Federation) -> Proposal:
    proposal = propose(config, run_identity(folder), federation)
    model = proposal.plan.offer.model
    inputs = {
        "the records": federation.digest,
        "the backbone": model.backbone_digest,
        "the precision of the features": model.precision,
    }
    check_inputs(folder, inputs)
    return proposal


def strategy_of(config: RunConfig) -> FedAvg:
    """The configured strategy, fresh."""
    federation = config.federation
    return build_strategy(
        federation.strategy,
        server_learning_rate=federation.server_learning_rate,
        server_momentum=federation.server_momentum,
        proximal_mu=federation.proximal_mu,
        malicious=federation.malicious,
    )

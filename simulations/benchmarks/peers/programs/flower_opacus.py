"""Flower's simulation runtime with Opacus, after Flower's quickstart for PyTorch and its example with Opacus."""

import os
import sys

import torch
from flwr.app import ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import FedAvg
from flwr.simulation import run_simulation
from task import (
    accuracy,
    epsilon_of_the_run,
    network,
    node_images,
    now,
    private_epoch,
    read_work,
    test_images,
    test_share,
    write_result,
)

WORK, RESULT = os.environ["PEER_WORK"], os.environ["PEER_RESULT"]
VARIANT = os.environ.get("PEER_VARIANT", "evaluated")  # evaluated, all or head
HEAD_ONLY, EVALUATED = VARIANT == "head", VARIANT == "evaluated"

client_app = ClientApp()
server_app = ServerApp()


def exchanged(net):
    """What travels: as in the quickstart the whole state, or the classifier only."""
    return net.fc.state_dict() if HEAD_ONLY else net.state_dict()


def load(net, arrays):
    (net.fc if HEAD_ONLY else net).load_state_dict(arrays.to_torch_state_dict())


@client_app.train()
def train(msg: Message, context: Context) -> Message:
    work = read_work(WORK)
    net = network(work)
    load(net, msg.content["arrays"])
    images, labels = node_images(WORK, int(context.node_config["partition-id"]))
    private_epoch(net, images, labels, work)
    metrics = MetricRecord({"num-examples": len(labels)})
    content = RecordDict({"arrays": ArrayRecord(exchanged(net)), "metrics": metrics})
    return Message(content=content, reply_to=msg)


@client_app.evaluate()
def evaluate(msg: Message, context: Context) -> Message:
    net = network(read_work(WORK))
    load(net, msg.content["arrays"])
    images, labels = test_share(WORK, int(context.node_config["partition-id"]))
    metrics = MetricRecord({"accuracy": accuracy(net, images, labels), "num-examples": len(labels)})
    return Message(content=RecordDict({"metrics": metrics}), reply_to=msg)


class Timed(FedAvg):
    """FedAvg that keeps the clock: a round begins where nodes are chosen for it, and ends where the next one does."""

    def __init__(self, **options):
        super().__init__(**options)
        self.ends = []

    def configure_train(self, *arguments, **options):
        self.ends.append(now())
        return super().configure_train(*arguments, **options)


@server_app.main()
def main(grid: Grid, context: Context) -> None:
    work = read_work(WORK)
    net = network(work)
    strategy = Timed(fraction_train=1.0, fraction_evaluate=float(EVALUATED), min_available_nodes=work["nodes"])
    result = strategy.start(grid=grid, initial_arrays=ArrayRecord(exchanged(net)), num_rounds=work["rounds"])
    strategy.ends.append(now())
    load(net, result.arrays)
    write_result(
        RESULT,
        strategy.ends,
        accuracy=accuracy(net, *test_images(WORK)),
        epsilon=epsilon_of_the_run(work),
        unit="image",
    )


def run() -> None:
    cores = len(os.sched_getaffinity(0))
    resources = {"init_args": {"num_cpus": cores}, "client_resources": {"num_cpus": 1, "num_gpus": 0.0}}
    torch.set_num_threads(cores)
    run_simulation(server_app, client_app, num_supernodes=read_work(WORK)["nodes"], backend_config=resources)


if __name__ == "__main__":
    sys.modules.pop("flower_opacus", None)
    import flower_opacus  # so that the workers import the apps by this name

    flower_opacus.run()

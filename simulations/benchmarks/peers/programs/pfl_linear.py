"""Apple's pfl-research: federated averaging of a linear head, on features computed once or behind the frozen network.

Each user's update is clipped and noised by pfl's own Gaussian mechanism, before it leaves the user (local privacy).
"""

import os
import random
from dataclasses import replace

import numpy as np
import torch
from pfl.aggregate.simulate import SimulatedBackend
from pfl.algorithm.base import NNAlgorithmParams
from pfl.algorithm.federated_averaging import FederatedAveraging
from pfl.callback.base import TrainingProcessCallback
from pfl.callback.central_evaluation import CentralEvaluationCallback
from pfl.data.dataset import Dataset
from pfl.data.federated_dataset import FederatedDataset
from pfl.data.sampling import get_user_sampler
from pfl.hyperparam import NNEvalHyperParams, NNTrainHyperParams
from pfl.metrics import Metrics, Weighted
from pfl.model.pytorch import PyTorchModel
from pfl.privacy.gaussian_mechanism import GaussianMechanism
from pfl.privacy.privacy_accountant import PLDPrivacyAccountant
from task import accuracy, network, node_images, now, read_work, test_images, write_result
from torch import nn

WORK, RESULT = os.environ["PEER_WORK"], os.environ["PEER_RESULT"]
VARIANT = os.environ.get("PEER_VARIANT", "features")  # features, resnet or resnet-evaluated


class Classifier(nn.Module):
    """What pfl asks of a model: a loss and metrics."""

    def __init__(self, net):
        super().__init__()
        self.net = net

    def forward(self, inputs):
        return self.net(inputs)

    def loss(self, inputs, targets):
        if isinstance(self.net, nn.Linear):
            self.net.train()
        else:
            self.net.eval()  # the norms are frozen
        return nn.functional.cross_entropy(self(inputs), targets)

    @torch.no_grad()
    def metrics(self, inputs, targets):
        self.net.eval()
        outputs = self(inputs)
        loss = nn.functional.cross_entropy(outputs, targets, reduction="sum").item()
        right = int((outputs.argmax(1) == targets).sum())
        return {"loss": Weighted(loss, len(targets)), "accuracy": Weighted(right, len(targets))}


class WithoutEvaluation(FederatedAveraging):
    """pfl evaluates the users in the first iteration whatever the frequency is; this never does."""

    def get_next_central_contexts(self, *arguments, **options):
        contexts, model, metrics = super().get_next_central_contexts(*arguments, **options)
        return contexts and tuple(replace(one, do_evaluation=False) for one in contexts), model, metrics


class Clock(TrainingProcessCallback):
    """Keeps the ends of rounds; the first entry is the beginning."""

    def __init__(self):
        self.ends = []

    def on_train_begin(self, *, model):
        self.ends.append(now())
        return Metrics()

    def after_central_iteration(self, aggregate_metrics, model, *, central_iteration):
        self.ends.append(now())
        return False, Metrics()


@torch.no_grad()
def features(net, images):
    net.eval()
    return torch.cat([net(part) for part in images.split(64)])


def records(net, part):
    """A user's tensors; with a network, its features of the images."""
    images, labels = part
    return (images if net is None else features(net, images), labels)


def main():
    work = read_work(WORK)
    torch.manual_seed(0)
    np.random.seed(0)
    random.seed(0)
    torch.set_num_threads(len(os.sched_getaffinity(0)))
    net, trunk = network(work), None
    if VARIANT == "features":
        trunk, net = net, net.fc
        trunk.fc = nn.Identity()
    users = {node: records(trunk, node_images(WORK, node)) for node in range(work["nodes"])}
    held_out = records(trunk, test_images(WORK))
    data = FederatedDataset.from_slices(users, get_user_sampler("minimize_reuse", list(users)))
    evaluated = VARIANT.endswith("evaluated")

    classifier = Classifier(net)
    trained = [parameter for parameter in classifier.parameters() if parameter.requires_grad]
    model = PyTorchModel(classifier, torch.optim.SGD, torch.optim.SGD(trained, lr=1.0))
    # an update is a change of parameters: learning rate times gradients
    mechanism = GaussianMechanism(work["learning_rate"] * work["clipping_norm"], work["noise_multiplier"])
    backend = SimulatedBackend(training_data=data, val_data=data, postprocessors=[mechanism])
    rounds, clock = work["rounds"], Clock()
    callbacks = [clock]
    if evaluated:
        evaluation = NNEvalHyperParams(local_batch_size=64)
        callbacks.insert(0, CentralEvaluationCallback(Dataset(held_out), model_eval_params=evaluation))
    algorithm = FederatedAveraging() if evaluated else WithoutEvaluation()
    algorithm.run(
        algorithm_params=NNAlgorithmParams(
            central_num_iterations=rounds,
            evaluation_frequency=1,
            train_cohort_size=work["nodes"],
            val_cohort_size=0,
        ),
        backend=backend,
        model=model,
        model_train_params=NNTrainHyperParams(
            local_num_epochs=1,
            local_learning_rate=work["learning_rate"],
            local_batch_size=min(work["batch"], work["records"]),
            local_max_grad_norm=work["clipping_norm"],  # of a batch's gradient; keeps the local steps from diverging
        ),
        model_eval_params=NNEvalHyperParams(local_batch_size=min(work["batch"], work["records"])),
        callbacks=callbacks,
    )
    accountant = PLDPrivacyAccountant(
        num_compositions=rounds,
        sampling_probability=1.0,
        mechanism="gaussian",
        delta=work["delta"],
        noise_parameter=work["noise_multiplier"],
    )
    write_result(
        RESULT,
        clock.ends,
        accuracy=accuracy(net, *held_out),
        epsilon=float(accountant.epsilon),
        unit="node",
    )


if __name__ == "__main__":
    main()

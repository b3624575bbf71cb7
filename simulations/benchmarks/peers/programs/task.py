"""What the peers' programs have in common: the images of a node, the frozen network, one private epoch, the test."""

import json
import time
from functools import lru_cache
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file
from torch import nn
from torch.utils.data import DataLoader, TensorDataset
from torchvision import models

MEAN = torch.tensor([0.485, 0.456, 0.406]).view(1, 3, 1, 1)
STD = torch.tensor([0.229, 0.224, 0.225]).view(1, 3, 1, 1)


@lru_cache
def read_work(path):
    return json.loads(Path(path).read_text())


@lru_cache
def arrays(path):
    with np.load(read_work(path)["images"]) as file:
        return {name: file[name] for name in ("images", "labels")}


def part(path, rows):
    """Images (N, 3, H, W), normalised, and labels."""
    found = arrays(path)
    pixels = torch.from_numpy(found["images"][rows]).permute(0, 3, 1, 2).float() / 255
    return (pixels - MEAN) / STD, torch.from_numpy(found["labels"][rows]).long()


def node_images(path, node):
    work = read_work(path)
    return part(path, slice(node * work["records"], (node + 1) * work["records"]))


def test_images(path):
    return part(path, slice(-read_work(path)["test"], None))


def test_share(path, node):
    """A node's share of the held-out images, for programs whose nodes evaluate."""
    work = read_work(path)
    return part(path, slice(work["nodes"] * work["records"] + node, None, work["nodes"]))


def network(work):
    """ResNet-18, everything frozen but a new classifier that starts at zero."""
    net = models.resnet18(weights=None)
    net.load_state_dict(load_file(work["weights"]))
    for parameter in net.parameters():
        parameter.requires_grad = False
    net.fc = nn.Linear(net.fc.in_features, work["classes"])
    nn.init.zeros_(net.fc.weight)
    nn.init.zeros_(net.fc.bias)
    return net


def train_mode(net):
    """Training mode, with the statistics of frozen norms left alone."""
    net.train()
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.eval()


def loader(images, labels, batch):
    return DataLoader(TensorDataset(images, labels), batch_size=batch, shuffle=True)


def private_epoch(net, images, labels, work):
    """One epoch of DP-SGD on the classifier, by Opacus."""
    from opacus import PrivacyEngine

    torch.seed()  # else every new process draws the same noise
    train_mode(net)
    trained = [parameter for parameter in net.parameters() if parameter.requires_grad]
    optimizer = torch.optim.SGD(trained, lr=work["learning_rate"])
    criterion = nn.CrossEntropyLoss()
    wrapped, optimizer, batches = PrivacyEngine(accountant="rdp").make_private(
        module=net,
        optimizer=optimizer,
        data_loader=loader(images, labels, min(work["batch"], len(labels))),
        noise_multiplier=work["noise_multiplier"],
        max_grad_norm=work["clipping_norm"],
    )
    for inputs, targets in batches:
        optimizer.zero_grad()
        criterion(wrapped(inputs), targets).backward()
        optimizer.step()
    wrapped.to_standard_module()


def epsilon_of_the_run(work):
    """Opacus's PRV accountant over all steps of a node."""
    from opacus.accountants import PRVAccountant

    accountant = PRVAccountant()
    accountant.history = [(work["noise_multiplier"], work["sampling_rate"], work["rounds"] * work["local_steps"])]
    return float(accountant.get_epsilon(work["delta"]))


@torch.no_grad()
def accuracy(net, images, labels):
    net.eval()
    right = sum(
        int((net(inputs).argmax(1) == targets).sum())
        for inputs, targets in zip(images.split(64), labels.split(64), strict=True)
    )
    return right / max(1, len(labels))


def write_result(path, ends, **figures):
    """Write accuracy, epsilon, its unit, and the seconds between the ends of rounds, the first round's start first."""
    rounds = [end - begin for begin, end in pairwise(ends)]
    figures |= {"round_s": float(np.median(rounds)) if rounds else None, "rounds_s": rounds}
    Path(path).write_text(json.dumps(figures))


def now():
    return time.perf_counter()

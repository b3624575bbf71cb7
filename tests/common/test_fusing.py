"""Fused convolutions: what the plain network gives, or no fusing."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor, fx, nn
from torch.nn import functional

from common.backbones.backbone import Backbone
from common.backbones.controls import load_reference
from common.backbones.preprocessing import ImagePreprocessing
from common.data.local import LocalData
from common.feature_pass import FeaturePass, Precision
from common.features import extract
from common.folding import largest_deviation
from common.fusing import convolutions, fuse_convolutions
from common.grafting import Trunk

CHANNELS, SIZE = 8, 24
BATCH = 16


class Block(nn.Module):
    """Two convolutions with their norms, and a tail that decides what is done with the second one's output."""

    def __init__(self, tail: Callable[[Tensor, Tensor], Tensor], activation: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(CHANNELS, CHANNELS, 3, 1, 1, bias=False), nn.BatchNorm2d(CHANNELS)
        self.conv2, self.bn2 = nn.Conv2d(CHANNELS, CHANNELS, 3, 1, 1, groups=2), nn.BatchNorm2d(CHANNELS)
        self.tail, self.activation = tail, activation

    def forward(self, inputs: Tensor) -> Tensor:
        inner = self.activation(self.bn1(self.conv1(inputs)))
        return self.tail(self.bn2(self.conv2(inner)), inputs)


def iadd(found: Tensor, inputs: Tensor) -> Tensor:
    found += inputs
    return torch.relu_(found)


def used_twice(found: Tensor, inputs: Tensor) -> Tensor:
    return functional.relu(found) - 2 * found


def broadcast(found: Tensor, inputs: Tensor) -> Tensor:
    return torch.relu(found + inputs.mean(dim=(2, 3), keepdim=True))


def by_value(found: Tensor, inputs: Tensor) -> Tensor:
    return torch.relu(found) if float(inputs.mean()) > 0 else found


TAILS = {
    "activation": lambda found, inputs: functional.relu6(found),
    "sum": lambda found, inputs: inputs + found,
    "sum and activation": lambda found, inputs: (found + inputs).relu(),
    "sum in place": iadd,
    "twice itself": lambda found, inputs: found + found,
    "with a factor": lambda found, inputs: torch.add(found, inputs, alpha=3),
    "a number": lambda found, inputs: found + 1.0,
    "used twice": used_twice,
    "broadcast": broadcast,
}


def trunk_of(block: nn.Module) -> Trunk:
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(0)
        for norm in block.modules():
            if isinstance(norm, nn.BatchNorm2d):
                assert norm.running_mean is not None
                norm.running_mean.normal_()
                norm.weight.normal_()
    return Trunk(Backbone("test/net", {"net": block}, ImagePreprocessing(size=SIZE, channels=1), "", "", "0" * 64))


def prepared(count: int = 4, seed: int = 0) -> Tensor:
    return torch.randn(count, CHANNELS, SIZE, SIZE, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("tail", TAILS)
@pytest.mark.parametrize("activation", [nn.ReLU(inplace=True), nn.ReLU6(), torch.tanh])
def test_what_is_fused_gives_what_the_network_gives(tail: str, activation: Callable[[Tensor], Tensor]) -> None:
    trunk = trunk_of(Block(TAILS[tail], activation))
    fused = fuse_convolutions(trunk, prepared(), BATCH)
    assert fused is not None
    assert len(convolutions(fused)) == 2
    for count in (1, BATCH, BATCH + 3):
        assert largest_deviation(trunk, fused, prepared(count, seed=count)) < 1e-5


def kinds(trunk: nn.Module) -> set[str]:
    graphs = (stage.graph for stage in trunk.modules() if isinstance(stage, fx.GraphModule))
    return {str(node.target) for graph in graphs for node in graph.nodes if "fused" not in str(node.target)}


def test_sums_and_activations_move_into_the_convolutions() -> None:
    fused = fuse_convolutions(trunk_of(Block(TAILS["sum in place"], nn.ReLU())), prepared(), BATCH)
    assert fused is not None
    assert kinds(fused) == {"inputs", "output"}


def test_the_control_whose_output_is_used_twice_keeps_its_activation() -> None:
    fused = fuse_convolutions(trunk_of(Block(used_twice, nn.ReLU())), prepared(), BATCH)
    assert fused is not None
    assert any("relu" in kind for kind in kinds(fused))


def test_a_network_that_looks_at_values_is_left_alone() -> None:
    assert fuse_convolutions(trunk_of(Block(by_value, nn.ReLU())), prepared(), BATCH) is None


class Overwriting(nn.Module):
    """Changes the convolution's input before its output is added to: too late for a fused one."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(CHANNELS, CHANNELS, 3, 1, 1)

    def forward(self, inputs: Tensor) -> Tensor:
        copied = inputs * 2
        early = inputs + 1
        found: Tensor = self.conv(copied)
        copied.zero_()
        return found + early


def test_the_control_that_fusing_would_break_is_left_alone() -> None:
    assert fuse_convolutions(trunk_of(Overwriting()), prepared(), BATCH) is None


def test_the_trunk_itself_stays_as_it_is() -> None:
    trunk = trunk_of(Block(iadd, nn.ReLU()))
    before = {name: value.clone() for name, value in trunk.state_dict().items()}
    assert fuse_convolutions(trunk, prepared(), BATCH) is not None
    after = trunk.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)


@pytest.mark.parametrize(("reference", "fused"), [("torchvision/resnet18:32@random-0", 20), ("embedded/glyph", 12)])
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_a_network_is_fused_and_stays_close(
    reference: str, fused: int, precision: Precision, monkeypatch: pytest.MonkeyPatch
) -> None:
    backbone = load_reference(reference)
    pixels = np.random.default_rng(0).integers(0, 256, (10, SIZE, SIZE), dtype=np.uint8)
    data = LocalData(pixels, np.arange(10) % 2, ("a", "b"))
    ready = FeaturePass(backbone, None, precision)
    assert len(convolutions(ready._trunk)) == fused or precision == "bfloat16"  # which needs a processor that has it
    found = extract(backbone, None, data, None, precision)
    monkeypatch.setattr(FeaturePass, "_has_kernels", lambda self: False)
    plain = extract(backbone, None, data, None, precision)
    distance = np.linalg.norm(found - plain, axis=1) / np.linalg.norm(plain, axis=1)
    assert distance.max() < (1e-4 if precision == "float32" else 0.1)

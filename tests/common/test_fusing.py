"""Fused convolutions: what the plain network gives, or no fusing."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from torch import Tensor, fx, nn
from torch.nn import functional
from torch.nn.utils import prune

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
@pytest.mark.parametrize("activation", [nn.ReLU(inplace=True), nn.ReLU6(), nn.SiLU(), nn.Hardswish(), torch.tanh])
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
    """Changes the convolution's input before its output is added to: too late for one that adds."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(CHANNELS, CHANNELS, 3, 1, 1)

    def forward(self, inputs: Tensor) -> Tensor:
        copied = inputs * 2
        early = inputs + 1
        found: Tensor = self.conv(copied)
        copied.clamp_(max=3)  # which hardly a made-up record reaches
        return found + early


def test_a_convolution_is_not_moved_behind_what_changes_its_input() -> None:
    trunk = trunk_of(Overwriting())
    fused = fuse_convolutions(trunk, prepared() / 10, BATCH)
    assert fused is not None
    assert largest_deviation(trunk, fused, prepared().contiguous(memory_format=torch.channels_last)) <= 1e-5


class Asking(nn.Module):
    """Does what it does only where it is given a tensor, and not a stand-in that notes what is done."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(CHANNELS, CHANNELS, 3, 1, 1)

    def forward(self, inputs: Tensor) -> Tensor:
        found: Tensor = self.conv(inputs)
        return found / 2 if isinstance(found, Tensor) else found


def test_the_control_that_fusing_would_break_is_left_alone() -> None:
    assert fuse_convolutions(trunk_of(Asking()), prepared(), BATCH) is None


def test_the_trunk_itself_stays_as_it_is() -> None:
    trunk = trunk_of(Block(iadd, nn.ReLU()))
    before = {name: value.clone() for name, value in trunk.state_dict().items()}
    assert fuse_convolutions(trunk, prepared(), BATCH) is not None
    after = trunk.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)


@pytest.mark.parametrize(
    ("reference", "fused", "with_activation"),
    [
        ("torchvision/resnet18:32@random-0", 20, 17),
        ("torchvision/shufflenet_v2_x0_5:32@random-0", 56, 37),
        ("torchvision/mobilenet_v3_small:32@random-0", 52, 32),
        ("embedded/glyph", 12, 0),  # it divides by a deviation first
    ],
)
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_a_network_is_fused_and_stays_close(
    reference: str, fused: int, with_activation: int, precision: Precision, monkeypatch: pytest.MonkeyPatch
) -> None:
    backbone = load_reference(reference)
    pixels = np.random.default_rng(0).integers(0, 256, (10, SIZE, SIZE), dtype=np.uint8)
    data = LocalData(pixels, np.arange(10) % 2, ("a", "b"))
    ready = FeaturePass(backbone, None, precision)
    found = convolutions(ready._trunk)
    if found or precision == "float32":  # bfloat16 needs a processor that has it
        assert (len(found), sum(each.activation is not None for each in found)) == (fused, with_activation)
    features = extract(backbone, None, data, None, precision)
    monkeypatch.setattr(FeaturePass, "_has_kernels", lambda self: False)
    plain = extract(backbone, None, data, None, precision)
    distance = np.linalg.norm(features - plain, axis=1) / np.linalg.norm(plain, axis=1)
    assert distance.max() < (1e-4 if precision == "float32" else 0.1)


class Network(nn.Module):
    """A few layers of the user's."""

    code: nn.Module
    nothing: nn.Module

    def __init__(self, made: Callable[[nn.Module], None]) -> None:
        super().__init__()
        self.conv, self.same = nn.Conv2d(1, CHANNELS, 3), nn.Conv2d(CHANNELS, CHANNELS, 3, padding="same")
        made(self)

    def forward(self, inputs: Tensor) -> Tensor:
        found = torch.relu(self.same(torch.relu(self.conv(inputs))))
        return found.amax(dim=(2, 3)) if found.shape[2] % 2 else found.mean(dim=(2, 3))


class Viewing(Network):
    """Takes maps for rows, as networks did before there were layouts."""

    def forward(self, inputs: Tensor) -> Tensor:
        found = torch.relu(self.conv(inputs))
        return found.view(found.size(0), -1)


class Dividing(Network):
    """Says nothing of an image without contrast: its deviation is 0."""

    def forward(self, inputs: Tensor) -> Tensor:
        centred = inputs - inputs.mean(dim=(1, 2, 3), keepdim=True)
        return super().forward(centred / inputs.std(dim=(1, 2, 3), keepdim=True))


class Code(Network):
    """Has a layer whose name a traced module needs for itself, and two that stand where fused ones would."""

    def forward(self, inputs: Tensor) -> Tensor:
        found: Tensor = self.code(super().forward(inputs))
        return found


class Tupled(Network):
    """Passes several tensors through a layer that does nothing."""

    def forward(self, inputs: Tensor) -> Tensor:
        first, second = self.nothing((self.conv(inputs), inputs[:, :, 1:-1, 1:-1]))
        found: Tensor = (torch.relu(first) + second).mean(dim=(2, 3))
        return found


def nothing(network: nn.Module) -> None:
    """Leave it as it is."""


def spectral(network: nn.Module) -> None:
    nn.utils.parametrizations.spectral_norm(network.get_submodule("same"))


def pruned(network: nn.Module) -> None:
    prune.random_unstructured(network.get_submodule("same"), "weight", 0.3)


def hooked(network: nn.Module) -> None:
    network.get_submodule("conv").register_forward_hook(lambda module, inputs, output: output.clamp(max=0.5))


def with_code(network: nn.Module) -> None:
    network.add_module("code", nn.Linear(CHANNELS, 3))
    network.add_module("fused_conv", nn.Linear(1, 1))


def with_identity(network: nn.Module) -> None:
    network.add_module("nothing", nn.Identity())


@pytest.mark.parametrize(
    ("kind", "made"),
    [
        (Network, nothing),
        (Network, spectral),
        (Network, hooked),
        (Network, pruned),
        (Viewing, nothing),
        (Dividing, nothing),
        (Code, with_code),
        (Tupled, with_identity),
    ],
    ids=["plain", "spectral norm", "hook", "pruned", "view", "division", "names", "identity of a tuple"],
)
def test_networks_of_users_give_what_they_give(
    kind: type[Network], made: Callable[[nn.Module], None], capsys: pytest.CaptureFixture[str]
) -> None:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = kind(made).eval().requires_grad_(False)
    backbone = Backbone("test/net", {"net": network}, ImagePreprocessing(size=SIZE, channels=1), "", "", "0" * 64)
    pixels = np.random.default_rng(0).integers(0, 256, (20, SIZE, SIZE), dtype=np.uint8)
    pixels[3], pixels[5] = 77, 255
    before = {name: value.clone() for name, value in network.state_dict().items()}
    with torch.inference_mode():
        exact = network(backbone.preprocessing(pixels)).numpy()
    found = extract(backbone, None, LocalData(pixels, np.arange(20) % 2, ("a", "b")))
    np.testing.assert_allclose(found, exact, rtol=1e-4, atol=1e-5)
    assert np.isnan(found).any() == (kind is Dividing)
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())
    assert not capsys.readouterr().err


def test_other_threads_run_their_networks_while_one_is_traced() -> None:
    glyph, stop = load_reference("embedded/glyph"), threading.Event()
    ready, inputs = FeaturePass(glyph, None), glyph.preprocessing(glyph.preprocessing.blank())

    def run() -> int:
        count = 0
        while not stop.is_set():
            ready.features(inputs)
            count += 1
        return count

    with ThreadPoolExecutor(1) as pool:
        running = pool.submit(run)
        try:
            for _ in range(5):
                FeaturePass(glyph, None)
        finally:
            stop.set()
        assert running.result() > 0


def test_a_hook_that_knows_the_network_it_was_made_for_sees_every_record() -> None:
    """It notes what passes in the network itself, of which a copy would read old notes."""

    class Noting(Network):
        def forward(self, inputs: Tensor) -> Tensor:
            super().forward(inputs)
            return seen["conv"].mean(dim=(2, 3))

    seen: dict[str, Tensor] = {}
    network = Noting(nothing).eval().requires_grad_(False)
    network.conv.register_forward_hook(lambda module, inputs, output: seen.update(conv=output))
    backbone = Backbone("test/net", {"net": network}, ImagePreprocessing(size=SIZE, channels=1), "", "", "0" * 64)
    pixels = np.random.default_rng(0).integers(0, 256, (200, SIZE, SIZE), dtype=np.uint8)
    found = extract(backbone, None, LocalData(pixels, np.arange(200) % 2, ("a", "b")))
    for start in range(0, 200, 50):
        exact = network(backbone.preprocessing(pixels[start : start + 50]))
        np.testing.assert_allclose(found[start : start + 50], exact.numpy(), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("reference", ["torchvision/resnet18:32@random-0", "embedded/glyph"])
def test_no_record_gives_no_features(reference: str) -> None:
    ready = FeaturePass(load_reference(reference), None)
    empty = ready.preprocessing(np.zeros((0, SIZE, SIZE), np.uint8))
    assert ready.features(empty).shape == (0, ready.features(ready.preprocessing(ready.preprocessing.blank())).shape[1])


def test_a_record_whose_input_is_not_a_number_has_no_features() -> None:
    ready = FeaturePass(load_reference("torchvision/resnet18:32@random-0"), None)
    inputs = torch.zeros(3, 3, 32, 32)
    inputs[1, 0, 5, 5] = torch.nan
    assert ready.features(inputs).isnan().all(dim=1).tolist() == [False, True, False]

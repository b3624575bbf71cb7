"""A record's features do not depend on its place in a batch: batches are formed only where that holds."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from common.backbones.backbone import Backbone
from common.backbones.controls import load_reference
from common.backbones.preprocessing import ImagePreprocessing
from common.backbones.tabular import AnyColumns
from common.batch_invariance import computes_alike
from common.data.local import LocalData
from common.feature_pass import FeaturePass
from common.features import extract

SIZE = 16


class Rows(nn.Module):
    """An image's pixels as a row, of odd length or not, through layers whose rounding may depend on its place."""

    def __init__(self, width: int, hidden: int, squash: nn.Module) -> None:
        super().__init__()
        self.width, self.squash = width, squash
        self.first, self.second = nn.Linear(width, hidden), nn.Linear(hidden, 8)

    def forward(self, inputs: Tensor) -> Tensor:
        found: Tensor = self.second(self.squash(self.first(inputs.flatten(1)[:, : self.width])))
        return found


def backbone_of(*stages: nn.Module) -> Backbone:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        for stage in stages:
            for value in stage.eval().requires_grad_(False).parameters():
                value.normal_()
    named = {str(number): stage for number, stage in enumerate(stages)}
    return Backbone("test/net", named, ImagePreprocessing(size=SIZE, channels=1), "", "", "0" * 64)


def images(count: int) -> LocalData:
    pixels = np.random.default_rng(0).integers(0, 256, (count, SIZE, SIZE), dtype=np.uint8)
    return LocalData(pixels, np.arange(count) % 2, ("a", "b"))


@pytest.mark.parametrize("squash", [nn.ReLU(), nn.Sigmoid(), nn.SiLU(), nn.Softplus()], ids=str)
@pytest.mark.parametrize("hidden", [5, 8, 10, 33])
@pytest.mark.parametrize("width", [5, 17, 33, 64, 65, 255])
def test_features_are_the_same_bits_at_every_place(width: int, hidden: int, squash: nn.Module) -> None:
    backbone, data = backbone_of(Rows(width, hidden, squash)), images(70)
    whole = extract(backbone, None, data)
    for first in (1, 2, 3, 7, 66):
        assert np.array_equal(extract(backbone, None, data.take(np.arange(first, 70))), whole[first:])


def squeezed(channels: tuple[int, int], kernel: int) -> nn.Sequential:
    """A convolution of a single place, which is a product."""
    first, second = channels
    return nn.Sequential(
        *(nn.Conv2d(1, first, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Conv2d(first, second, kernel, padding=kernel // 2)),
        *(nn.SiLU(), nn.Flatten()),
    )


@pytest.mark.parametrize("channels", [(4, 7), (5, 8), (8, 5), (33, 4), (8, 8), (16, 64), (58, 6)])
@pytest.mark.parametrize("kernel", [1, 3])
@pytest.mark.parametrize("pooled", [False, True])
def test_convolutions_give_the_same_bits_at_every_place(channels: tuple[int, int], kernel: int, pooled: bool) -> None:
    first, second = channels
    layers = (nn.Conv2d(1, first, 4, 3), nn.Conv2d(first, second, kernel), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    backbone, data = backbone_of(squeezed(channels, kernel) if pooled else nn.Sequential(*layers)), images(70)
    assert FeaturePass(backbone, None).batch == 64
    whole = extract(backbone, None, data)
    for start in (1, 2, 3, 66):
        assert np.array_equal(extract(backbone, None, data.take(np.arange(start, 70))), whole[start:])


@pytest.mark.parametrize(
    ("layer", "alike"),
    [
        (nn.Conv2d(33, 8, 1), False),
        (nn.Conv2d(8, 7, 1), False),
        (nn.Conv2d(8, 7, 3), False),
        (nn.Conv2d(33, 8, 3), True),
        (nn.Conv2d(8, 64, 1), True),
    ],
)
def test_a_convolution_of_a_single_place_is_a_product(layer: nn.Conv2d, alike: bool) -> None:
    network = nn.Sequential(layer, nn.Flatten())
    assert computes_alike(network, network, torch.zeros(2, layer.in_channels, 8, 8), 64) == alike


@pytest.mark.parametrize(
    ("width", "hidden", "squash", "batch"),
    [(64, 8, nn.ReLU(), 64), (65, 8, nn.ReLU(), 1), (64, 10, nn.ReLU(), 1), (64, 16, nn.Sigmoid(), 64)],
)
def test_batches_are_formed_where_rows_lie_alike(width: int, hidden: int, squash: nn.Module, batch: int) -> None:
    assert FeaturePass(backbone_of(Rows(width, hidden, squash)), None).batch == batch


@pytest.mark.parametrize(
    "reference",
    [
        *("embedded/glyph", "torchvision/resnet18:32@random-0", "tabular/identity:5"),
        "torchvision/shufflenet_v2_x1_0:32@random-0",  # layers of 58 channels
        "torchvision/regnet_y_400mf:32@random-0",  # products of 12 numbers
    ],
)
def test_networks_that_come_with_fedgraft_are_run_in_batches(reference: str) -> None:
    assert FeaturePass(load_reference(reference), None).batch == 64


def test_rounding_in_bfloat16_is_not_taken_for_company() -> None:
    assert FeaturePass(load_reference("torchvision/resnet18:32@random-0"), None, "bfloat16").batch == 64


def test_a_network_over_columns_is_run_one_by_one() -> None:
    """No columns are made up, so that nothing can be tried."""
    stages = {"hidden": nn.Sequential(nn.Linear(10, 8)).requires_grad_(False)}
    assert FeaturePass(Backbone("test/net", stages, AnyColumns(5), "", "", "0" * 64), None).batch == 1


def test_numbers_of_a_record_that_are_worked_out_singly_in_one_batch_only_are_noticed() -> None:
    squashed = nn.Sequential(nn.Flatten(), nn.Sigmoid())
    assert not computes_alike(squashed, squashed, torch.zeros(2, 1, 2, 3), 8)
    assert computes_alike(squashed, squashed, torch.zeros(2, 1, 2, 3), 64)


class Mixing(nn.Module):
    """A common way to standardise "the image", which takes the mean of all images."""

    def forward(self, inputs: Tensor) -> Tensor:
        return (inputs - inputs.mean()) / inputs.std()


class WithoutStatistics(nn.BatchNorm2d):
    """Statistics of the batch, also when nothing is trained."""

    def __init__(self) -> None:
        super().__init__(1, affine=False, track_running_stats=False)


class TimeFirst(nn.Module):
    """Rows laid out as recurrent networks have them: the last of them are summed singly, whose are another's."""

    def __init__(self, of: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.of = of

    def forward(self, inputs: Tensor) -> Tensor:
        """Sum 7 steps of 5 numbers each."""
        return self.of(inputs.flatten(1)[:, :35].reshape(len(inputs), 7, 5).transpose(0, 1).contiguous())


STEPS: dict[str, Callable[[Tensor], Tensor]] = {
    "sum": lambda steps: steps.sum(0),
    "mean": lambda steps: steps.mean(dim=0),
    "a view": lambda steps: steps.transpose(0, 1).sum(1),
    "all": lambda steps: steps.transpose(0, 1).amax((0, 2)).unsqueeze(1),
}


@pytest.mark.parametrize("first", [Mixing(), WithoutStatistics()], ids=["mean of all", "statistics of the batch"])
def test_a_network_that_mixes_records_is_run_one_by_one(first: nn.Module) -> None:
    backbone, data = (
        backbone_of(nn.Sequential(first, nn.Conv2d(1, 8, 4), nn.AdaptiveAvgPool2d(1), nn.Flatten())),
        images(70),
    )
    assert FeaturePass(backbone, None).batch == 1
    whole = extract(backbone, None, data)
    assert np.array_equal(extract(backbone, None, data.take(np.arange(1, 70))), whole[1:])


@pytest.mark.parametrize("of", STEPS)
def test_sums_along_which_records_lie_side_by_side_are_noticed(of: str) -> None:
    network = TimeFirst(STEPS[of])
    assert not computes_alike(network, network, torch.rand(2, 1, 8, 8), 8)


def test_the_control_that_sums_within_records_keeps_its_batches() -> None:
    network = nn.Sequential(nn.Unflatten(1, (1, 8)), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    assert computes_alike(network, network, torch.rand(2, 8, 8), 8)


def test_a_record_with_which_the_company_changes_is_noticed_by_what_comes_out() -> None:
    """No operation is known to mix records here."""

    class Mixes(nn.Module):
        def forward(self, inputs: Tensor) -> Tensor:
            return inputs + inputs.flip(0)

    assert not computes_alike(Mixes(), Mixes(), torch.rand(2, 8), 8)


class Failing(nn.Module):
    """A network that fails for white records."""

    def forward(self, inputs: Tensor) -> Tensor:
        """Look a row up by the brightness."""
        rows = torch.arange(8.0).repeat(9, 1)
        return rows[(inputs.flatten(1).mean(dim=1) * 10).long().clamp(min=0)] + inputs.flatten(1)[:, :8]


def test_a_record_that_the_network_fails_for_has_no_features_and_stops_nobody() -> None:
    """That a run ends with an error would tell that such a record is there."""
    stage = Failing()
    backbone = Backbone("test/net", {"0": stage}, ImagePreprocessing(size=SIZE, channels=1), "", "", "0" * 64)
    data = images(70)
    data.inputs[5] = 255
    found = extract(backbone, None, data)
    assert np.flatnonzero(np.isnan(found).any(axis=1)).tolist() == [5]
    assert np.array_equal(extract(backbone, None, data.take(np.arange(6, 70))), found[6:])


def test_a_network_that_fails_for_every_record_fails() -> None:
    class Broken(nn.Module):
        def forward(self, inputs: Tensor) -> Tensor:
            raise IndexError("out of range")

    backbone = Backbone("test/net", {"0": Broken()}, ImagePreprocessing(size=SIZE, channels=1), "", "", "0" * 64)
    with pytest.raises(IndexError):
        extract(backbone, None, images(3))

"""The cut: what is below it never moves."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from common.backbones.backbone import Backbone
from common.backbones.preprocessing import ImagePreprocessing
from common.errors import ConfigError
from common.grafting import Trunk, flatten


class Summarise(nn.Module):
    """A stage that passes two tensors on."""

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return x, x.mean(dim=(2, 3))


class Join(nn.Module):
    """A stage that takes them."""

    def forward(self, both: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
        return both[0].flatten(1).mean(dim=1, keepdim=True) + both[1]


@pytest.fixture
def backbone() -> Backbone:
    stages: dict[str, nn.Module] = {
        "stem": nn.Sequential(nn.Conv2d(1, 3, 3, padding=1), nn.BatchNorm2d(3), nn.Dropout(0.5)),
        "summary": Summarise(),
        "join": Join(),
    }
    return Backbone("test/tiny", stages, ImagePreprocessing(size=8, channels=1), "none", "nothing", "0" * 64)


def test_a_cut_at_the_end_is_the_whole_backbone(backbone: Backbone) -> None:
    images = torch.randn(5, 1, 8, 8)
    trunk = Trunk(backbone)
    expected: torch.Tensor | tuple[torch.Tensor, ...] = images
    for stage in backbone.stages.values():
        expected = stage(expected)
    assert isinstance(expected, torch.Tensor)
    assert torch.equal(trunk(images), expected.flatten(1))


def test_several_tensors_at_the_cut_lie_side_by_side(backbone: Backbone) -> None:
    features = Trunk(backbone, "summary")(torch.randn(5, 1, 8, 8))
    assert features.shape == (5, 3 * 8 * 8 + 3)


def test_flatten_keeps_the_order() -> None:
    assert flatten((torch.zeros(1, 2), torch.ones(1, 1, 2))).tolist() == [[0.0, 0.0, 1.0, 1.0]]


def test_training_mode_does_not_reach_the_trunk(backbone: Backbone) -> None:
    model = nn.Sequential(Trunk(backbone), nn.Linear(3, 2))
    before = {name: value.clone() for name, value in model[0].state_dict().items()}
    model.train()
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    for _ in range(3):
        optimizer.zero_grad()
        model(torch.randn(16, 1, 8, 8) * 5 + 3).square().sum().backward()
        optimizer.step()
    assert all(torch.equal(before[name], value) for name, value in model[0].state_dict().items())
    assert not any(module.training for module in model[0].modules())


def test_the_control_without_a_trunk_does_move(backbone: Backbone) -> None:
    stem = backbone.stages["stem"]
    stem.train()
    before = stem[1].running_mean.clone()  # type: ignore[index]  # nn.Sequential behind the name nn.Module
    stem(torch.randn(16, 1, 8, 8) * 5 + 3)
    assert not torch.equal(before, stem[1].running_mean)  # type: ignore[index]


def test_an_unknown_cut_names_the_nearest_stage(backbone: Backbone) -> None:
    with pytest.raises(ConfigError, match=r"stem, summary, join.*got 'sumary'; did you mean 'summary'"):
        Trunk(backbone, "sumary")

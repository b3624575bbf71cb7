"""The recipe of the embedded backbone: drawings, training and table, in small."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from torch import Tensor, nn

from common.backbones.embedded import Architecture, build_stages, summarise
from common.backbones.registry import GLYPH, load_backbone, untrained_twin
from common.errors import ConfigError
from simulations.pretraining.asset import save_asset
from simulations.pretraining.distortion import distort
from simulations.pretraining.families import Family
from simulations.pretraining.gallery import FAMILIES, Gallery, Recipe, Share
from simulations.pretraining.probe import RIDGE, choose, probe_accuracy
from simulations.pretraining.table import image_sets, measure_table, render, update_card
from simulations.pretraining.training import measure, train

SMALL = Recipe(
    seed=3,
    images=1920,
    batch=32,
    mixture={"strokes": Share(2, 0.5), "ellipses": Share(2, 0.5)},
    calibration=64,
    architecture=Architecture(widths=(16, 16, 32), blocks=(1, 1, 1), features=16),
)


def silent(step: int, loss: float, stages: nn.ModuleDict) -> None:
    """Take a step's report and say nothing."""


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.fixture(params=sorted(FAMILIES))
def family(request: pytest.FixtureRequest) -> Family:
    return FAMILIES[request.param](12, 7, "cpu")


def test_drawings_are_in_range_and_neither_blank_nor_alike(family: Family) -> None:
    labels = torch.arange(12).repeat(3)
    images = family.draw(labels, 32, seeded(0))
    assert images.shape == (36, 32, 32)
    assert images.min() >= 0
    assert images.max() <= 1
    assert images.std(dim=(1, 2)).median() > 0.05
    assert len({image.numpy().tobytes() for image in images}) == 36


def test_one_seed_gives_one_drawing(family: Family) -> None:
    labels = torch.arange(12)
    again = FAMILIES[family.name](12, 7, "cpu")
    assert torch.equal(family.draw(labels, 32, seeded(5)), again.draw(labels, 32, seeded(5)))
    assert not torch.equal(family.draw(labels, 32, seeded(5)), family.draw(labels, 32, seeded(6)))
    other = FAMILIES[family.name](12, 8, "cpu")
    assert not torch.equal(family.draw(labels, 32, seeded(5)), other.draw(labels, 32, seeded(5)))


def test_distorted_images_stay_in_range_and_repeat_with_the_seed() -> None:
    images = torch.rand(40, 32, 32, generator=seeded(0))
    distorted = distort(images, seeded(1))
    assert distorted.min() >= 0
    assert distorted.max() <= 1
    assert torch.equal(distorted, distort(images, seeded(1)))


def test_a_gallery_numbers_the_classes_of_all_families() -> None:
    gallery = Gallery(Recipe())
    images, labels = gallery.draw(256, seeded(0))
    assert gallery.classes == sum(share.classes for share in Recipe().mixture.values())
    assert len(images) == len(labels)
    assert labels.min() >= 0
    assert labels.max() < gallery.classes


@pytest.mark.parametrize("mixture", [{"strokes": Share(4, 0.9)}, {"scribbles": Share(4, 1.0)}])
def test_a_wrong_mixture_is_refused(mixture: dict[str, Share]) -> None:
    with pytest.raises(ConfigError, match="correct the mixture"):
        Gallery(replace(SMALL, mixture=mixture))


def test_a_few_steps_lower_the_loss() -> None:
    losses: list[float] = []
    train(SMALL, GLYPH.preprocessing, lambda step, loss, stages: losses.append(loss))
    assert len(losses) == SMALL.steps
    assert np.mean(losses[-10:]) < 0.7 * np.mean(losses[:10])


def test_the_same_recipe_gives_the_same_weights() -> None:
    short = replace(SMALL, images=96)
    first, second = (train(short, GLYPH.preprocessing, silent).state_dict() for _ in range(2))
    other = train(replace(short, seed=4), GLYPH.preprocessing, silent).state_dict()
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert not torch.equal(first["stem.conv.weight"], other["stem.conv.weight"])


def test_the_constants_turn_the_calibration_images_onto_uncorrelated_directions() -> None:
    stages = build_stages(SMALL.architecture)
    images = measure(stages, SMALL, GLYPH.preprocessing)
    assert images.dtype == torch.uint8
    summaries = summarise(stages, GLYPH.preprocessing(images.numpy())).double()
    pool = stages["pool"]
    turned = (summaries - pool.get_buffer("mean")) @ pool.get_buffer("projection").double()
    covariance = turned.T.cov()
    variances = covariance.diagonal()
    assert turned.mean(dim=0).abs().max() < 1e-3
    assert (variances.diff() < 1e-3).all()
    assert (covariance - variances.diag()).abs().max() < 1e-2 * variances.max()


def test_an_asset_is_written_with_its_card(tmp_path: Path) -> None:
    spec = replace(GLYPH, architecture=SMALL.architecture)
    stages = build_stages(SMALL.architecture)
    calibration = measure(stages, SMALL, spec.preprocessing)
    digest = save_asset(tmp_path, spec, stages, calibration, SMALL, {"seconds": 1})
    assert sorted(path.name for path in tmp_path.iterdir()) == ["glyph.json", "glyph.safetensors"]
    assert digest in (tmp_path / "glyph.json").read_text()


def test_the_probe_agrees_with_scikit_learn() -> None:
    centres = torch.randn(4, 30, generator=seeded(0))
    labels = torch.arange(4).repeat(20)
    points = centres[labels] + 1.5 * torch.randn(80, 30, generator=seeded(1))
    train_part, test_part = slice(0, 20), slice(20, 80)
    found = probe_accuracy(points[train_part], labels[train_part], points[test_part], labels[test_part])
    scaled = (points / points[train_part].square().sum(1).mean().sqrt()).numpy()
    model = LogisticRegression(C=1 / (20 * RIDGE), max_iter=2000).fit(scaled[train_part], labels[train_part])
    assert found == pytest.approx(model.score(scaled[test_part], labels[test_part]), abs=1 / 60 + 1e-9)


def test_the_probe_is_at_chance_without_signal() -> None:
    labels = torch.arange(4).repeat(100)
    noise: Tensor = torch.randn(400, 10, generator=seeded(0))
    assert probe_accuracy(noise[:80], labels[:80], noise[80:], labels[80:]) < 0.4


def test_labels_are_chosen_evenly() -> None:
    labels = np.repeat(np.arange(3), 9)
    chosen = choose(labels, 4, seed=0)
    assert np.bincount(labels[chosen]).tolist() == [4, 4, 4]
    assert len(set(chosen.tolist())) == 12


def test_training_pays_on_the_digits_and_the_table_says_which_sets_are_absent(tmp_path: Path) -> None:
    sets = image_sets(tmp_path)
    backbone = load_backbone(GLYPH.name)
    table = measure_table(backbone, untrained_twin(backbone, 0), sets, draws=3)
    for rows in table.values():
        assert rows["trained"]["digits"] > max(rows["random weights"]["digits"], rows["raw pixels"]["digits"]) + 2
    assert render(table, list(sets)).count("absent") == 4 * 6


def test_training_pays_on_every_other_set_at_hand() -> None:
    folder = Path(__file__).parents[3] / "shared" / "data"
    if not (folder / "image-pneumoniamnist").exists():
        pytest.skip(f"no other image sets in {folder}: only the digits were probed")
    backbone = load_backbone(GLYPH.name)
    others = image_sets(folder) | {"digits": None}
    table = measure_table(backbone, untrained_twin(backbone, 0), others, draws=3)
    for rows in table.values():
        for name in ("MNIST", "USPS"):
            assert rows["trained"][name] > max(rows["random weights"][name], rows["raw pixels"][name]) + 2, name
        for name in ("MedNIST", "PneumoniaMNIST"):  # ten or forty labels: a draw more or less is worth two points
            assert rows["trained"][name] > rows["raw pixels"][name] - 2, name


def test_a_table_goes_into_the_card_beside_what_was_there(tmp_path: Path) -> None:
    card = tmp_path / "card.json"
    card.write_text('{"name": "x"}')
    update_card(card, {"5": {"trained": {"digits": 90.0}}}, draws=3)
    assert json.loads(card.read_text()) == {
        "name": "x",
        "table": {"5": {"trained": {"digits": 90.0}}},
        "table_draws": 3,
    }

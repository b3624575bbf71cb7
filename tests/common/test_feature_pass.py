"""The feature pass: fast in every way that leaves a record's features alone."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from common.backbones.backbone import Backbone
from common.backbones.controls import load_reference, raw_pixels
from common.backbones.preprocessing import ImagePreprocessing
from common.data.local import LocalData
from common.errors import ConfigError
from common.feature_pass import (
    BATCHES_AHEAD,
    FEWEST_RECORDS,
    MOST_RECORDS,
    TEXTS,
    FeaturePass,
    Precision,
    batch_size,
)
from common.features import FeatureCache, address, extract
from common.folding import deviation, fold_norms, largest_deviation
from common.grafting import Trunk, threads
from common.made_up import made_up_records
from common.messages import ModelSpec
from common.precision import CLOSE_ENOUGH, WORTH_IT, bfloat16_deviation, computes_bfloat16, operations, resolve
from tests.models import minilm_folder
from tests.processes import wait_until

PRECISIONS: tuple[Precision, ...] = ("float32", "bfloat16")
SIZE = 24


class Normed(nn.Module):
    """Convolutions with their BatchNorms, in order."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(1, 16, 3, 2, bias=False), nn.BatchNorm2d(16)
        self.conv2, self.bn2 = nn.Conv2d(16, 32, 3, 2), nn.BatchNorm2d(32)

    def forward(self, images: Tensor) -> Tensor:
        inner = torch.relu(self.bn1(self.conv1(images)))
        return torch.relu(self.bn2(self.conv2(inner))).mean(dim=(2, 3))


class Misleading(Normed):
    """They stand in that order, but something happens between them."""

    def forward(self, images: Tensor) -> Tensor:
        inner = self.bn1(torch.relu(self.conv1(images)))
        return torch.relu(self.bn2(self.conv2(inner))).mean(dim=(2, 3))


class Forgetful(Normed):
    """Keeps what it saw last, as modules of users' do; a second thread would overwrite it."""

    def forward(self, images: Tensor) -> Tensor:
        self.seen = images
        for _ in range(20):
            torch.sin(images)  # time for another thread
        return super().forward(self.seen)


class Insistent(nn.Module):
    """Refuses anything but float32."""

    def forward(self, images: Tensor) -> Tensor:
        values = nn.functional.linear(images.flatten(1), torch.ones(4, SIZE**2))
        if values.dtype != torch.float32:
            raise RuntimeError("float32 only")
        return values


def made(network: nn.Module, name: str = "test/net") -> Backbone:
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(0)
        for norm in network.modules():
            if isinstance(norm, nn.BatchNorm2d):
                assert norm.running_mean is not None
                assert norm.running_var is not None
                norm.running_mean.normal_()
                norm.running_var.uniform_(0.5, 2)
                norm.weight.normal_()
                norm.bias.normal_()
    preprocessing = ImagePreprocessing(size=SIZE, channels=1)
    return Backbone(name, {"net": network.eval()}, preprocessing, "none", "nothing", name.ljust(64, "0"))


def images(count: int, seed: int = 0) -> LocalData:
    pixels = np.random.default_rng(seed).integers(0, 256, (count, SIZE, SIZE), dtype=np.uint8)
    return LocalData(pixels, np.arange(count) % 2, ("a", "b"))


@pytest.fixture(scope="module")
def glyph() -> Backbone:
    return load_reference("embedded/glyph")


@pytest.mark.parametrize("precision", PRECISIONS)
@settings(max_examples=8, deadline=None)
@given(chosen=st.lists(st.integers(0, 149), min_size=1, max_size=100, unique=True))
def test_a_record_has_the_same_bits_in_any_company_and_place(
    glyph: Backbone, precision: Precision, chosen: list[int]
) -> None:
    data = images(150)
    everything = _once(glyph, precision)
    assert np.array_equal(extract(glyph, None, data.take(np.array(chosen)), None, precision), everything[chosen])


_kept: dict[Precision, np.ndarray] = {}


def _once(backbone: Backbone, precision: Precision) -> np.ndarray:
    if precision not in _kept:
        _kept[precision] = extract(backbone, None, images(150), None, precision)
    return _kept[precision]


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("reference", ["embedded/glyph", "torchvision/resnet18:32@random-0"])
def test_the_bits_do_not_depend_on_the_number_of_cores(reference: str, precision: Precision) -> None:
    backbone, data = load_reference(reference), images(150)
    found = []
    for count in (1, 3):
        with threads(count):
            found.append(extract(backbone, None, data, None, precision))
    assert np.array_equal(found[0], found[1])


def test_a_text_in_bfloat16_has_the_same_bits_in_any_company() -> None:
    backbone = load_reference(f"hf/{minilm_folder()}:96")
    words = ("a fever of unknown origin in an otherwise healthy patient " * 12).split()
    texts = tuple(" ".join(words[: 3 + 5 * number]) for number in range(TEXTS + 3))
    data = LocalData(texts, np.arange(len(texts)) % 2, ("a", "b"), modality="text")
    together = extract(backbone, None, data, None, "bfloat16")
    for chosen in ([0], [5], [13, 2, 18]):
        assert np.array_equal(extract(backbone, None, data.take(np.array(chosen)), None, "bfloat16"), together[chosen])


def test_modules_that_remember_do_not_disturb_each_other() -> None:
    backbone, data = made(Forgetful()), images(400)
    with threads(4):
        found = extract(backbone, None, data)
    with threads(1):
        assert np.array_equal(found, extract(backbone, None, data))


@pytest.mark.parametrize("precision", PRECISIONS)
def test_the_pass_leaves_the_backbone_as_it_is(precision: Precision) -> None:
    backbone = made(Normed())
    before = {name: value.clone() for name, value in backbone.stages["net"].state_dict().items()}
    extract(backbone, None, images(20), None, precision)
    after = backbone.stages["net"].state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) and before[name].dtype == after[name].dtype for name in before)


def test_an_error_in_a_worker_is_raised_and_nothing_hangs() -> None:
    with pytest.raises(RuntimeError, match="float32 only"):
        extract(made(Insistent()), None, images(500), None, "bfloat16")


def test_who_stops_watching_stops_the_pass() -> None:
    seen = []

    def stop(done: int, total: int) -> None:
        seen.append(done)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        extract(made(Normed()), None, images(500), stop)
    assert len(seen) == 1


def test_the_progress_counts_every_record_once() -> None:
    seen: list[tuple[int, int]] = []
    extract(made(Normed()), None, images(150), lambda done, total: seen.append((done, total)))
    assert [total for _, total in seen] == [150] * len(seen)
    assert [done for done, _ in seen] == sorted({done for done, _ in seen})
    assert seen[-1][0] == 150


def test_batches_shrink_as_records_grow() -> None:
    sizes = [batch_size(ImagePreprocessing(size=size, channels=3)) for size in (8, 64, 96, 224, 512)]
    assert sizes == sorted(sizes, reverse=True)
    assert sizes[0] == MOST_RECORDS
    assert sizes[-1] == FEWEST_RECORDS
    half = ImagePreprocessing(size=96, channels=3)
    assert batch_size(half, "bfloat16") == 2 * batch_size(half, "float32")


def examples(backbone: Backbone) -> Tensor:
    prepared = backbone.preprocessing(made_up_records(backbone.preprocessing, 4))
    assert isinstance(prepared, Tensor)
    return prepared


def norms(trunk: nn.Module) -> int:
    return sum(isinstance(module, nn.BatchNorm2d) for module in trunk.modules())


def test_batch_norms_behind_convolutions_are_folded() -> None:
    backbone = made(Normed())
    folded = fold_norms(Trunk(backbone), examples(backbone))
    assert norms(folded) == 0
    assert largest_deviation(Trunk(backbone), folded, backbone.preprocessing(images(50).inputs)) < 1e-5


def test_a_torchvision_network_is_folded_whole() -> None:
    backbone = load_reference("torchvision/resnet18:32@random-0")
    assert norms(Trunk(backbone)) == 20
    assert norms(fold_norms(Trunk(backbone), examples(backbone))) == 0


def test_the_control_that_only_looks_foldable_is_left_alone() -> None:
    backbone = made(Misleading())
    assert norms(fold_norms(Trunk(backbone), examples(backbone))) == 2


def test_without_examples_nothing_is_folded() -> None:
    assert norms(fold_norms(Trunk(made(Normed())), None)) == 2


@settings(max_examples=30, deadline=None)
@given(shift=st.floats(1e-3, 1), record=st.integers(0, 9))
def test_the_deviation_is_that_of_the_worst_record(shift: float, record: int) -> None:
    exact = torch.eye(10, dtype=torch.float64)
    found = exact.clone()
    found[record, 3] += shift
    assert deviation(exact, found) == pytest.approx(shift)


def test_every_ingredient_of_the_key_leads_to_a_miss(tmp_path: Path) -> None:
    cache, data = FeatureCache(tmp_path), images(5)
    base = raw_pixels(4)
    other = Backbone("b", {**base.stages, "more": nn.Identity()}, base.preprocessing, "", "", "1" * 64)
    finer = Backbone("b", dict(base.stages), ImagePreprocessing(size=5, channels=1), "", "", base.digest)
    bright = Backbone("b", dict(base.stages), ImagePreprocessing(size=4, channels=1, mean=0.4), "", "", base.digest)
    keys: list[tuple[Backbone, str | None, LocalData, Precision]] = [
        (base, None, data, "float32"),
        (base, None, data, "bfloat16"),
        (other, "pixels", data, "float32"),
        (other, "more", data, "float32"),
        (finer, None, data, "float32"),
        (bright, None, data, "float32"),
        (base, None, images(5, seed=1), "float32"),
    ]
    for backbone, cut, records, precision in keys:
        for expected in (5, 0):  # a miss, then a hit
            computed: list[int] = []
            cache.features(backbone, cut, records, lambda done, total: computed.append(total), precision)  # noqa: B023
            assert sum(computed) == expected, (backbone.name, cut, precision)
    assert len({address(backbone, cut, precision) for backbone, cut, _, precision in keys}) == len(keys) - 1


def test_auto_takes_float32_for_small_networks_on_every_machine(glyph: Backbone) -> None:
    assert operations(glyph, "pool") < WORTH_IT
    assert resolve("auto", glyph, None) == "float32"


@pytest.mark.parametrize("precision", PRECISIONS)
def test_a_precision_that_is_named_is_taken(glyph: Backbone, precision: Precision) -> None:
    assert resolve(precision, glyph, None) == precision


def test_operations_are_counted() -> None:
    side, inner = (SIZE - 3) // 2 + 1, ((SIZE - 3) // 2 + 1 - 3) // 2 + 1
    assert operations(made(Normed()), "net") == 2 * (side**2 * 16 * 9 + inner**2 * 32 * 9 * 16)


def test_the_measured_deviation_is_kept_and_holds_for_other_records(glyph: Backbone) -> None:
    found = bfloat16_deviation(glyph, "pool")
    assert found is not None
    assert 0.001 < found < CLOSE_ENOUGH
    assert bfloat16_deviation(glyph, "pool") == found
    data = images(100)
    exact, half = (torch.from_numpy(extract(glyph, None, data, None, precision)) for precision in PRECISIONS)
    assert deviation(exact, half) < 10 * found


def test_a_network_that_cannot_run_in_bfloat16_is_left_in_float32() -> None:
    assert bfloat16_deviation(made(Insistent(), "insistent"), "net") is None


class Cancelling(nn.Module):
    """Takes the difference of two nearly equal numbers: what bfloat16 cannot do."""

    def __init__(self) -> None:
        super().__init__()
        self.wide = nn.Conv2d(1, 8, SIZE)

    def forward(self, images: Tensor) -> Tensor:
        values: Tensor = self.wide(images + 1000) - self.wide(torch.full_like(images, 1000.0))
        return values.flatten(1)


def test_the_control_that_bfloat16_ruins_is_not_close_enough() -> None:
    found = bfloat16_deviation(made(Cancelling(), "cancelling"), "net")
    assert found is not None
    assert found > CLOSE_ENOUGH


@pytest.mark.skipif(not computes_bfloat16(), reason="the processor has no instructions for bfloat16")
def test_auto_takes_bfloat16_for_a_large_network_that_stays_close() -> None:
    assert resolve("auto", load_reference("torchvision/resnet18:64@random-0"), "layer4") == "bfloat16"


def test_an_unknown_cut_is_refused_before_anything_is_measured(glyph: Backbone) -> None:
    with pytest.raises(ConfigError, match=r"model\.cut"):
        resolve("auto", glyph, "stage9")


def test_a_specification_without_a_precision_means_float32() -> None:
    facts = {"backbone": "b", "backbone_digest": "0" * 64, "cut": "c", "head": "linear", "hidden": 1, "classes": ("a",)}
    assert ModelSpec.model_validate(facts).precision == "float32"


def test_a_ready_trunk_gives_what_the_trunk_gives(glyph: Backbone) -> None:
    prepared = glyph.preprocessing(images(7).inputs)
    plain = Trunk(glyph)(prepared)
    assert torch.allclose(FeaturePass(glyph, None).features(prepared), plain, atol=1e-4)


def test_no_more_is_computed_than_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    computed, compute = [], FeaturePass._batch

    def counted(self: FeaturePass, trunk: nn.Module, inputs: Any, rows: Any) -> Any:
        computed.append(len(rows))
        return compute(self, trunk, inputs, rows)

    monkeypatch.setattr(FeaturePass, "_batch", counted)
    workers = max(1, torch.get_num_threads())
    ready = FeaturePass(made(Normed()), "net")
    batches = ready.run(np.zeros((40 * workers * ready.batch, SIZE, SIZE), np.uint8))
    next(batches)
    ahead = BATCHES_AHEAD * workers + 1
    assert wait_until(lambda: len(computed) == ahead)
    time.sleep(0.2)
    assert len(computed) == ahead
    assert 1 + sum(1 for _ in batches) == 40 * workers == len(computed)

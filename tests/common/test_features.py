"""The feature cache: computed once, never stale, never anybody else's."""

from __future__ import annotations

import ctypes
import dataclasses
import gc
import multiprocessing
import os
import shutil
import stat
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from common.backbones.backbone import Backbone
from common.backbones.controls import load_reference, raw_pixels
from common.backbones.preprocessing import ImagePreprocessing
from common.data.local import LocalData
from common.errors import ConfigError
from common.feature_pass import MOST_RECORDS as BATCH
from common.features import FeatureCache, address, extract, first_not_finite
from common.grafting import Trunk
from common.segments import bytes_of
from tests.models import minilm_folder


def images(count: int, seed: int = 0) -> LocalData:
    pixels = np.random.default_rng(seed).integers(0, 256, (count, 12, 12), dtype=np.uint8)
    return LocalData(pixels, np.arange(count) % 2, ("a", "b"))


@pytest.fixture
def cache(tmp_path: Path) -> FeatureCache:
    return FeatureCache(tmp_path / "cache")


def test_the_second_time_nothing_is_computed(cache: FeatureCache) -> None:
    backbone, computed = raw_pixels(4), []
    data = images(3 * BATCH + 5)
    first = cache.features(backbone, None, data, lambda done, total: computed.append(total))
    again = cache.features(backbone, None, data, lambda done, total: computed.append(-1))
    assert set(computed) == {len(data)}
    assert np.array_equal(first, again)
    assert np.array_equal(first, extract(backbone, None, data))


def test_only_new_records_are_computed(cache: FeatureCache) -> None:
    backbone, computed = raw_pixels(4), []
    data = images(100)
    cache.features(backbone, None, data.take(np.arange(60)))
    values = cache.features(backbone, None, data, lambda done, total: computed.append((done, total)))
    assert computed == [(40, 40)]
    assert np.array_equal(values, extract(backbone, None, data))


@settings(max_examples=20, deadline=None)
@given(order=st.lists(st.integers(0, 29), min_size=1, max_size=80))
def test_any_order_and_any_repetition_gives_each_record_its_own(
    order: list[int], tmp_path_factory: pytest.TempPathFactory
) -> None:
    backbone, data = raw_pixels(4), images(30)
    everything = extract(backbone, None, data)
    cache = FeatureCache(tmp_path_factory.mktemp("cache"))
    half = np.array(order[: len(order) // 2 + 1])
    assert np.array_equal(cache.features(backbone, None, data.take(half)), everything[half])
    assert np.array_equal(cache.features(backbone, None, data.take(np.array(order))), everything[order])


def test_a_record_has_the_same_bits_in_any_company() -> None:
    backbone, data = load_reference("embedded/glyph"), images(BATCH + 7)
    together = extract(backbone, None, data)
    alone = np.concatenate([extract(backbone, None, data.take(np.array([k]))) for k in (0, 5, BATCH, BATCH + 6)])
    assert np.array_equal(together[[0, 5, BATCH, BATCH + 6]], alone)


def test_each_ingredient_of_the_key_has_its_own_address() -> None:
    backbone = raw_pixels(4)
    other_preprocessing = ImagePreprocessing(size=5, channels=1)
    deeper = dataclasses.replace(
        backbone, stages={"pixels": backbone.stages["pixels"], "more": backbone.stages["pixels"]}
    )
    variants: list[tuple[Backbone, str | None]] = [
        (backbone, None),
        (dataclasses.replace(backbone, digest="1" * 64), None),
        (dataclasses.replace(backbone, preprocessing=other_preprocessing), None),
        (deeper, "more"),
    ]
    assert len({address(*variant) for variant in variants}) == len(variants)
    assert address(deeper, "pixels") == address(backbone, None)


def test_changed_pixels_are_another_record(cache: FeatureCache) -> None:
    backbone, data = raw_pixels(4), images(10)
    before = np.array(cache.features(backbone, None, data))
    pixels = np.array(data.inputs)
    pixels[3, 0, 0] ^= 255
    after = cache.features(backbone, None, dataclasses.replace(data, inputs=pixels))
    assert not np.array_equal(before[3], after[3])
    assert np.array_equal(np.delete(before, 3, axis=0), np.delete(after, 3, axis=0))


def test_files_are_for_their_owner_only(cache: FeatureCache) -> None:
    cache.features(raw_pixels(4), None, images(3))
    files = [path for path in cache.folder.rglob("*") if path.is_file()]
    assert len(files) == 1
    assert {stat.S_IMODE(path.stat().st_mode) for path in files} == {0o600}
    assert stat.S_IMODE(files[0].parent.stat().st_mode) == 0o700


def test_features_are_mapped_not_copied_and_read_only(cache: FeatureCache) -> None:
    backbone, data = raw_pixels(4), images(20)
    values = cache.features(backbone, None, data)
    assert isinstance(values, np.memmap)
    with pytest.raises(ValueError, match="read-only"):
        values[0, 0] = 1.0


def test_a_damaged_segment_is_one_sentence(cache: FeatureCache) -> None:
    backbone, data = raw_pixels(4), images(5)
    cache.features(backbone, None, data)
    (segment,) = cache.folder.rglob("*.safetensors")
    segment.write_bytes(segment.read_bytes()[:100])
    with pytest.raises(ConfigError, match=r"is damaged .* delete it and run again"):
        cache.features(backbone, None, data)


def test_features_are_on_their_way_to_the_disk_without_a_name(cache: FeatureCache) -> None:
    """A pass that is killed leaves nothing behind that purging would miss."""
    seen: list[list[Path]] = []

    def look(done: int, total: int) -> None:
        seen.append([path for path in cache.folder.rglob("*") if path.is_file()])
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        cache.features(raw_pixels(4), None, images(3 * BATCH), look)
    assert seen == [[]]
    assert not [path for path in cache.folder.rglob("*") if path.is_file()]


def settled_bytes() -> int:
    """What this process holds without the garbage of other tests, which would go at any moment, or be used again."""
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    return resident_anonymous_bytes()


def test_while_features_are_computed_few_of_them_are_in_memory(cache: FeatureCache) -> None:
    count, backbone = 120 * BATCH, raw_pixels(64)
    data = images(count)
    whole = count * 64 * 64 * 4
    cache.features(backbone, None, images(BATCH, seed=1))  # what is loaded and made once
    before, most = settled_bytes(), []
    cache.features(backbone, None, data, lambda done, total: most.append(resident_anonymous_bytes()))
    most.append(resident_anonymous_bytes())
    assert max(most) - before < whole // 2  # a few batches, in all cores' hands, are less than a third


def test_the_control_that_keeps_them_all_is_noticed() -> None:
    count, backbone = 120 * BATCH, raw_pixels(64)
    extract(backbone, None, images(BATCH, seed=1))
    before = settled_bytes()
    kept = extract(backbone, None, images(count))
    assert resident_anonymous_bytes() - before > kept.nbytes // 2


def test_many_features_that_lie_apart_are_put_together_outside_of_memory(cache: FeatureCache) -> None:
    count, backbone = 120 * BATCH, raw_pixels(64)
    data = images(count)
    half, order = np.arange(0, count, 2), np.random.default_rng(0).permutation(count)
    cache.features(backbone, None, data.take(half))
    cache.features(backbone, None, data)
    before = settled_bytes()
    for chosen in (np.arange(count), order):
        found = cache.features(backbone, None, data.take(chosen))
        assert isinstance(found, np.memmap)
        assert resident_anonymous_bytes() - before < found.nbytes // 2
        with pytest.raises(ValueError, match="read-only"):
            found[0, 0] = 1.0
        for row in (0, 1, count // 2, count - 1):
            assert np.array_equal(found[[row]], extract(backbone, None, data.take(chosen[[row]])))
    assert len(list(cache.folder.rglob("*.*"))) == 2


def resident_anonymous_bytes() -> int:
    """Memory of this process that is no file's."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("RssAnon:"))


def test_purging_forgets_everything(cache: FeatureCache) -> None:
    backbone, data, computed = raw_pixels(4), images(5), []
    cache.features(backbone, None, data)
    assert cache.purge() > 0
    cache.features(backbone, None, data, lambda done, total: computed.append(total))
    assert computed == [5]


def fill(folder: Path, start: int) -> None:
    FeatureCache(folder).features(raw_pixels(4), None, images(200).take(np.arange(start, 200)))


def test_two_processes_may_share_it(cache: FeatureCache) -> None:
    context = multiprocessing.get_context("spawn")
    children = [context.Process(target=fill, args=(cache.folder, start)) for start in (0, 50)]
    for child in children:
        child.start()
    for child in children:
        child.join()
    assert [child.exitcode for child in children] == [0, 0]
    data = images(200)
    assert np.array_equal(cache.features(raw_pixels(4), None, data), extract(raw_pixels(4), None, data))


def test_the_first_feature_that_is_not_finite_is_found() -> None:
    values = np.zeros((5000, 3), dtype=np.float32)
    assert first_not_finite(values) is None
    values[4500, 1] = np.inf
    values[4200, 2] = np.nan
    assert first_not_finite(values) == 4200


def test_the_cache_stays_within_its_bound(tmp_path: Path) -> None:
    data, bound = images(20), 7000
    small = FeatureCache(tmp_path / "cache", most_bytes=bound)
    for size in (4, 5):  # about 2,100 and 2,900 bytes
        small.features(raw_pixels(size), None, data)
    os.utime(tmp_path / "cache" / address(raw_pixels(5), None), (0, 0))
    small.features(raw_pixels(6), None, data)  # 3,800 more: the one used longest ago makes room
    assert bytes_of(small.folder) <= bound
    computed: list[int] = []
    small.features(raw_pixels(4), None, data, lambda done, total: computed.append(4))
    assert not computed
    small.features(raw_pixels(5), None, data, lambda done, total: computed.append(5))
    assert computed == [5]


def test_features_that_can_never_fit_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="FEDGRAFT_CACHE_GIB"):
        FeatureCache(tmp_path / "cache", most_bytes=100).features(raw_pixels(8), None, images(20))


def test_a_cache_that_cannot_be_made_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match=r"file/cache/.* cannot be made: Not a directory; .* in FEDGRAFT_CACHE"):
        FeatureCache(tmp_path / "file" / "cache").features(raw_pixels(8), None, images(20))


def test_a_folder_that_another_process_drops_is_computed_again(cache: FeatureCache) -> None:
    data = images(10)
    before = np.array(cache.features(raw_pixels(4), None, data))

    def drop(done: int, total: int) -> None:
        shutil.rmtree(cache.folder / address(raw_pixels(4), None), ignore_errors=True)

    shutil.rmtree(cache.folder)
    assert np.array_equal(cache.features(raw_pixels(4), None, data, drop), before)


def test_a_texts_features_do_not_depend_on_its_company(tmp_path: Path) -> None:
    """Padding is left out while features are computed: how much depends on each text alone, to the last bit."""
    backbone = load_reference(f"hf/{minilm_folder()}:96")
    words = ("a fever of unknown origin in an otherwise healthy patient " * 12).split()
    texts = tuple(" ".join(words[: 3 + 7 * number]) for number in range(14))
    data = LocalData(texts, np.arange(14) % 2, ("a", "b"), modality="text")
    together = extract(backbone, None, data)
    for chosen in ([0], [5], [13], [13, 2, 5]):
        assert np.array_equal(extract(backbone, None, data.take(np.array(chosen))), together[chosen])
    plain = Trunk(backbone)(backbone.preprocessing(texts)).numpy()
    assert np.allclose(together, plain, atol=1e-4)

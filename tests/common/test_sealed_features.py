"""Sealed features: the same values, no byte of them in a file, and nothing that was changed is ever used."""

from __future__ import annotations

import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
from hypothesis import given
from hypothesis import strategies as st

from common import segments
from common.backbones.controls import raw_pixels
from common.data.local import LocalData
from common.errors import ConfigError
from common.features import FeatureCache, extract
from common.sealing import Seal, SealBrokenError, make_seal, read_seal
from common.segments import bytes_of

SEAL, OTHER = Seal(bytes(range(32))), Seal(bytes(32))


def images(count: int, seed: int = 0) -> LocalData:
    pixels = np.random.default_rng(seed).integers(0, 256, (count, 12, 12), dtype=np.uint8)
    return LocalData(pixels, np.arange(count) % 2, ("a", "b"))


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FeatureCache:
    """A sealed cache whose segments hold 16 records each."""
    monkeypatch.setattr(segments, "SEALED_PART_BYTES", 16 * 16 * 4)
    return FeatureCache(tmp_path / "cache", seal=SEAL)


def sealed_files(cache: FeatureCache) -> list[Path]:
    return sorted(cache.folder.glob("*/*"))


def test_sealed_features_are_those_computed_and_are_computed_once(cache: FeatureCache) -> None:
    backbone, data, computed = raw_pixels(4), images(100), []
    first = cache.features(backbone, None, data, lambda done, total: computed.append(total))
    order = np.random.default_rng(1).permutation(100)
    again = cache.features(backbone, None, data.take(order), lambda done, total: computed.append(-1))
    assert set(computed) == {100}
    assert np.array_equal(first, extract(backbone, None, data))
    assert np.array_equal(again, first[order])
    assert len(sealed_files(cache)) == 7
    assert all(stat.S_IMODE(path.stat().st_mode) == 0o600 for path in sealed_files(cache))


def test_no_file_holds_a_feature_or_a_digest_or_is_named_by_one(cache: FeatureCache) -> None:
    data = images(40)
    values = cache.features(raw_pixels(4), None, data)
    plain = FeatureCache(cache.folder.parent / "plain")
    plain.features(raw_pixels(4), None, data)

    def found(files: list[Path]) -> list[bool]:
        text = b"".join(path.read_bytes() for path in files)
        return [values[7, :4].tobytes() in text, data.record_digests()[7].tobytes() in text]

    assert found(sealed_files(plain)) == [True, True]  # they would be found
    assert found(sealed_files(cache)) == [False, False]
    names = {path.name for path in sealed_files(cache)}
    cache.purge()
    cache.features(raw_pixels(4), None, data)
    assert not names & {path.name for path in sealed_files(cache)}


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[-5] ^= 1
    path.write_bytes(data)


@pytest.mark.parametrize(
    "spoil",
    [
        lambda files: flip(files[0]),
        lambda files: files[0].write_bytes(files[0].read_bytes()[:-1]),
        lambda files: files[0].write_bytes(files[1].read_bytes()),
        lambda files: files[0].write_bytes(b""),
    ],
)
def test_what_was_changed_cut_or_exchanged_is_refused(spoil: Callable[[list[Path]], Any], cache: FeatureCache) -> None:
    data = images(40)
    cache.features(raw_pixels(4), None, data)
    spoil(sealed_files(cache))
    with pytest.raises(ConfigError, match="do not open"):
        cache.features(raw_pixels(4), None, data)
    assert cache.purge() > 0
    assert len(cache.features(raw_pixels(4), None, data)) == 40


def test_another_key_opens_nothing(cache: FeatureCache) -> None:
    data = images(20)
    cache.features(raw_pixels(4), None, data)
    with pytest.raises(ConfigError, match="sealed with another key"):
        FeatureCache(cache.folder, seal=OTHER).features(raw_pixels(4), None, data)


def test_features_that_are_not_sealed_are_not_used_and_the_other_way_round(cache: FeatureCache) -> None:
    backbone, data = raw_pixels(4), images(20)
    plain = FeatureCache(cache.folder)
    plain.features(backbone, None, data)
    assert cache.kept(backbone, None, data.record_digests()) is None
    cache.features(backbone, None, data)
    segments.delete_segments(cache.folder, (segments.PLAIN,))
    assert plain.kept(backbone, None, data.record_digests()) is None
    assert cache.kept(backbone, None, data.record_digests()) is not None
    assert bytes_of(cache.folder) == sum(path.stat().st_size for path in sealed_files(cache))


@pytest.mark.parametrize("sealed", [True, False])
def test_some_records_are_dropped_and_no_others(sealed: bool, cache: FeatureCache) -> None:
    used = cache if sealed else FeatureCache(cache.folder)
    backbone, data = raw_pixels(4), images(40)
    before = used.features(backbone, None, data)
    unwanted = {data.record_digests()[row].tobytes() for row in (3, 17)}
    assert used.drop(lambda digests: np.array([one.tobytes() in unwanted for one in digests])) == 2
    assert used.kept(backbone, None, data.record_digests()[[3]]) is None
    kept = np.setdiff1d(np.arange(40), [3, 17])
    left = used.kept(backbone, None, data.record_digests()[kept])
    assert left is not None
    assert np.array_equal(left, before[kept])


def test_what_does_not_open_is_dropped_with_the_unwanted(cache: FeatureCache) -> None:
    cache.features(raw_pixels(4), None, images(40))
    other = FeatureCache(cache.folder, seal=OTHER)
    assert other.drop(lambda digests: np.zeros(len(digests), dtype=np.bool_)) == 0
    assert not sealed_files(cache)


def test_features_that_do_not_fit_into_memory_are_refused(cache: FeatureCache, monkeypatch: pytest.MonkeyPatch) -> None:
    cache.features(raw_pixels(4), None, images(40))
    full = type("Memory", (), {"available": 1000})
    monkeypatch.setattr(psutil, "virtual_memory", lambda: full)
    with pytest.raises(ConfigError, match="decrypted into memory"):
        cache.features(raw_pixels(4), None, images(40))


@given(data=st.binary(max_size=200), name=st.text(max_size=20), flipped=st.integers(0, 10_000))
def test_a_seal_opens_what_it_closed_and_nothing_else(data: bytes, name: str, flipped: int) -> None:
    closed = SEAL.close(data, name)
    assert SEAL.open(closed, name) == data
    changed = bytearray(closed)
    changed[flipped % len(changed)] ^= 1 << flipped % 8
    for bad in (
        lambda: SEAL.open(bytes(changed), name),
        lambda: SEAL.open(closed, name + "x"),
        lambda: OTHER.open(closed, name),
    ):
        with pytest.raises(SealBrokenError):
            bad()


def test_a_key_is_its_owners_alone_and_is_never_overwritten(tmp_path: Path) -> None:
    path = tmp_path / "cache.key"
    with pytest.raises(ConfigError, match="fedgraft node cache-key"):
        read_seal(path)
    make_seal(path)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert len(read_seal(path).key) == 32
    assert "key" not in repr(read_seal(path))
    with pytest.raises(ConfigError, match="exists already"):
        make_seal(path)
    path.chmod(0o640)
    with pytest.raises(ConfigError, match="others can read"):
        read_seal(path)
    path.chmod(0o600)
    path.write_bytes(b"short")
    with pytest.raises(ConfigError, match="expected a key of 32 bytes"):
        read_seal(path)

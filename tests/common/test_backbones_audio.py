"""Sounds: what transformers' own feature extractors give, and spectrograms for image backbones."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from sklearn.linear_model import LogisticRegression

from common.backbones.audio import AudioPreprocessing
from common.backbones.backbone import Backbone
from common.backbones.hf_files import quiet
from common.backbones.registry import load_backbone
from common.backbones.spectrogram import LogMel, SpectrogramPreprocessing, for_audio, mel_filters, resample
from common.backbones.vectors import WordPreprocessing
from common.data.records import Clip
from common.errors import ConfigError
from common.grafting import Trunk, layout

sounds = arrays.arrays(np.int16, st.integers(0, 3000), elements=st.integers(-32768, 32767))
rates = st.sampled_from([4000, 8000, 11025, 16000, 44100])


def tone(hertz: float, seconds: float = 0.5, rate: int = 8000, loudness: float = 0.5) -> Clip:
    time = np.arange(int(seconds * rate)) / rate
    return Clip(np.rint(32767 * loudness * np.sin(2 * np.pi * hertz * time)).astype(np.int16), rate)


@pytest.mark.parametrize("scale", ["htk", "slaney"])
def test_mel_filters_are_those_of_transformers(scale: str) -> None:
    from transformers.audio_utils import mel_filter_bank

    norm = "slaney" if scale == "slaney" else None
    theirs = mel_filter_bank(201, 80, 0.0, 8000.0, 16_000, norm=norm, mel_scale=scale)
    ours = mel_filters(16_000, 400, 80, scale)
    np.testing.assert_allclose(ours, theirs.T, atol=1e-9)


def test_whisper_gets_what_its_own_extractor_gives() -> None:
    from transformers import WhisperFeatureExtractor

    clips = (tone(440, 1.3, 16_000), tone(3000, 2.5, 16_000))
    spectrograms, mask = AudioPreprocessing(16_000, 2, normalise=False, mel_bins=80)(clips)
    with quiet():
        extractor = WhisperFeatureExtractor(chunk_length=2)
        theirs = extractor([clip.samples / 32768 for clip in clips], sampling_rate=16_000, return_tensors="np")
    np.testing.assert_allclose(spectrograms.numpy(), theirs["input_features"], atol=2e-3)
    assert spectrograms.shape == (2, 80, 200)
    assert mask.sum(dim=1).tolist() == [65, 100]


def test_wav2vec2_gets_what_its_own_extractor_gives() -> None:
    from transformers import Wav2Vec2FeatureExtractor

    clips = (tone(440, 0.3, 16_000), tone(300, 1.5, 16_000))
    waves, mask = AudioPreprocessing(16_000, 1, normalise=True)(clips)
    extractor = Wav2Vec2FeatureExtractor(return_attention_mask=True, do_normalize=True)
    with quiet():
        theirs = extractor(
            [clip.samples[:16_000] / np.float32(32768) for clip in clips],
            sampling_rate=16_000,
            padding="max_length",
            max_length=16_000,
            return_tensors="np",
        )
    np.testing.assert_allclose(waves.numpy(), theirs["input_values"], atol=1e-4)
    np.testing.assert_array_equal(mask.numpy(), theirs["attention_mask"])


@given(samples=sounds, rate=rates)
@settings(max_examples=60, deadline=None)
def test_any_clip_becomes_finite_and_of_one_shape(samples: np.ndarray, rate: int) -> None:
    clip = (Clip(samples, rate),)
    for preprocessing in (AudioPreprocessing(4000, 1, True), AudioPreprocessing(16_000, 1, False, mel_bins=10)):
        sound, mask = preprocessing(clip)
        assert bool(torch.isfinite(sound).all())
        assert set(mask.unique().tolist()) <= {0, 1}
        assert preprocessing.truncated(clip) == int(len(samples) > rate)
    image = LogMel()(clip[0])
    assert image.dtype == np.uint8
    assert image.shape[0] == 64
    assert image.shape[1] >= 1


@given(samples=arrays.arrays(np.int16, st.integers(400, 3000), elements=st.integers(-16000, 16000)))
@settings(max_examples=30, deadline=None)
def test_a_spectrogram_does_not_depend_on_loudness(samples: np.ndarray) -> None:
    quiet_one, loud = LogMel()(Clip(samples, 8000)), LogMel()(Clip(2 * samples, 8000))
    assert int(np.abs(quiet_one.astype(int) - loud.astype(int)).max(initial=0)) <= 1


def test_resampling_keeps_a_tone() -> None:
    found = resample(tone(440, 1, 44_100), 8000)
    expected = resample(tone(440, 1, 8000), 8000)
    assert found.shape == expected.shape
    np.testing.assert_allclose(found[200:-200], expected[200:-200], atol=5e-3)


def test_a_higher_tone_is_higher_up() -> None:
    low, high = (int(LogMel()(tone(hertz)).mean(axis=1).argmax()) for hertz in (300, 2500))
    assert high < low
    assert not LogMel()(Clip(np.zeros(800, np.int16), 8000)).any()


@pytest.fixture(scope="module")
def glyph() -> Backbone:
    return load_backbone("embedded/glyph")


def test_an_image_backbone_takes_sounds(glyph: Backbone) -> None:
    heard = for_audio(glyph)
    assert heard.preprocessing.accepts == {"audio"}
    assert heard.name == "spectrogram/embedded/glyph"
    assert heard.digest != glyph.digest
    assert layout(Trunk(heard), heard.preprocessing) == layout(Trunk(glyph), glyph.preprocessing)
    assert for_audio(heard) is heard
    json.dumps(heard.preprocessing.describe())


def test_records_do_not_depend_on_their_neighbours(glyph: Backbone) -> None:
    clips = (tone(300), tone(1000, 0.2), tone(2000, 0.1, 16_000))
    preprocessing = for_audio(glyph).preprocessing
    together = preprocessing(clips)
    assert isinstance(together, torch.Tensor)
    for row in range(3):
        alone = preprocessing(clips[row : row + 1])
        assert isinstance(alone, torch.Tensor)
        assert torch.equal(together[row], alone[0])


def test_long_clips_are_counted() -> None:
    clips = (tone(300, 10.1), tone(300, 9.9))
    assert SpectrogramPreprocessing(load_backbone("embedded/glyph").preprocessing).truncated(clips) == 1


def test_a_text_backbone_takes_no_sounds(glyph: Backbone) -> None:
    from dataclasses import replace

    with pytest.raises(ConfigError, match="audio or images, got embedded/glyph, which takes pair, text, words"):
        for_audio(replace(glyph, preprocessing=WordPreprocessing(("a",), 8)))


@pytest.mark.parametrize("seconds", [0, 61])
def test_lengths_out_of_range_are_refused(seconds: int) -> None:
    with pytest.raises(ConfigError, match=f"1 to 60 seconds of sound, got {seconds}"):
        AudioPreprocessing(16_000, seconds, normalise=False)


def test_spoken_digits_are_told_apart(glyph: Backbone, pytestconfig: pytest.Config) -> None:
    path: Path = pytestconfig.rootpath / "../shared/data/audio-fsdd/fsdd.npz"
    if not path.is_file():
        pytest.skip("the real data sets in ../shared/data are not on this machine")
    with np.load(path) as file:
        data = {name: file[name] for name in file.files}
    chosen = np.flatnonzero((data["speaker"] == data["speaker"][0]) & (data["take"] < 25))
    spans = [slice(data["offsets"][row], data["offsets"][row + 1]) for row in chosen]
    clips = tuple(Clip(data["audio"][span], int(data["rate"])) for span in spans)
    heard = for_audio(glyph)
    features = Trunk(heard)(heard.preprocessing(clips)).numpy()
    label, test = data["label"][chosen], data["take"][chosen] < 5
    probe = LogisticRegression(C=0.01, max_iter=2000).fit(features[~test], label[~test])
    assert probe.score(features[test], label[test]) > 0.85

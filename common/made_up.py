"""Made-up records, of no patient: what a backbone is tried out on before it sees a record that counts."""

from __future__ import annotations

import numpy as np

from common.backbones.backbone import Preprocessing
from common.backbones.registry import GLYPH, calibration_images
from common.data.records import Clip, Inputs, Pair, take_inputs

WORDS = (
    *("the", "a", "of", "and", "with", "without", "for", "was", "is", "no", "new", "left", "right", "small", "acute"),
    *("patient", "fever", "cough", "heart", "lung", "liver", "blood", "pressure", "scan", "shows", "normal", "severe"),
    *("pain", "treatment", "daily", "weeks", "before", "therapy", "study", "results,", "women", "men", "children"),
    *("trial", "years:", "risk", "lower.", "higher?", "reported", "12", "4.5", "mg"),
)
RATE = 16_000  # samples a second


def made_up_records(preprocessing: Preprocessing, count: int) -> Inputs | None:
    """Some records of a kind that a backbone takes, always the same; None for a kind that nothing is made up for.

    Args:
        preprocessing: of the backbone.
        count: how many, at most 256.
    """
    makers = {"image": _images, "text": _texts, "words": _words, "pair": _pairs, "audio": _sounds}
    for kind, make in makers.items():
        if kind in preprocessing.accepts:
            return make(count)
    return None


def _images(count: int) -> Inputs:
    """Drawn by formulas, the same that features are centred on."""
    images = calibration_images(GLYPH.name)
    return take_inputs(images, np.linspace(0, len(images) - 1, count).astype(np.int64))


def _words(count: int) -> tuple[tuple[str, ...], ...]:
    generator = np.random.default_rng(0)
    lengths = generator.integers(3, 120, count)
    return tuple(tuple(WORDS[at] for at in generator.integers(0, len(WORDS), length)) for length in lengths)


def _texts(count: int) -> tuple[str, ...]:
    return tuple(" ".join(words) for words in _words(count))


def _pairs(count: int) -> tuple[Pair, ...]:
    return tuple(Pair(" ".join(words[:8]) + "?", " ".join(words)) for words in _words(count))


def _sounds(count: int) -> tuple[Clip, ...]:
    """A second of two tones and noise each."""
    generator = np.random.default_rng(0)
    seconds = np.arange(RATE) / RATE
    clips = []
    for low, high in generator.uniform((80, 400), (400, 4000), (count, 2)):
        tones = np.sin(2 * np.pi * low * seconds) + 0.5 * np.sin(2 * np.pi * high * seconds)
        sound = 6000 * tones * np.exp(-3 * seconds) + generator.normal(0, 200, RATE)
        clips.append(Clip(sound.astype(np.int16), RATE))
    return tuple(clips)

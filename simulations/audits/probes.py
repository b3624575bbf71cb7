"""Randomness that an audit holds in its hand: who is sampled, and what is added as noise."""

from __future__ import annotations

import math
from typing import Literal

import numpy as np
from numpy.typing import NDArray

Who = Literal["sampled", "everyone", "nobody"]
_OF_RECORDS = 1_000_003  # a seed


class Sampling:
    """Sampling with a stream for each record, so that one record more or less leaves the others' draws alone.

    Args:
        numbers: of the records, shape (n,); a record keeps its number in every data set.
        who: ``"sampled"`` draws as it should; ``"everyone"`` and ``"nobody"`` answer with all or none.
        seed: of all streams.

    Attributes:
        asked: (how many flags, at which rate), for each step.
        flags: what was answered.
    """

    kind: Literal["seeded"] = "seeded"

    def __init__(self, numbers: NDArray[np.int64], who: Who = "sampled", seed: int = 0) -> None:
        self._streams = [np.random.default_rng([seed, 1, int(number)]) for number in numbers]
        self._other = np.random.default_rng([seed, 2])
        self._who = who
        self.asked: list[tuple[int, float]] = []
        self.flags: list[NDArray[np.bool_]] = []

    def bernoulli(self, n: int, rate: float) -> NDArray[np.bool_]:
        """Answer for the n records."""
        drawn = np.array([stream.random() for stream in self._streams_for(n)]) < rate
        self.asked.append((n, rate))
        self.flags.append({"sampled": drawn, "everyone": np.ones(n, bool), "nobody": np.zeros(n, bool)}[self._who])
        return self.flags[-1]

    def normal(self, shape: tuple[int, ...]) -> NDArray[np.float64]:
        """Normals, one from each record's stream where there are as many; nothing that samples rightly asks for any."""
        size = math.prod(shape)
        return np.array([stream.normal() for stream in self._streams_for(size)]).reshape(shape)

    def _streams_for(self, n: int) -> list[np.random.Generator]:
        return self._streams if n == len(self._streams) else [self._other] * n


class Noise:
    """Noise that is remembered, and may be turned off.

    Args:
        scale: by which standard normals are multiplied; 0 shows a sum as it is.
        seed: of the stream; the same seed gives the same noise in two data sets.

    Attributes:
        drawn: what was handed out, one array a call.
    """

    kind: Literal["seeded"] = "seeded"

    def __init__(self, scale: float = 1.0, seed: int = 0) -> None:
        self._scale, self._stream = scale, np.random.default_rng([seed, 3])
        self.drawn: list[NDArray[np.float64]] = []

    def normal(self, shape: tuple[int, ...]) -> NDArray[np.float64]:
        """Normals times the scale."""
        self.drawn.append(self._scale * self._stream.standard_normal(shape) if self._scale else np.zeros(shape))
        return self.drawn[-1]

    def bernoulli(self, n: int, rate: float) -> NDArray[np.bool_]:
        """Flags; nothing that adds noise rightly asks for any."""
        return self._stream.random(n) < rate


class PatientSampling:
    """Sampling with a stream for each patient and one for each record, so that the others' draws stay as they are.

    Args:
        patients: of each record the number of its patient, shape (n,), the same in every data set.
        numbers: of the records, shape (n,).
        who: as ``Sampling`` takes it, of patients.
        seed: of the patients' streams.
    """

    kind: Literal["seeded"] = "seeded"

    def __init__(
        self, patients: NDArray[np.int64], numbers: NDArray[np.int64], who: Who = "sampled", seed: int = 0
    ) -> None:
        self._patients = Sampling(np.unique(patients), who, seed)
        self._records = Sampling(numbers, seed=_OF_RECORDS)
        self.asked, self.flags = self._patients.asked, self._patients.flags

    def bernoulli(self, n: int, rate: float) -> NDArray[np.bool_]:
        """Answer for the n patients."""
        return self._patients.bernoulli(n, rate)

    def normal(self, shape: tuple[int, ...]) -> NDArray[np.float64]:
        """A number of each record, by which those that take part are chosen."""
        return self._records.normal(shape)


def sampling_of(
    numbers: NDArray[np.int64], patients: NDArray[np.int64] | None, who: Who = "sampled", seed: int = 0
) -> Sampling | PatientSampling:
    """Streams of its own for each unit: for each record, or for each patient where there are some."""
    return Sampling(numbers, who, seed) if patients is None else PatientSampling(patients, numbers, who, seed)


class ShareOfNoise:
    """Uniform words for a node's share of noise, the same from every instance of a seed."""

    def __init__(self, seed: int = 0) -> None:
        self._stream = np.random.PCG64DXSM([seed, 4])

    def words(self, n: int) -> NDArray[np.uint64]:
        """So many words."""
        return np.asarray(self._stream.random_raw(n), dtype=np.uint64)

"""Does the ranking of backbones tell what a head will reach? Kendall's tau on real data, exact and private.

Each candidate is scored from 1,000 training records, and a logistic regression trained on the same records is tried on
held-out ones. Private scores come from five nodes that hold all training records, epsilon 1 for all candidates of a set
together. The data lie in ``../shared/data``; sets that are not there are left out, and said so.
``FEDGRAFT_SETTINGS="mnist sms"`` chooses some.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table

from common.config import RunConfig
from common.data.federation import assemble
from common.errors import ConfigError
from common.features import cached_backbone, default_cache
from simulations.benchmarks.tasks import DATA, MOBILENET, Setting, configuration, minilm
from simulations.rank import Candidate, Ranked, draw, parse_candidate, rank

RECORDS, HELD_OUT = 1000, 1000
EPSILONS = (1.0, 8.0)
CAP = 8.0  # of the ledgers
STRENGTHS = 10.0 ** np.arange(-4, 0)
V2 = MOBILENET.replace(":v1", ":v2")
SEES = (
    *(f"embedded/glyph#{cut}" for cut in ("stem", "stage1", "stage2", "stage3", "pool")),
    "embedded/glyph@random-0",
    "pixels/16",
    MOBILENET,
    *(f"{V2}{cut}" for cut in ("#block6", "#block10", "#block13", "#pool", "")),
)
READS = (*(f"hf/{{minilm}}:48#{cut}" for cut in ("embeddings", "layer.1", "layer.3", "layer.5", "pool")),)
READS_UNTRAINED = ("hf/{minilm}:48@random-0", "vectors/{glove}:48", "vectors/{glove}:48@random-0")


@dataclass(frozen=True)
class Trial:
    """A data set and its candidates.

    Attributes:
        source: below ``../shared/data``.
        candidates: as ``--candidate`` takes them.
        keys: of ``[data.keys]``.
        private: whether features of all records are computed, for private scores.
    """

    source: str
    candidates: Sequence[str]
    keys: Mapping[str, str] = field(default_factory=dict)
    private: bool = True


TRIALS: Mapping[str, Trial] = {
    "pneumonia": Trial("image-pneumoniamnist/pneumoniamnist.npz", SEES),
    "mednist": Trial("image-mednist-subset/mednist_subset.npz", SEES),
    "mnist": Trial("image-digits-multisite/digits.npz", SEES, {"images": "mnist_x", "labels": "mnist_y"}),
    "speech": Trial("audio-fsdd/fsdd.npz", [f"spectrogram/{name}" for name in SEES], {"label": "label"}),
    "sms": Trial("text-sms-spam/sms.jsonl", (*READS, *READS_UNTRAINED), private=False),
    "abstracts": Trial("text-medical-abstracts", (*READS, *READS_UNTRAINED), private=False),
}


def main() -> None:
    """Print, for each set, its candidates, and the agreement of scores with what a head reaches."""
    chosen = os.environ.get("FEDGRAFT_SETTINGS", "").split() or list(TRIALS)
    names = [f"private, ε = {epsilon:g}" for epsilon in EPSILONS]
    agreement = Table("set", "candidates", "reached", "LogME", *names, title="Kendall's tau; delta 1e-5, seed 0")
    with tempfile.TemporaryDirectory() as folder:
        for name in chosen:
            try:
                _measure(name, TRIALS[name], Path(folder), agreement)
            except ConfigError as error:
                Console(stderr=True).print(f"{name} is left out: {error}")
                continue
            Console(width=140).print(agreement)  # as far as it is: a set takes minutes


def _measure(name: str, trial: Trial, folder: Path, agreement: Table) -> None:
    from scipy.stats import kendalltau

    run = configuration(Setting(trial.source, "embedded/glyph", "accuracy", {"keys": dict(trial.keys)}), CAP)
    candidates = [parse_candidate(text) for text in _filled(trial.candidates, folder)]
    epsilons = EPSILONS if trial.private else ()
    private = [_by_name(run, candidates, (epsilon, folder / f"{name}-{epsilon:g}")) for epsilon in epsilons]
    exact = _by_name(run, candidates, None)
    reached = {key: _reached(run, one) for key, one in exact.items()}
    table = Table("candidate", "features", "accuracy", "AUROC", "LogME", *[f"ε = {e:g}" for e in epsilons], title=name)
    for key, one in sorted(exact.items(), key=lambda item: -item[1].score):
        scores = [f"{other[key].private_score:.3f} ± {other[key].private_error:.3f}" for other in private]
        label = f"…/{Path(key).name}" if key.startswith(("hf/", "vectors/")) else key
        table.add_row(label, str(one.features), *[f"{x:.3f}" for x in reached[key]], f"{one.score:.3f}", *scores)
    Console(width=140).print(table)
    for at, metric in enumerate(("accuracy", "AUROC")):
        truth = [reached[key][at] for key in exact]
        columns = [[one.score for one in exact.values()]]
        columns += [[other[key].private_score or 0.0 for key in exact] for other in private]
        taus = [f"{kendalltau(truth, column).statistic:.2f}" for column in columns]
        agreement.add_row(name, str(len(exact)), metric, *taus, *[""] * (len(EPSILONS) - len(private)))


def _by_name(run: RunConfig, candidates: Sequence[Candidate], private: tuple[float, Path] | None) -> dict[str, Ranked]:
    ranking = rank(run, candidates, "last", RECORDS, lambda name, done, total: None, private)
    return {f"{one.backbone}#{one.cut}": one for one in ranking.ranked}


def _reached(run: RunConfig, one: Ranked) -> tuple[float, float]:
    """Accuracy and (macro, one against the rest) AUROC of a linear head without privacy, on held-out records."""
    from sklearn.metrics import roc_auc_score
    from threadpoolctl import threadpool_limits  # type: ignore[import-not-found,import-untyped,unused-ignore]

    federation = assemble(run)
    rows = np.sort(np.concatenate(list(federation.shares.values())))
    train, test = draw(rows, RECORDS, 0), draw(np.asarray(federation.test), HELD_OUT, 0)
    backbone, labels = cached_backbone(one.backbone), federation.data.labels
    seen = [default_cache().features(backbone, one.cut, federation.data.take(part)) for part in (train, test)]
    with threadpool_limits(1):  # small products: a second thread only waits
        chances = _logistic(np.asarray(seen[0], np.float64), labels[train], np.asarray(seen[1], np.float64))
    accuracy = float((chances.argmax(axis=1) == labels[test]).mean())
    binary = chances.shape[1] == 2
    area = roc_auc_score(labels[test], chances[:, 1] if binary else chances, multi_class="ovr")
    return accuracy, float(area)


def _logistic(fit: NDArray[np.float64], labels: NDArray[np.int64], test: NDArray[np.float64]) -> NDArray[np.float64]:
    """Probabilities of a logistic regression whose strength was chosen on a part of the training records."""
    from sklearn.linear_model import LogisticRegression

    mean, scale = fit.mean(axis=0), np.sqrt(fit.var(axis=0).mean())
    fit, test = (fit - mean) / scale, (test - mean) / scale
    if fit.shape[1] > len(fit):  # in the records' own span nothing changes, and everything is faster
        squares, left = np.linalg.eigh(fit @ fit.T)
        kept = squares > 1e-9 * squares.max()
        roots = np.sqrt(squares[kept])
        fit, test = left[:, kept] * roots, test @ (fit.T @ left[:, kept]) / roots
    order = np.random.default_rng(0).permutation(len(fit))
    known, tried = order[: 7 * len(fit) // 10], order[7 * len(fit) // 10 :]
    losses = []
    for strength in STRENGTHS:
        model = LogisticRegression(C=strength, max_iter=100, tol=1e-3).fit(fit[known], labels[known])
        place = np.searchsorted(model.classes_, labels[tried])
        losses.append(-np.log(model.predict_proba(fit[tried])[np.arange(len(tried)), place] + 1e-12).mean())
    best = LogisticRegression(C=STRENGTHS[int(np.argmin(losses))], max_iter=200, tol=1e-3).fit(fit, labels)
    chances: NDArray[np.float64] = best.predict_proba(test)
    return chances


def _filled(candidates: Sequence[str], folder: Path) -> list[str]:
    """The candidates with the places of the text models."""
    places = {}
    if any("{minilm}" in text for text in candidates):
        places["minilm"] = str(minilm())
    if any("{glove}" in text for text in candidates):
        places["glove"] = str(_glove(folder / "glove.txt"))
    return [text.format(**places) for text in candidates]


def _glove(path: Path) -> Path:
    """The word vectors of ``../shared/data/weights-glove`` in GloVe's own text format."""
    import safetensors.numpy

    place = DATA / "weights-glove"
    try:
        matrix = safetensors.numpy.load_file(place / "glove_twitter_25d.safetensors")["embedding.weight"]
        words = (place / "vocab.txt").read_text(encoding="utf-8").splitlines()
    except OSError as error:
        raise ConfigError(f"expected word vectors in {place}, found none ({error.strerror})") from None
    lines = (f"{word} {' '.join(map(repr, row.tolist()))}\n" for word, row in zip(words, matrix, strict=True))
    path.write_text("".join(lines), encoding="utf-8")
    return path

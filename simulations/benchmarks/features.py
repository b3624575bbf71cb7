"""How close the feature pass comes to the fastest forward pass that this machine allows.

Ours goes from pixels to a cache on disk: record digests, preprocessing, network, writing. What it is compared with is
the network alone, on inputs that lie ready, at the best of precision, layout, folding, batch, threads and compilation,
measured in the same minutes. ``FEDGRAFT_COMPILE=0`` leaves compilation out, which takes a minute or more.
"""

from __future__ import annotations

import itertools
import os
import statistics
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

from common.backbones.backbone import Backbone
from common.data.local import LocalData
from common.errors import ConfigError
from common.feature_pass import Precision
from common.features import FeatureCache, cached_backbone
from common.folding import fold_norms
from common.grafting import Trunk, threads
from common.precision import bfloat16_deviation, resolve
from simulations.benchmarks.mobilenet import FOLDER as MOBILENETS

NETWORKS = {
    "torchvision/resnet18:64@random-0": 2048,
    "torchvision/resnet18:224@random-0": 128,
    "embedded/glyph": 4096,
    "module/simulations.benchmarks.mobilenet:v1": 1024,
}
PRECISIONS: tuple[Precision, ...] = ("float32", "bfloat16")
BATCHES = (8, 16, 32, 64, 128)
FINALISTS, ROUNDS = 2, 3


@dataclass(frozen=True)
class Way:
    """One way of running a network over inputs that lie ready.

    Attributes:
        precision: of convolutions and matrix products.
        layout: channels ``"last"`` or ``"first"``.
        batch: records of one forward pass.
        spread: cores work on a ``"layer"`` together, or each on a ``"batch"`` of its own.
        compiled: by ``torch.compile``.
    """

    precision: Precision
    layout: str
    batch: int
    spread: str
    compiled: bool = False

    def __str__(self) -> str:
        """Name it in the table."""
        compiled = ", compiled" if self.compiled else ""
        return f"channels {self.layout}, batches of {self.batch}, a core a {self.spread}{compiled}"


class Rate(NamedTuple):
    """Records a second, by the clock and by what the cores worked; other programs slow down the first only."""

    wall: float
    processor: float


def main() -> None:
    """Print records a second, and ours over the best."""
    torch.set_num_threads(os.cpu_count() or 1)
    titles = ("network", "precision", "ours, end to end", "best forward pass", "ours / best", "by processor time")
    title = f"records/s, median of {ROUNDS} rounds taken in turns; * is what auto takes here"
    table = Table(*titles, "how the best ran", title=title)
    for reference, count in NETWORKS.items():
        if "mobilenet" in reference and not MOBILENETS.is_dir():
            table.add_row(reference, "left out: its weights are not there")
            continue
        for row in _rows(reference, count):
            table.add_row(*row)
    Console(width=160).print(table)


def _rows(reference: str, count: int) -> Iterator[tuple[str, ...]]:
    backbone = cached_backbone(reference)
    size = int(backbone.preprocessing.describe()["size"])
    pixels = np.random.default_rng(0).integers(0, 256, (count, size, size), dtype=np.uint8)
    data = LocalData(pixels, np.arange(count) % 2, ("a", "b"))
    chosen, moved = resolve("auto", backbone, None), bfloat16_deviation(backbone, list(backbone.stages)[-1])
    for precision in PRECISIONS:
        best, rates = _race(backbone, data, precision)
        star, note = "*" if precision == chosen else "", ""
        if precision == "bfloat16" and moved is not None:
            note = f" (moves features by {moved:.1%})"
        ours, fastest = rates["ours"], rates[best]
        figures = (f"{ours.wall:.0f}", f"{fastest.wall:.0f}", f"{ours.wall / fastest.wall:.2f}")
        by_processor = f"{ours.processor / max(rate.processor for rate in rates.values() if rate is not ours):.2f}"
        yield reference, precision + star + note, *figures, by_processor, best


def _race(backbone: Backbone, data: LocalData, precision: Precision) -> tuple[str, dict[str, Rate]]:
    """The best way's name, and the median rates of it, the other finalists and ours."""
    inputs = _prepared(backbone, data)
    layouts = ("last", "first")
    ways = [Way(precision, *rest) for rest in itertools.product(layouts, BATCHES, ("layer", "batch"))]
    some = inputs[: max(2 * max(BATCHES), len(inputs) // 8)]
    heats = {way: _rate(len(some), _runner(backbone, some, way)).wall for way in ways}
    finalists = sorted(heats, key=lambda way: heats[way], reverse=True)[:FINALISTS]
    runners = {str(way): _runner(backbone, inputs, way) for way in finalists}
    if os.environ.get("FEDGRAFT_COMPILE") != "0":
        way = Way(precision, "last", finalists[0].batch, "layer", compiled=True)
        runners[str(way)] = _runner(backbone, inputs, way)
    runners["ours"] = lambda: _ours(backbone, data, precision)
    for run in runners.values():
        run()
    rates: dict[str, list[Rate]] = {name: [] for name in runners}
    for _ in range(ROUNDS):
        for name, run in runners.items():
            rates[name].append(_rate(len(data), run))
    medians = {name: Rate(*map(statistics.median, zip(*found, strict=True))) for name, found in rates.items()}
    return max((name for name in medians if name != "ours"), key=lambda name: medians[name].wall), medians


def _rate(count: int, run: Callable[[], None]) -> Rate:
    began, busy = time.perf_counter(), time.process_time()
    run()
    return Rate(count / (time.perf_counter() - began), count / (time.process_time() - busy))


def _prepared(backbone: Backbone, data: LocalData) -> Tensor:
    prepared = backbone.preprocessing(data.inputs)
    if not isinstance(prepared, Tensor):
        raise ConfigError(f"expected a backbone of images, got {backbone.name}; name another in NETWORKS")
    return prepared


def _ours(backbone: Backbone, data: LocalData, precision: Precision) -> None:
    with tempfile.TemporaryDirectory() as folder:
        FeatureCache(Path(folder)).features(backbone, None, data, precision=precision)


def _runner(backbone: Backbone, inputs: Tensor, way: Way) -> Callable[[], None]:
    """A function that runs the network over all inputs; folded, which is never slower."""
    layout = torch.channels_last if way.layout == "last" else torch.contiguous_format
    prepared = torch.split(inputs.contiguous(memory_format=layout), way.batch)
    network = _network(backbone, inputs, way.precision).to(memory_format=layout)
    if way.compiled:
        network.compile(dynamic=False)
    cores = torch.get_num_threads()

    @torch.inference_mode()
    def forward(part: Tensor) -> None:
        with torch.autocast("cpu", torch.bfloat16, enabled=way.precision == "bfloat16"):
            network(part)

    def run() -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of the compiler
            if way.spread == "layer":
                for part in prepared:
                    forward(part)
                return
            with threads(1), ThreadPoolExecutor(cores) as pool:
                list(pool.map(forward, prepared))

    return run


def _network(backbone: Backbone, inputs: Tensor, precision: Precision) -> nn.Module:
    network = fold_norms(Trunk(backbone), inputs[:4])
    for module in network.modules():
        if precision == "bfloat16" and isinstance(module, nn.Conv2d | nn.Linear):
            module.to(torch.bfloat16)
    return network

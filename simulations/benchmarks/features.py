"""How close the feature pass comes to the fastest forward pass that this machine allows.

Ours goes from pixels to a cache on disk: record digests, preprocessing, network, writing. What it is compared with is
the network alone, on inputs that lie ready, at the best of precision, layout, folding, fusing, batch, threads and
compilation, measured in the same minutes; nothing of it happens once for all records, so it runs on a quarter of them.
All of it takes some eight minutes of two cores that do nothing else. A processor without instructions for bfloat16, on
which nobody would take it, runs float32 alone.
``FEDGRAFT_COMPILE=0`` leaves compilation out, ``FEDGRAFT_SETTINGS="resnet18:64 glyph"`` chooses networks, and
``FEDGRAFT_RECORDS=0.25`` takes a quarter of the records.
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
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
import torch
from rich import box
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

from common.backbones.backbone import Backbone
from common.data.local import LocalData
from common.errors import ConfigError
from common.feature_pass import Precision
from common.features import FeatureCache, cached_backbone
from common.folding import fold_norms
from common.fusing import convolutions, fuse_convolutions
from common.grafting import Trunk, threads
from common.precision import bfloat16_deviation, computes_bfloat16, resolve
from simulations.benchmarks.mobilenet import FOLDER as MOBILENETS

NETWORKS = {
    "torchvision/resnet18:64@random-0": 3072,
    "torchvision/resnet18:224@random-0": 384,
    "embedded/glyph": 4096,
    "module/simulations.benchmarks.mobilenet:v1": 3072,
}
"""Networks, and how many records."""
PRECISIONS: tuple[Precision, ...] = ("float32", "bfloat16")
BATCHES = (8, 16, 32, 64, 128)
HEAT_VALUES = 256 * 3 * 64 * 64  # of the inputs that ways are sifted on
FEWEST_OF_A_HEAT, MOST_OF_A_HEAT = 64, 512
FINALISTS, ROUNDS = 2, 3
TITLES = (
    "network, records",
    "precision",
    "ours, end to end",
    "best forward pass",
    "ratio",
    "by processor time",
    "best",
)

Kind = Literal["folded", "fused", "compiled"]
Rates = dict[str, "Rate"]


@dataclass(frozen=True)
class Way:
    """One way of running a network over inputs that lie ready.

    Attributes:
        kind: BatchNorms ``"folded"``; ``"fused"`` as our pass does it; or folded and ``"compiled"`` by
            ``torch.compile``, with constants frozen.
        layout: channels ``"last"`` or ``"first"``.
        batch: records of one forward pass.
        spread: cores work on a ``"layer"`` together, or each on a ``"batch"`` of its own.
    """

    kind: Kind
    layout: str
    batch: int
    spread: str

    def __str__(self) -> str:
        """Name it in the table."""
        return f"{self.kind}, channels {self.layout}, batches of {self.batch}, a core a {self.spread}"


class Rate(NamedTuple):
    """Records a second, by the clock and by what the cores worked; other programs slow down the first only."""

    wall: float
    processor: float


def main() -> None:
    """Print records a second, and ours over the best, as a table that documents can take over."""
    torch.set_num_threads(os.cpu_count() or 1)
    table = Table(*TITLES, box=box.MARKDOWN)
    chosen = os.environ.get("FEDGRAFT_SETTINGS", "").split() or [""]
    share = float(os.environ.get("FEDGRAFT_RECORDS", 1))
    began, load = time.time(), os.getloadavg()[0]
    with tempfile.TemporaryDirectory() as folder:
        os.environ["TORCHINDUCTOR_CACHE_DIR"] = folder
        for reference, count in NETWORKS.items():
            if not any(part in reference for part in chosen):
                continue
            if "mobilenet" in reference and not MOBILENETS.is_dir():
                table.add_row(reference, "left out: its weights are not there")
                continue
            for row in _rows(reference, max(4 * FEWEST_OF_A_HEAT, int(count * share))):
                table.add_row(*row)
    console = Console(width=240)
    console.print(table)
    console.print(
        f"Records a second, medians of {ROUNDS} rounds in turns; (auto): what auto takes here. "
        f"{torch.get_num_threads()} cores, torch {torch.__version__}, {time.strftime('%Y-%m-%d')}, "
        f"{time.time() - began:.0f} s; load before {load:.1f}, after {os.getloadavg()[0]:.1f}."
    )


def _rows(reference: str, count: int) -> Iterator[tuple[str, ...]]:
    backbone = cached_backbone(reference)
    size = int(backbone.preprocessing.describe()["size"])
    pixels = np.random.default_rng(0).integers(0, 256, (count, size, size), dtype=np.uint8)
    data = LocalData(pixels, np.arange(count) % 2, ("a", "b"))
    chosen, able = resolve("auto", backbone, None), computes_bfloat16()
    moved = bfloat16_deviation(backbone, list(backbone.stages)[-1]) if able else None
    found = {precision: _race(backbone, data, precision) for precision in (PRECISIONS if able else PRECISIONS[:1])}
    for precision, rates in found.items():
        star, note = " (auto)" if precision == chosen else "", ""
        if precision == "bfloat16" and moved is not None:
            note = f", moves features by {moved:.1%}"
        best = _best(rates)
        yield f"{backbone.name}, {count}", precision + star + note, *_compared(rates["ours"], rates[best], rates), best
    if not able:
        return
    both = {f"{precision}, {name}": rate for precision, rates in found.items() for name, rate in rates.items()}
    others = {name: rate for name, rate in both.items() if not name.endswith("ours")}
    best = _best(others)
    yield f"{backbone.name}, {count}", "auto over both", *_compared(found[chosen]["ours"], others[best], others), best


def _best(rates: Rates) -> str:
    return max((name for name in rates if name != "ours"), key=lambda name: rates[name].wall)


def _compared(ours: Rate, fastest: Rate, rates: Rates) -> tuple[str, ...]:
    processor = max(rate.processor for name, rate in rates.items() if name != "ours")
    ratios = (ours.wall / fastest.wall, ours.processor / processor)
    return f"{ours.wall:.0f}", f"{fastest.wall:.0f}", *(f"{ratio:.2f}" for ratio in ratios)


def _race(backbone: Backbone, data: LocalData, precision: Precision) -> Rates:
    """The median rates of the finalists, and of ours."""
    inputs = _prepared(backbone, data.take(np.arange(max(FEWEST_OF_A_HEAT, len(data) // 4))))
    make = _maker(backbone, precision)
    finalists = _sifted(inputs, make, precision)
    if os.environ.get("FEDGRAFT_COMPILE") != "0":
        finalists.append(Way("compiled", "last", finalists[0].batch, finalists[0].spread))
    runners: dict[str, tuple[int, Callable[[], None]]] = {}
    for way in finalists:
        network = make(way)
        if network is not None:
            _warm(network, inputs, way, precision)
            runners[str(way)] = len(inputs), _runner(network, inputs, way, precision)
    runners["ours"] = len(data), lambda: _ours(backbone, data, precision)
    _ours(backbone, data.take(np.arange(FEWEST_OF_A_HEAT)), precision)
    rates: dict[str, list[Rate]] = {name: [] for name in runners}
    for _ in range(ROUNDS):
        for name, (count, run) in runners.items():
            rates[name].append(_rate(count, run))
    return {name: Rate(*map(statistics.median, zip(*found, strict=True))) for name, found in rates.items()}


def _sifted(inputs: Tensor, make: Callable[[Way], nn.Module | None], precision: Precision) -> list[Way]:
    """The fastest ways on a few records: the batch first, then the rest at the two best batches."""
    some = inputs[: min(MOST_OF_A_HEAT, max(FEWEST_OF_A_HEAT, HEAT_VALUES // inputs[0].numel()))]
    batches = [batch for batch in BATCHES if batch * torch.get_num_threads() <= len(some)]
    heats: dict[Way, float] = {}

    def best() -> list[Way]:
        return sorted(heats, key=lambda way: heats[way], reverse=True)

    def heat(way: Way) -> None:
        network = make(way)
        if network is not None and way not in heats:
            _warm(network, some, way, precision)
            heats[way] = _rate(len(some), _runner(network, some, way, precision)).wall

    kinds: tuple[Kind, ...] = ("fused", "folded")
    for kind, batch in itertools.product(kinds, batches):
        heat(Way(kind, "last", batch, "batch"))
    for way in best()[:2]:
        heat(replace(way, spread="layer"))
        heat(Way("folded", "first", way.batch, "batch"))
    return best()[:FINALISTS]


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


def _maker(backbone: Backbone, precision: Precision) -> Callable[[Way], nn.Module | None]:
    """A function that makes a network ready for a way; None where it cannot be."""
    examples = _prepared(backbone, LocalData(backbone.preprocessing.blank(), np.zeros(1, int), ("a",)))
    examples = torch.cat([examples, torch.randn(examples.shape, generator=torch.Generator().manual_seed(0))])

    @cache
    def fused(batch: int) -> nn.Module | None:
        network = fuse_convolutions(Trunk(backbone), examples, batch)
        for convolution in [] if network is None else convolutions(network):
            convolution.settle(torch.bfloat16 if precision == "bfloat16" else torch.float32)
        return network

    @cache
    def folded(layout: str) -> nn.Module:
        memory = torch.channels_last if layout == "last" else torch.contiguous_format
        return fold_norms(Trunk(backbone), examples).to(memory_format=memory)

    def make(way: Way) -> nn.Module | None:
        network = fused(way.batch) if way.kind == "fused" else folded(way.layout)
        for module in [] if network is None or way.kind == "compiled" else network.modules():
            if precision == "bfloat16" and isinstance(module, nn.Conv2d | nn.Linear):
                module.to(torch.bfloat16)
        if way.kind == "compiled":
            network = fold_norms(Trunk(backbone), examples).to(memory_format=torch.channels_last)
            network.compile(dynamic=False)
        return network

    return make


def _warm(network: nn.Module, inputs: Tensor, way: Way, precision: Precision) -> None:
    """Run a batch, which compiles what is to be compiled, with as many threads as a core's work then has."""
    with threads(1 if way.spread == "batch" else torch.get_num_threads()):
        _runner(network, inputs[: way.batch], Way(way.kind, way.layout, way.batch, "layer"), precision)()


def _runner(network: nn.Module, inputs: Tensor, way: Way, precision: Precision) -> Callable[[], None]:
    """A function that runs the network over all inputs."""
    layout = torch.channels_last if way.layout == "last" else torch.contiguous_format
    prepared = torch.split(inputs.contiguous(memory_format=layout), way.batch)
    cores = torch.get_num_threads()

    def forward(part: Tensor) -> None:
        with _mode(way), torch.autocast("cpu", torch.bfloat16, enabled=precision == "bfloat16"):
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


@contextmanager
def _mode(way: Way) -> Iterator[None]:
    if way.kind != "compiled":
        with torch.inference_mode():
            yield
        return
    import torch._inductor.config as inductor

    with torch.no_grad(), inductor.patch(freezing=True):
        yield

"""What ``fedgraft simulate`` does: start or resume a run, over one seed or several, and show how far it is."""

from __future__ import annotations

import json
import logging
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from common.config import RunConfig, load_config
from common.errors import ConfigError
from server.checkpoints import Line
from simulations import preflight, run
from simulations.baselines import check_baselines
from simulations.report import write_report
from simulations.report.terminal import result_table
from simulations.result import Result

LARGEST_SEED = 2**63 - 1

Report = Callable[[Path], Path]


def start(config: RunConfig, folder: Path, seeds: int, engine: str, report: Report = write_report) -> Result:
    """Run a new federation in a new folder.

    Args:
        config: of the run.
        folder: does not exist yet, or is empty.
        seeds: 1, or how many runs with seeds that count up, each in a folder of its own inside ``folder``.
        engine: ``"inprocess"`` or ``"ray"``.
        report: writes the report on a finished run's folder.

    Raises:
        FederationError: before anything is written where the input is at fault.
    """
    run.check_free(folder)
    configs = _with_seeds(config, seeds)
    ready = [_preflight(each) for each in configs]
    with run.alone_in(folder):
        run.check_free(folder)  # again: another process may have been quicker
        run.open_folder(folder, config, [] if len(configs) == 1 else _seeds_of(configs))
        with _telling_how_to_go_on(folder):
            if len(configs) == 1:
                return _simulate(config, ready[0], folder, engine, report)
            return _all_seeds(configs, folder, engine, report)


def resume(config: Path | None, folder: Path, changes: list[str], engine: str, report: Report = write_report) -> Result:
    """Continue the run in a folder, to the result it would have had undisturbed.

    Args:
        config: the configuration again, for comparison; None takes the run's own.
        folder: of the run.
        changes: overrides of ``config``.
        engine: ``"inprocess"`` or ``"ray"``.
        report: writes the report on a finished run's folder.

    Raises:
        ConfigError: the configuration is not the one that the run was started with.
        FederationError: as the run itself raises it.
    """
    if config is None and changes:
        raise ConfigError(
            "expected no --set or --baselines with --resume: a run goes on as it was started; leave them out"
        )
    own = run.reopen_folder(folder, None if config is None else load_config(config, changes))
    with run.alone_in(folder), _telling_how_to_go_on(folder):
        if (folder / run.SEEDS).exists():
            count = len(json.loads((folder / run.SEEDS).read_text())["seeds"])
            return _all_seeds(_with_seeds(own, count), folder, engine, report)
        return _simulate(own, _preflight(own), folder, engine, report)


@contextmanager
def _telling_how_to_go_on(folder: Path) -> Iterator[None]:
    """Have Ctrl-C end in how to continue the run."""
    try:
        yield
    except KeyboardInterrupt:
        raise KeyboardInterrupt(f"interrupted; continue with `fedgraft simulate --resume {folder}`") from None


def _all_seeds(configs: list[RunConfig], folder: Path, engine: str, report: Report) -> Result:
    results = []
    for config in configs:
        place = folder / f"seed-{config.federation.seed}"
        if not (place / run.CONFIG).exists():
            run.open_folder(place, config)
        results.append(_simulate(config, _preflight(config), place, engine, report))
    result = run.summarise_seeds(folder, results)
    report(folder)
    return result


def _with_seeds(config: RunConfig, count: int) -> list[RunConfig]:
    if count == 1:
        return [config]
    first = config.federation.seed
    if first is None:
        raise ConfigError("--seeds needs federation.seed in the configuration, which counts up from there; set it")
    if first > LARGEST_SEED - (count - 1):
        raise ConfigError(
            f"federation.seed must leave room for {count} seeds up to {LARGEST_SEED}, got {first}; lower it"
        )
    federations = [config.federation.model_copy(update={"seed": first + k}) for k in range(count)]
    return [config.model_copy(update={"federation": federation}) for federation in federations]


def _seeds_of(configs: list[RunConfig]) -> list[int]:
    return [config.federation.seed for config in configs if config.federation.seed is not None]


def _preflight(config: RunConfig) -> preflight.Preflight:
    with ExitStack() as stack:
        shown: list[Callable[[int, int], None]] = []

        def on_features(done: int, total: int) -> None:
            if not shown:  # nothing is drawn for features that the cache has, or for input that is refused
                shown.append(_feature_bar(stack.enter_context(_bars())))
            shown[0](done, total)

        ready = preflight.check(config, on_features)
    check_baselines(config, ready)
    return ready


def _feature_bar(bars: Progress) -> Callable[[int, int], None]:
    task = bars.add_task("features", total=None, note="records")
    began = time.perf_counter()

    def advance(done: int, total: int) -> None:
        rate = done / max(1e-9, time.perf_counter() - began)
        bars.update(task, completed=done, total=total, note=f"{rate:.0f} records/s")

    return advance


def _simulate(config: RunConfig, ready: preflight.Preflight, folder: Path, engine: str, report: Report) -> Result:
    with _node_log(folder), _bars() as bars:
        bars.console.print(_announcement(config, ready), highlight=False)
        rounds = bars.add_task("rounds", total=config.federation.rounds, note="")
        worlds = bars.add_task("baselines", total=None, note="", visible=False)

        def on_round(line: Line) -> None:
            accuracy = "" if line["accuracy"] is None else f"accuracy {line['accuracy']:.3f} "
            bars.update(rounds, completed=line["round"], note=f"{accuracy}ε {line['epsilon']:.2f}")

        def on_baseline(name: str, done: int, total: int) -> None:
            bars.update(worlds, description=name, completed=done, total=total, visible=True)

        result = run.simulate(config, ready, folder, engine, run.Watcher(on_round, on_baseline))
        report(folder)
        return result


def _announcement(config: RunConfig, ready: preflight.Preflight) -> str:
    """Say what starts, and what the ε beside the bar means."""
    privacy, nodes = config.privacy, len(ready.federation.shares)
    nominal = "" if config.federation.seed is None else "; nominal: seeded"
    return (
        f"{nodes} nodes train {_what(ready)} on {config.model.reference}{_cut_off(ready)}; "
        f"ε at δ = {privacy.delta:g}, one {privacy.unit}, {privacy.trust} trust{nominal}"
    )


def _what(ready: preflight.Preflight) -> str:
    model = ready.proposal.plan.offer.model
    if model.head != "upper":
        return f"{'an' if model.head == 'mlp' else 'a'} {model.head} head"
    parts = {"all": "", "biases": "biases and norms of ", "adapters": "low-rank adapters of "}[model.train]
    return f"{parts}the stages above {model.cut} and a linear head"


def _cut_off(ready: preflight.Preflight) -> str:
    if not ready.truncated:
        return ""
    return f" ({ready.truncated} of {len(ready.federation.data)} texts are longer than it takes, and lose their end)"


@contextmanager
def _bars() -> Iterator[Progress]:
    columns = (
        SpinnerColumn(),
        TextColumn("{task.description:<12}"),
        BarColumn(bar_width=20),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("{task.fields[note]}"),
    )
    with Progress(*columns, console=Console(stderr=True), transient=False) as bars:
        yield bars


@contextmanager
def _node_log(folder: Path) -> Iterator[None]:
    """Keep what the simulated nodes say of their refusals, which a real node would keep to itself, in ``nodes.log``."""
    handler = logging.FileHandler(folder / "nodes.log", delay=True)
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    log = logging.getLogger("fedgraft.node")
    propagates = log.propagate
    log.addHandler(handler)
    log.propagate = False
    try:
        yield
    finally:
        log.propagate = propagates
        log.removeHandler(handler)
        handler.close()


@contextmanager
def quiet() -> Iterator[None]:
    """Keep Flower's running commentary out of the terminal: the progress bar says it."""
    log = logging.getLogger("flwr")
    level = log.level
    log.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        log.setLevel(level)


def show(result: Result, folder: Path) -> None:
    """Print the final table, and where report and model are."""
    console = Console()
    console.print(result_table(result))
    console.print(f"report  {folder / 'report.html'}", soft_wrap=True)
    model = folder / "model" if (folder / "model").exists() else folder / "seed-*" / "model"
    console.print(f"model   {model}", soft_wrap=True)

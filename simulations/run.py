"""One simulated run from its configuration to its report."""

from __future__ import annotations

import os
import shutil
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from common import durable
from common.config import RunConfig, config_digest, dump_toml, load_config, to_flat
from common.durable import read_lines
from common.errors import ConfigError, ProtocolError
from common.locks import lock
from common.model_folder import ModelFacts, save_model
from server.checkpoints import Line, RunStore
from server.run_folder import FAILURE, check_unchanged, run_identity
from simulations.baselines import World, run_baselines
from simulations.engine import run_in_process
from simulations.model_card import model_card
from simulations.preflight import Preflight
from simulations.result import Result, build_result, mean_result

CONFIG, RESULT, ROUNDS, SEEDS = "config.toml", "result.json", "rounds.jsonl", "seeds.json"
LET_GO_S = 2.0


@dataclass(frozen=True)
class Watcher:
    """Who is told how far a run has come.

    Attributes:
        round: a line of the round log.
        baseline: (name, federations done, federations to do).
    """

    round: Callable[[Line], None]
    baseline: Callable[[str, int, int], None]


def simulate(config: RunConfig, ready: Preflight, folder: Path, engine: str, watcher: Watcher) -> Result:
    """Run, or continue, a federation in its run folder, and write its result and model.

    Args:
        config: of the run.
        ready: what the preflight found.
        folder: as ``open_folder`` made it or ``reopen_folder`` found it.
        engine: ``"inprocess"`` or ``"ray"``.
        watcher: told about progress.

    Raises:
        FederationError: as the parts raise it; everything saved so far stays, and the run can be resumed.
    """
    (folder / FAILURE).unlink(missing_ok=True)
    with following(folder / ROUNDS, watcher.round):
        play(config, folder, engine, len(ready.federation.shares))
    final = RunStore(folder, run_identity(folder)).latest()
    if final is None:
        raise ProtocolError(f"expected a checkpoint in {folder} after the last round, found none; resume the run")
    began = time.perf_counter()
    worlds = _baselines(config, ready, final.round, folder, watcher)
    baselines_s = time.perf_counter() - began if worlds else None
    result = build_result(config, ready, final, read_lines(folder / ROUNDS), worlds, baselines_s, folder, engine)
    features = int(ready.features.shape[1])
    facts = ModelFacts(
        model=ready.proposal.plan.offer.model.finished,
        features=features,
        modality=ready.federation.data.modality,
        columns=ready.federation.data.columns,
        keys=config.data.keys,
        privacy=result["privacy"],
    )
    save_model(folder / "model", facts, final.head, model_card(result))
    durable.write_json(folder / RESULT, result)
    return result


def play(config: RunConfig, folder: Path, engine: str, nodes: int) -> None:
    """Run the rounds on an engine; both run the same apps and leave the same files."""
    if engine == "ray":
        from simulations.ray_engine import run_on_ray

        run_on_ray(config, folder, nodes)
    else:
        run_in_process(config, folder, range(nodes))


def check_free(folder: Path) -> None:
    """Make sure that a new run can have this folder; what a killed `open_folder` left there may stay.

    Raises:
        ConfigError: there is something else in it already, or it is no place for a folder.
    """
    try:
        is_file = folder.exists() and not folder.is_dir()
        taken = folder.is_dir() and not all(map(_is_beginning, folder.iterdir()))
    except OSError as error:
        raise ConfigError(f"the run folder {folder} cannot be made ({error.strerror}); choose another --out") from error
    if is_file:
        raise ConfigError(f"expected a folder for the run, {folder} is a file; choose another --out")
    if taken:
        raise ConfigError(
            f"expected a new or empty folder for the run, {folder} is taken; choose another --out, or continue the run "
            f"in it with --resume {folder}"
        )


def open_folder(folder: Path, config: RunConfig, seeds: Sequence[int] = ()) -> None:
    """Make the folder of a new run, with its configuration; that comes last, so that a folder with it is whole.

    Args:
        folder: of the run.
        config: of the run.
        seeds: of its parts, where it is repeated with several.

    Raises:
        ConfigError: it cannot be made or written.
    """
    _make(folder)
    (folder / SEEDS).unlink(missing_ok=True)
    if seeds:
        durable.write_json(folder / SEEDS, {"seeds": list(seeds)})
    durable.write_bytes(folder / CONFIG, dump_toml(config).encode())


@contextmanager
def alone_in(folder: Path) -> Iterator[None]:
    """Make a run folder, if need be, and keep every other process out of it; one that is killed lets go of it.

    Two that continue one run would overwrite each other's checkpoints and charge the ledgers twice. The nodes of a run
    that was killed may take a moment longer to end.

    Raises:
        ConfigError: it cannot be made, or another process is at work in it.
    """
    _make(folder)
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        if not lock(descriptor, LET_GO_S):
            raise ConfigError(f"expected to be alone in {folder}, another process is running there; wait for its end")
        yield
    finally:
        os.close(descriptor)


def reopen_folder(folder: Path, config: RunConfig | None) -> RunConfig:
    """Find the configuration of a run that is to be continued.

    Args:
        folder: of the run.
        config: that was given again; None takes the run's own.

    Raises:
        ConfigError: no run lives there, or the configuration is another one.
    """
    if not (folder / CONFIG).is_file():
        raise ConfigError(
            f"expected a run to resume in {folder}, found no {CONFIG}; give the folder of an earlier --out"
        )
    own = load_config(folder / CONFIG)
    check_unchanged(folder, own)
    if config is not None and config_digest(config) != config_digest(own):
        changed = ", ".join(sorted(_differences(own, config)))
        raise ConfigError(
            f"the configuration differs from the one that {folder} was started with ({changed}); resume without a "
            "configuration, or start a new run with --out"
        )
    return own


def summarise_seeds(folder: Path, results: list[Result]) -> Result:
    """Write the mean over the runs of several seeds."""
    result = mean_result(results)
    durable.write_json(folder / RESULT, result)
    return result


@contextmanager
def following(log: Path, on_round: Callable[[Line], None]) -> Iterator[None]:
    """Call ``on_round`` for each line of a round log while the block runs, whichever process writes it."""
    stop = threading.Event()

    def follow() -> None:
        seen = 0
        while True:
            last = stop.wait(0.1)
            lines = read_lines(log)
            for line in lines[seen:]:
                on_round(line)
            seen = len(lines)
            if last:
                return

    thread = threading.Thread(target=follow, daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()


def _make(folder: Path) -> None:
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)  # exact counts and metrics of real records lie in it
    except OSError as error:
        raise ConfigError(f"the run folder {folder} cannot be made ({error.strerror}); choose another --out") from error


def _is_beginning(path: Path) -> bool:
    """Whether this is all that a run has which was killed before its configuration was there."""
    return path.name.startswith((f".{CONFIG}.", f".{SEEDS}.")) or path.name == SEEDS


def _baselines(config: RunConfig, ready: Preflight, rounds: int, folder: Path, watcher: Watcher) -> dict[str, World]:
    place = folder / "baselines"
    if place.exists():
        shutil.rmtree(place)
    return run_baselines(config, ready, rounds, place, watcher.baseline)


def _differences(one: RunConfig, other: RunConfig) -> set[str]:
    a, b = to_flat(one), to_flat(other)
    return {key for key in a.keys() | b.keys() if a.get(key) != b.get(key)}

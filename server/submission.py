"""From a configuration to a run that the SuperLink plays, and on to its end."""

from __future__ import annotations

import json
import re
import shutil
import tempfile
import time
from collections.abc import Callable, Sequence
from datetime import datetime
from pathlib import Path

import tomli_w

from common import durable, errors
from common.bundle import app_digest, assemble
from common.config import RunConfig, check_updates, dump_toml, load_config, to_flat
from common.data import load_source
from common.durable import read_lines
from common.errors import ConfigError, FederationError
from common.supervisor import supervisor_of
from server.checkpoints import Line
from server.control import run_status, stop_run, submit
from server.coordinator_folder import Place
from server.outcome import RESULT, ROUNDS
from server.peers import check_sums, keep_peers
from server.run_folder import CONFIG, FAILURE, NODES, is_held, named_nodes

FLOWER_RUN = "flower-run.json"
POLL_S = 0.2
ASK_EVERY_S = 5.0
SILENCE_S = 300.0
_NAME = re.compile(r"[0-9A-Za-z][0-9A-Za-z._-]{0,127}")


def open_run(place: Place, config: RunConfig, name: str, nodes: Sequence[str]) -> Path:
    """Make the folder of a new run.

    Args:
        place: the coordinator's folder.
        config: of the run.
        name: of the folder, below ``runs/``.
        nodes: names of the registered nodes that the run may reach; empty is all of them.

    Raises:
        ConfigError: the name is taken or no name, a node is not registered, the configuration is for simulations, or
            its sums or its strategy want more nodes.
        PrivacyError: its sums protect too little.
    """
    _check(config)
    registered = place.nodes()
    strangers = [node for node in nodes if node not in registered]
    if strangers or not registered:
        known = ", ".join(registered) or "none"
        raise ConfigError(
            f"expected registered nodes (there are {known}), got {', '.join(strangers) or 'none to reach'}; register "
            "one with `fedgraft server add-node`"
        )
    check_sums(config, nodes or registered)
    check_updates(config, len(nodes or registered))
    folder = place.runs / name
    if not _NAME.fullmatch(name) or folder.exists():
        raise ConfigError(f"expected a new name for the run, {name!r} is taken or no name; choose another --name")
    chosen = {node: registered[node].node_id for node in nodes or registered}
    folder.mkdir(mode=0o700)
    durable.write_json(folder / NODES, chosen)
    durable.write_bytes(folder / CONFIG, dump_toml(config).encode())
    return folder


def start_run(place: Place, folder: Path) -> int:
    """Submit the run in a folder, new or to be continued; returns Flower's id of it.

    Raises:
        ConfigError: there is no run in the folder, it is finished, or it is being played.
        FederationError: the SuperLink cannot be reached.
    """
    if not (folder / CONFIG).is_file():
        raise ConfigError(f"expected a run in {folder}, found no {CONFIG}; `fedgraft server status` lists the runs")
    if (folder / RESULT).exists():
        raise ConfigError(f"the run {folder.name} is finished; its model is in {folder / 'model'}")
    if is_held(folder):
        raise ConfigError(f"the run {folder.name} is being played; follow it with `fedgraft server status`")
    before = flower_run(folder)
    if before is not None and is_played(place, folder):  # Flower has not noticed yet that its server app is gone
        stop_run(place, before)
    reached, config = _reach_registered(place, folder), load_config(folder / CONFIG)
    keep_peers(place, folder, config, reached)
    (folder / FAILURE).unlink(missing_ok=True)
    with tempfile.TemporaryDirectory() as scratch:
        app = assemble(Path(scratch) / "app")
        flat = Path(scratch) / "run.toml"
        flat.write_text(tomli_w.dumps(to_flat(config)), encoding="utf-8")
        place.approve(app_digest())
        run_id = submit(place, app, flat)
    place.note_run(run_id, folder.name)
    durable.write_json(folder / FLOWER_RUN, {"run_id": run_id})
    return run_id


def _reach_registered(place: Place, folder: Path) -> list[str]:
    """Have a run reach its nodes by the keys that they have now, and none that was removed since it was made."""
    registered, named = place.nodes(), (named_nodes(folder) or {}).values()
    chosen = {name: registered[name].node_id for name in named if name in registered}
    if not chosen:
        raise ConfigError(
            f"expected a registered node in the run {folder.name}, but {', '.join(named)} were removed; start a new run"
        )
    durable.write_json(folder / NODES, chosen)
    return list(chosen)


def begin_run(place: Place, config: RunConfig, name: str, nodes: Sequence[str]) -> Path:
    """Make the folder of a new run and submit it; where that fails, there is no folder. Arguments and errors as above.

    Returns:
        The folder.

    Raises:
        ConfigError: the server's own records cannot be read, beside what is said above.
    """
    load_source(config.data.source, config.data.keys)
    folder = open_run(place, config, name, nodes)
    try:
        start_run(place, folder)
    except BaseException:
        if flower_run(folder) is None:
            shutil.rmtree(folder, ignore_errors=True)
        raise
    return folder


def is_played(place: Place, folder: Path) -> bool:
    """Whether the SuperLink plays the run in a folder now."""
    run_id = flower_run(folder)
    return run_id is not None and not run_status(place, run_id).startswith(("finished", "unknown"))


def flower_run(folder: Path) -> int | None:
    """Flower's id of the run in a folder; None where it was never submitted."""
    path = folder / FLOWER_RUN
    return int(json.loads(path.read_text())["run_id"]) if path.exists() else None


def halt(place: Place, folder: Path) -> None:
    """Stop the run in a folder; ``start_run`` continues it."""
    run_id = flower_run(folder)
    if run_id is None or not is_played(place, folder):
        raise ConfigError(f"expected a run that is being played, {folder.name} is not; see `fedgraft server status`")
    stop_run(place, run_id)


def follow(place: Place, folder: Path, on_round: Callable[[Line], None]) -> None:
    """Wait for the end of the run in a folder, telling of its rounds.

    Raises:
        FederationError: it failed, in the words that its server app left.
    """
    run_id, seen = flower_run(folder), 0
    asked = answered = time.monotonic()
    while True:
        ended = (folder / RESULT).exists() or (folder / FAILURE).exists()
        lines = read_lines(folder / ROUNDS)
        for line in lines[seen:]:
            on_round(line)
        seen = len(lines)
        if ended:
            break
        if run_id is not None and time.monotonic() - asked > ASK_EVERY_S:
            asked = time.monotonic()
            try:
                status, answered = run_status(place, run_id), time.monotonic()
            except FederationError:  # it is started again, or the machine is busy
                if supervisor_of(place.folder) is None or asked - answered > SILENCE_S:
                    raise
                status = "unknown"
            if status.startswith("finished") and not (folder / RESULT).exists():
                _raise_failure(folder, status)
        time.sleep(POLL_S)
    if not (folder / RESULT).exists():
        _raise_failure(folder, "failed")


def usual_name(config: Path) -> str:
    """A name for a run: the configuration's and the time."""
    return f"{config.stem}-{datetime.now():%Y%m%d-%H%M%S}"


def _check(config: RunConfig) -> None:
    if config.evaluation.node_metrics != "none":
        raise ConfigError(
            'evaluation.node_metrics = "exact" is for simulations only; real nodes let no exact metric out'
        )
    if config.evaluation.baselines != "none":
        raise ConfigError("baselines need all records in one place; set evaluation.baselines to none, or simulate")


def _raise_failure(folder: Path, status: str) -> None:
    path = folder / FAILURE
    if path.exists():
        said = json.loads(path.read_text())
        kinds = {name: kind for name, kind in vars(errors).items() if isinstance(kind, type)}
        raise kinds.get(said["kind"], FederationError)(said["message"])
    raise FederationError(
        f"the run {folder.name} ended ({status}) before its last round; see logs/apps.log, then continue it with "
        f"`fedgraft server resume {folder.name}`"
    )

"""The same work in fedgraft and in its peers: Flower with Opacus, pfl-research, NVIDIA FLARE; a table with ratios.

Each peer gets an environment of its own from the package index, and a program as its own documentation would have one
write it (``programs/``). All runs follow one another on this machine, each as a whole process, imports included. The
table and a plot go to ``docs/performance.md``. It takes hours on two cores. What can be chosen:

- ``FEDGRAFT_SETTINGS="10x200x5@64 10x200x50@224:flower,pfl-features"``: the work, as nodes x images x rounds @ pixels,
  and behind a colon which programs do it (``fedgraft`` for no peer);
- ``FEDGRAFT_PEERS="flower pfl-features"``: the programs beside fedgraft, out of ``PROGRAMS``;
- ``FEDGRAFT_ENVIRONMENTS``: the folder for the peers' environments; by default beside the feature cache;
- ``FEDGRAFT_LIMIT_S``: seconds after which a program is stopped, 3600 by default;
- ``FEDGRAFT_PAGE``: another page than ``docs/performance.md``; the plot goes beside it.
"""

from __future__ import annotations

import datetime
import json
import os
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from common.errors import ConfigError
from common.features import default_cache
from simulations.benchmarks.peers import ours, table
from simulations.benchmarks.peers.environments import FLARE, FLOWER, PFL, EnvironmentNotMadeError, Peer, Ready, make
from simulations.benchmarks.peers.measured import Measured, measure
from simulations.benchmarks.peers.table import OURS, Row
from simulations.benchmarks.peers.work import Work, lay_out, read

SETTINGS = ("10x200x5@64", "10x200x50@64", "10x200x5@224", "10x20x50@64", "100x20x5@64", "1000x20x5@64")
PROGRAMS_FOLDER = Path(__file__).parent / "programs"
PAGE = Path("docs/performance.md")
LIMIT_S = 3600.0
SHORT_S = 60.0  # a run that says too little by itself, beside others that take minutes

NOTES = """\
- Every program has the same images, nodes, rounds, expected batch, learning rate, clipping norm and noise multiplier, a
  linear classifier that starts at zero on the same frozen ResNet-18, and all cores. fedgraft's time holds the forward
  pass (its feature cache is empty each time), the ledgers, the checkpoints and the report; its backbone is packed once
  before, as weights are fetched once, and packing measures whether bfloat16 will do for it.
- fedgraft, Flower and FLARE draw Poisson batches and give ε for one image. pfl goes through each user's images in fixed
  batches, clips and noises the user's whole update with the same multiplier, once a round, so its ε is for a whole node
  and a number of rounds, not comparable with the others'; no gradient of a single image is clipped, which is less work.
- "Evaluated" programs look at the held-out images in every round, as fedgraft does here, and as each framework's own
  example does: in Flower's with Opacus the nodes evaluate the new model after each round, in FLARE's with Opacus the
  model that they receive, by pfl's callback every user before and after training and all held-out images (which is what
  pfl does unless told otherwise). At Flower's and FLARE's nodes each has its share of the held-out images. FLARE's
  example evaluates twice more in a round, and both examples compute ε in every round, which is left out. The other
  programs only train, and look at the held-out images once, at the end.
- "Flower + Opacus" sends the whole state of the network each way, as Flower's examples do; "head only" is the same
  program sending the classifier. It runs by `run_simulation`, on Ray, one core a client; `flwr run` would add a
  SuperLink's start.
- pfl with precomputed features computes them in the same process before the first round: in its wall time, not in
  its time of a round.
- FLARE runs one process for each client, at most ten at a time, as its simulator does; beyond ten, clients take turns
  and their processes start anew. Its recipes start the simulator with its own bound of 100 clients.
- fedgraft resizes and crops every image as torchvision's weights ask for, centres the features, and takes bfloat16
  where the processor has it and the features allow it; the peers take float32, without resizing or centring.
- PyTorch, torchvision and NumPy are the same build for all (a link in each peer's environment); all else is the peer's.
- fedgraft runs once before the other programs of a work and, where that takes less than a minute, once more after each
  of them; its row is the run of median wall time, with the shortest and the longest in brackets. The others run once.
- What a program imports is imported once by another process before its clock starts, so that no disk is measured.
- A round's time is the median, by each program's own clock, of what lies between the ends of two rounds.
- Memory is the most that all processes of a program held at one time, shared pages counted once, looked at twice a
  second; ratios are theirs to ours.
"""


@dataclass(frozen=True)
class Program:
    """A peer's program.

    Attributes:
        title: in the table.
        peer: whose environment it runs in.
        script: below ``programs/``.
        imports: read from the disk before the clock starts; so it is for fedgraft.
        variant: it is told.
        threads: what ``OMP_NUM_THREADS`` is to be; 0 for every core.
    """

    title: str
    peer: Peer
    script: str
    imports: str
    variant: str = ""
    threads: int = 0


PROGRAMS: Mapping[str, Program] = {
    "flower-evaluated": Program(
        "Flower + Opacus, evaluated", FLOWER, "flower_opacus.py", "flower_opacus, opacus, ray", "evaluated", 1
    ),
    "flower": Program("Flower + Opacus", FLOWER, "flower_opacus.py", "flower_opacus, opacus, ray", "all", 1),
    "flower-head": Program(
        "Flower + Opacus, head only", FLOWER, "flower_opacus.py", "flower_opacus, opacus, ray", "head", 1
    ),
    "pfl-features": Program("pfl, precomputed features", PFL, "pfl_linear.py", "pfl_linear", "features"),
    "pfl-resnet": Program("pfl, ResNet-18", PFL, "pfl_linear.py", "pfl_linear", "resnet"),
    "pfl-resnet-evaluated": Program(
        "pfl, ResNet-18, evaluated", PFL, "pfl_linear.py", "pfl_linear", "resnet-evaluated"
    ),
    "flare-evaluated": Program(
        "NVIDIA FLARE + Opacus, evaluated", FLARE, "flare_job.py", "flare_job, flare_client, opacus", "evaluated", 1
    ),
    "flare": Program("NVIDIA FLARE + Opacus", FLARE, "flare_job.py", "flare_job, flare_client, opacus", "", 1),
}


def main() -> None:
    """Run all, print the table as it grows, write page and plot.

    Raises:
        ConfigError: a setting or a program is not known.
    """
    names = os.environ.get("FEDGRAFT_PEERS", "").split() or list(PROGRAMS)
    chosen = [choice(text, names) for text in os.environ.get("FEDGRAFT_SETTINGS", "").split() or SETTINGS]
    page = Path(os.environ.get("FEDGRAFT_PAGE", PAGE))
    if not page.parent.is_dir():
        raise ConfigError(f"the page {page} needs a folder that is there; make {page.parent}, or choose another")
    folder = Path(os.environ.get("FEDGRAFT_ENVIRONMENTS") or default_cache().folder.parent / "peers")
    began = now()
    made = make_all({program.peer for _, programs in chosen for program in programs.values()}, folder)
    rows: list[Row] = []
    for work, programs in chosen:
        rows += compare(work, programs, made, float(os.environ.get("FEDGRAFT_LIMIT_S", LIMIT_S)), _show)
        publish(rows, made, began, page)
    printed = Table(*table.TITLES, title="whole processes, one after the other; ratios are theirs to ours")
    for line in table.all_cells(rows):
        printed.add_row(*map(escape, line))
    Console(width=180).print(printed)


def choice(text: str, names: Sequence[str]) -> tuple[Work, Mapping[str, Program]]:
    """A setting, and the programs that do it beside fedgraft: those named behind its colon, or all of these.

    >>> list(choice("10x200x50@224:fedgraft", ["flower"])[1]), list(choice("10x20x5@64", ["flower"])[1])
    ([], ['flower'])

    Raises:
        ConfigError: the setting or a program is not known.
    """
    setting, _, own = text.partition(":")
    wanted = [name for name in own.split(",") if name != OURS] if own else list(names)
    if unknown := set(wanted) - set(PROGRAMS):
        raise ConfigError(f"expected programs out of {', '.join(PROGRAMS)}, got {', '.join(sorted(unknown))}")
    return read(setting), {name: PROGRAMS[name] for name in wanted}


def now() -> datetime.datetime:
    """The time that the page tells."""
    return datetime.datetime.now(datetime.UTC)


def make_all(
    peers: set[Peer], folder: Path, maker: Callable[[Peer, Path], Ready] = make
) -> dict[Peer, Ready | EnvironmentNotMadeError]:
    """An environment for every peer, or why there is none."""
    made: dict[Peer, Ready | EnvironmentNotMadeError] = {}
    for peer in sorted(peers, key=lambda peer: peer.name):
        try:
            folder.mkdir(parents=True, exist_ok=True)
            made[peer] = maker(peer, folder / peer.package)
        except EnvironmentNotMadeError as error:
            made[peer] = error
        except OSError as error:
            made[peer] = EnvironmentNotMadeError(f"{folder} cannot be written: {error.strerror}")
    return made


def compare(
    work: Work,
    programs: Mapping[str, Program],
    made: Mapping[Peer, Ready | EnvironmentNotMadeError],
    limit_s: float,
    show: Callable[[Row], None],
) -> list[Row]:
    """One row for fedgraft and one for each program; where fedgraft is quick, it runs anew after each of them."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        file = lay_out(work, folder)
        own, others = [ours.run(work, folder, limit_s)], list[Row]()
        show(own[0])
        for program in programs.values():
            others.append(run_peer(work, program, made[program.peer], file, folder, limit_s))
            show(others[-1])
            if (own[0].wall_s or SHORT_S) < SHORT_S:
                own.append(ours.run(work, folder, limit_s))
                show(own[-1])
    return [table.median(own), *others]


def run_peer(
    work: Work, program: Program, made: Ready | EnvironmentNotMadeError, file: Path, folder: Path, limit_s: float
) -> Row:
    """Run a peer's program on the work in this file; its row, whatever happens."""
    if isinstance(made, EnvironmentNotMadeError):
        return Row(work.name, program.title, problem=f"could not be installed: {made}")
    result = folder / "result.json"
    result.unlink(missing_ok=True)
    surroundings = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "VIRTUAL_ENV"))}
    surroundings |= {
        "PATH": f"{made.python.parent}{os.pathsep}{os.environ.get('PATH', '')}",
        "PYTHONPATH": str(PROGRAMS_FOLDER),
        "PYTHONDONTWRITEBYTECODE": "1",
        "OMP_NUM_THREADS": str(program.threads or len(os.sched_getaffinity(0))),
        "PEER_WORK": str(file),
        "PEER_RESULT": str(result),
        "PEER_VARIANT": program.variant,
        "FLWR_HOME": str(folder / "flwr"),
        "FLWR_TELEMETRY_ENABLED": "0",
        "FLWR_DISABLE_UPDATE_CHECK": "1",
        "RAY_USAGE_STATS_ENABLED": "0",
    }
    measure([made.python, "-c", f"import {program.imports}"], surroundings, limit_s)
    measured = measure([made.python, PROGRAMS_FOLDER / program.script], surroundings, limit_s)
    return row_of(work, program.title, measured, result, limit_s)


def row_of(work: Work, title: str, measured: Measured, result: Path, limit_s: float) -> Row:
    """What a program took and wrote, as a row; one that did not end well says so."""
    if measured.status is None:
        return Row(work.name, title, problem=f"stopped after {limit_s:.0f} s", at_least_s=limit_s)
    if measured.status or not result.exists():
        lines = [line.strip() for line in measured.tail.splitlines() if line.strip()]
        return Row(work.name, title, problem=f"ended with status {measured.status}: {(lines or ['no word'])[-1]}"[:200])
    found = json.loads(result.read_text(encoding="utf-8"))
    return Row(
        work.name,
        title,
        measured.wall_s,
        measured.processor_s,
        measured.peak_bytes,
        found["round_s"],
        found["accuracy"],
        found["epsilon"],
        found["unit"],
    )


def publish(
    rows: list[Row], made: Mapping[Peer, Ready | EnvironmentNotMadeError], began: datetime.datetime, page: Path
) -> None:
    """Write the table, its notes and the plot."""
    plot = page.with_suffix(".svg")
    table.plot(rows, plot)
    versions = {
        peer.package: "not installed" if isinstance(ready, EnvironmentNotMadeError) else ready.versions[peer.package]
        for peer, ready in made.items()
    }
    head = (
        f"Measured from {began:%Y-%m-%d %H:%M} UTC by `python -m simulations.benchmarks peers`, in one go.\n"
        f"Machine: {table.machine()}.\nVersions: {table.versions(versions)}.\n\n"
        f"Work is named nodes x images of a node x rounds @ pixels. Ratios are theirs to {OURS}'s.\n"
    )
    picture = f"![Wall time of every program]({plot.name})"
    table.write_page(page, f"{head}\n{table.markdown(rows)}\n\n{picture}\n\n{NOTES}")


def _show(row: Row) -> None:
    Console(width=180).print(" | ".join(table.cells(row, None)), markup=False)

"""One HTML page that says what a run reached, what it promised, and what that cost."""

from __future__ import annotations

from pathlib import Path

from common.durable import write_bytes
from simulations.report.results import read_run

__all__ = ["write_report"]


def write_report(run_folder: Path, halves: bool = False) -> Path:
    """Write ``report.html`` into a finished run's folder.

    Args:
        run_folder: holds ``result.json`` and, as far as they exist, ``config.toml``, ``rounds.jsonl`` and the run
            folders ``seed-<k>`` of a run of several seeds.
        halves: draw it in two processes at once; only where nothing else needs the cores, and no thread is running.

    Returns:
        The report's path.

    Guarantees:
        The page loads nothing and runs no script; names from data or nodes are escaped; what was not computed is said
        to be so; the file is replaced as a whole or not at all, and only its owner can read a confidential one.

    Raises:
        ConfigError: there is no readable ``result.json``, or the report cannot be written.
    """
    from simulations.report.halves import in_halves, one_by_one
    from simulations.report.page import page  # here: Matplotlib takes long to import, and is needed last
    from simulations.report.svg import theme

    run = read_run(run_folder)
    with theme():
        text = page(run, in_halves if halves else one_by_one)
    path = run_folder / "report.html"
    mode = 0o600 if run.facts.flag("confidential") else 0o644
    write_bytes(path, text.encode("utf-8", errors="replace"), mode=mode)
    return path

"""A process beside a simulation, for what needs no PyTorch: the accountant's work before it, the report after it.

It is forked before PyTorch is imported, and has imported and worked out its part when the features are computed; so two
cores share what a run waits for at its ends. Nothing depends on it: without it the same functions run in this process.
"""

from __future__ import annotations

import ctypes
import multiprocessing
import os
import signal
import sys
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from common.config import RunConfig
from common.errors import FederationError
from common.importing import without_collecting
from common.privacy import known
from simulations.report import write_report

PR_SET_PDEATHSIG = 1


@contextmanager
def aside(config: RunConfig | None) -> Iterator[Callable[[Path], Path]]:
    """Have a second process work while the block runs, where that is safe and there is a core for it.

    Args:
        config: of the run that is about to start; None where its costs are not to be worked out ahead.

    Yields:
        What writes a report, as ``simulations.report.write_report``.
    """
    if not worth_it():
        yield write_report
        return
    others = multiprocessing.active_children()
    pool = ProcessPoolExecutor(1, multiprocessing.get_context("fork"), _begin, (os.getpid(),))
    asked = [pool.submit(work, config) for work in (_noise, _table) if config is not None]
    for each in asked:
        known.expect(_answers(each))
    begun: list[Future[Any]] = [*asked, pool.submit(_prepare_report)]
    (process,) = set(multiprocessing.active_children()) - set(others)
    try:
        yield lambda folder: _report(pool, folder)
    finally:
        known.expect_nothing()
        pool.shutdown(wait=False, cancel_futures=True)
        if not all(each.done() for each in begun):  # nobody waits any more for what it is importing
            process.kill()


def worth_it() -> bool:
    """Whether to fork: never beside PyTorch, whose threads would be missing over there."""
    return sys.platform == "linux" and "torch" not in sys.modules and len(os.sched_getaffinity(0)) > 1


def _begin(parent: int) -> None:
    """Over there: end with the process that forked, and leave Ctrl-C to it."""
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != parent:  # it has ended already
        os._exit(1)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    warnings.simplefilter("ignore")


def _noise(config: RunConfig) -> known.Answers:
    """Over there: work out the noise that the run's promise takes."""
    with without_collecting():
        from common.privacy.hospitals import noise_multiplier_across

        privacy, steps = config.privacy, config.federation.rounds * config.training.local_steps
        noise_multiplier_across(
            privacy.epsilon, privacy.delta, privacy.sampling_rate, steps, privacy.trust, privacy.most_hospitals
        )
    return known.answers()


def _table(config: RunConfig) -> known.Answers:
    """Over there: work out what each round costs."""
    from common.privacy.accountant import epsilon_by_round, noise_multiplier_for
    from common.privacy.plan import PrivacyTerms

    privacy, rounds, local_steps = config.privacy, config.federation.rounds, config.training.local_steps
    if privacy.trust == "local":
        sigma = noise_multiplier_for(privacy.epsilon, privacy.delta, privacy.sampling_rate, rounds * local_steps)
        epsilon_by_round(
            PrivacyTerms("record", "local", privacy.sampling_rate, rounds, local_steps, 1.0, sigma, privacy.delta)
        )
    return known.answers()


def _prepare_report() -> None:
    """Over there: import what draws."""
    with without_collecting():
        import simulations.report.page  # noqa: F401


def _answers(asked: Future[known.Answers]) -> Callable[[], known.Answers]:
    def answers() -> known.Answers:
        try:
            return asked.result()
        except (FederationError, BrokenProcessPool):
            return {}  # what was refused there is refused here, in its place

    return answers


def _report(pool: ProcessPoolExecutor, folder: Path) -> Path:
    try:
        return pool.submit(write_report, folder).result()
    except BrokenProcessPool:  # somebody has killed it
        return write_report(folder)

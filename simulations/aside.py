"""A process beside a simulation, for what needs no PyTorch: the accountant's work before it, the report after it.

It is forked before PyTorch is imported, and has imported and worked out its part when the features are computed; so two
cores share what a run waits for at its ends. Nothing depends on it: without it the same functions run in this process.
"""

from __future__ import annotations

import atexit
import multiprocessing
import os
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from multiprocessing.connection import Connection
from pathlib import Path

from common.config import RunConfig
from common.errors import FederationError
from common.importing import import_when_used, without_collecting
from common.privacy import known
from simulations.forked import belong_to, not_interrupted
from simulations.report import write_report

LAST_WORDS_S = 5.0  # for a report that nobody waits for any more, and for its end


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
    try:
        other = _Other(config)
    except OSError:  # no room for a process more
        yield write_report
        return
    try:
        for _ in range(other.unheard):
            known.expect(other.answers)
        yield other.report
    finally:
        known.expect_nothing()
        other.end()


def worth_it() -> bool:
    """Whether to fork: never beside PyTorch, whose threads would be missing over there."""
    return sys.platform == "linux" and "torch" not in sys.modules and len(os.sched_getaffinity(0)) > 1


class _Other:
    """The other process. It answers in the order in which it works; one that has been killed knows nothing.

    Attributes:
        unheard: answers of the accountant that have not been taken yet.
    """

    def __init__(self, config: RunConfig | None) -> None:
        """Fork."""
        context = multiprocessing.get_context("fork")
        self._here, there = context.Pipe()
        self._process = context.Process(target=_serve, args=(config, there, self._here, os.getpid()), daemon=True)
        with not_interrupted():
            self._process.start()
        there.close()
        self.unheard, self._state = 0 if config is None else len(AHEAD), "works ahead"

    def answers(self) -> known.Answers:
        """What the accountant said over there."""
        self.unheard -= 1
        try:
            found: known.Answers = self._here.recv()
        except (EOFError, OSError):
            return {}
        return found

    def report(self, folder: Path) -> Path:
        """Have a report written; errors as in ``write_report``."""
        while self.unheard:
            self.answers()
        try:
            self._here.send(folder)
            self._state = "writes"
            said: Path | FederationError | None = self._here.recv()
        except (EOFError, OSError):  # somebody has killed it
            said = None
        self._state = "waits"
        if isinstance(said, FederationError):
            raise said
        return said or write_report(folder)

    def end(self) -> None:
        """End it, at once unless it is writing."""
        if self._state == "writes":
            with suppress(OSError):
                self._here.poll(LAST_WORDS_S)
        self._here.close()
        if self._state != "works ahead":
            self._process.join(LAST_WORDS_S)
        self._process.kill()
        self._process.join()


def _serve(config: RunConfig | None, there: Connection, here: Connection, parent: int) -> None:
    """Over there: work ahead, then write reports until the other end closes."""
    belong_to(parent)
    here.close()
    atexit._clear()  # what was to be done at the end of the other process, it will do
    warnings.simplefilter("ignore")
    with suppress(EOFError, OSError):
        if config is not None:
            import_when_used("scipy.signal")  # dp-accounting names it, for what is not asked here
            for work in AHEAD:
                there.send(_tried(work, config))
        with without_collecting():
            import simulations.report.page  # noqa: F401  (what draws)
        while True:
            there.send(_report(there.recv()))
    atexit._run_exitfuncs()  # Matplotlib may have a temporary folder


def _tried(work: Callable[[RunConfig], None], config: RunConfig) -> known.Answers:
    """Over there: what is known after some work; what is refused here is refused by the simulation, in its place."""
    with suppress(Exception):
        work(config)
    return known.answers()


def _noise(config: RunConfig) -> None:
    """Over there: work out the noise that the run's promise takes."""
    _noise_multiplier(config)


def _table(config: RunConfig) -> None:
    """Over there: work out what each round costs."""
    from common.privacy.accountant import epsilon_by_round
    from common.privacy.plan import PrivacyTerms

    privacy, rounds, local_steps = config.privacy, config.federation.rounds, config.training.local_steps
    if privacy.trust == "local":
        sigma = _noise_multiplier(config)
        epsilon_by_round(
            PrivacyTerms("record", "local", privacy.sampling_rate, rounds, local_steps, 1.0, sigma, privacy.delta)
        )


def _noise_multiplier(config: RunConfig) -> float:
    with without_collecting():
        from common.privacy.hospitals import noise_multiplier_across

        privacy, steps = config.privacy, config.federation.rounds * config.training.local_steps
        return noise_multiplier_across(
            privacy.epsilon, privacy.delta, privacy.sampling_rate, steps, privacy.trust, privacy.most_hospitals
        )


def _report(folder: Path) -> Path | FederationError | None:
    try:
        return write_report(folder, halves=True)
    except FederationError as error:
        return error
    except Exception:  # a mistake of ours, which is to be seen where the report was asked for
        return None


AHEAD: tuple[Callable[[RunConfig], None], ...] = (_noise, _table)

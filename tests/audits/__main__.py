"""``python -m tests.audits``: the full audit of the shipped code and of every mutant.

``--update-docs`` writes the table into docs/audit-mutations.md. It exits with 1 where a mutant lives or the shipped
code is accused more often than the alarm level allows.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path

PAGE = Path(__file__).parents[2] / "docs" / "audit-mutations.md"
BEGIN, END = "<!-- table of mutations -->\n", "<!-- end of the table -->"
AUDITS, RUNS, ALLOWED = 200, 1000, 1  # more than one of 200 audits accused by chance: with a probability below 1e-3


def rows() -> Iterator[tuple[str, bool]]:
    """Lines of the table, and whether each is as it should be."""
    from simulations.audits.practice import SHIPPED
    from tests.audits.killing import Killing, kill
    from tests.audits.mutants import MUTANTS

    def line(killing: Killing) -> str:
        names = "; ".join(killing.killers) if killing.killers else "nothing"
        return f"| {killing.name} | {names} | {killing.margin} | {killing.seconds:.1f} |"

    shipped = kill("the shipped code", SHIPPED)
    yield line(shipped), not shipped.killers
    for mutant in MUTANTS:
        killing = kill(mutant.name, mutant.practice)
        yield line(killing), bool(killing.killers)


def true_mechanism() -> Iterator[tuple[str, bool]]:
    """Sentences on audits of the true mechanism, and of half its noise."""
    from simulations.audits.alarms import noise_alarms

    for epsilon, rate, steps in ((4.0, 1.0, 1), (8.0, 1.0, 4), (1.0, 0.2, 20)):
        began = time.perf_counter()
        true = noise_alarms(AUDITS, RUNS, epsilon, rate, steps)
        half = noise_alarms(AUDITS, RUNS, epsilon, rate, steps, scale=0.5)
        seconds = time.perf_counter() - began
        words = f"{AUDITS} audits at ε = {epsilon:g}, q = {rate:g}, T = {steps}: alarms of the true mechanism {true}, "
        yield words + f"of half the noise {half}; {seconds:.1f} s", sum(true.values()) <= ALLOWED


def shipped_steps() -> tuple[str, bool]:
    """The same for the shipped private steps themselves: one attack, 200 times, each time with other noise."""
    from simulations.audits.alarms import audit_steps
    from simulations.audits.practice import SHIPPED

    began = time.perf_counter()
    estimates = [estimate for seed in range(AUDITS) for estimate in audit_steps(SHIPPED, seed, only=("mere label",))]
    raised, closest = sum(estimate.alarm for estimate in estimates), max(estimate.epsilon for estimate in estimates)
    words = f"{AUDITS} audits of the shipped steps at ε = {estimates[0].claimed:.3g}: {raised} of {len(estimates)} "
    words += f"estimates raised an alarm, the largest bound was {closest:.3g}; {time.perf_counter() - began:.1f} s"
    return words, raised <= ALLOWED


def main(arguments: list[str]) -> int:
    """Print, write where asked, and say whether all is well."""
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    fine = True
    lines: list[str] = []
    header = "| mutation | killed by | largest margin | seconds |\n|---|---|---|---|"
    print(header)
    for line, good in rows():
        fine, lines = fine and good, [*lines, line]
        print(line, flush=True)
    for sentence, good in (*true_mechanism(), shipped_steps()):
        fine = fine and good
        print(sentence, flush=True)
    if "--update-docs" in arguments:
        page = PAGE.read_text()
        before, after = page.split(BEGIN)[0], page.split(END)[1]
        PAGE.write_text(before + BEGIN + "\n".join([header, *lines]) + "\n" + END + after)
    print("all as it should be" if fine else "error: a mutant lives, or the shipped code was accused")
    return 0 if fine else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

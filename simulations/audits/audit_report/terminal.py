"""The end of an audit on the terminal: verdict, bounds, and what attacks on records reached."""

from __future__ import annotations

from rich.box import SIMPLE
from rich.console import Console
from rich.table import Table
from rich.text import Text

from simulations.audits.audit_report import words
from simulations.audits.audit_report.audit import Audit
from simulations.audits.audit_report.sections import reading_name, world
from simulations.report import wording


def show(audit: Audit, console: Console) -> None:
    """Print an audit."""
    for sentence in [words.refuted(audit.claim, one) for one in audit.alarms[:3]]:
        console.print(Text(f"ALARM: {sentence}", style="bold red"), soft_wrap=True)
    if audit.bounds:
        console.print(bounds_table(audit))
    if audit.memberships:
        console.print(membership_table(audit))
    for line in notes(audit):
        console.print(line, highlight=False, markup=False, soft_wrap=True)


def bounds_table(audit: Audit) -> Table:
    """Return the lower bounds under the promise."""
    claim = audit.claim
    title = f"promised   ε ≤ {words.claimed(claim.epsilon)} ({words.terms(claim)})"
    table = Table(title=Text(title), title_justify="left", box=SIMPLE)
    for name in ("attacker", "canary", "method"):
        table.add_column(name, no_wrap=True)
    for name in ("ε ≥", "confidence", "estimate", "heads", "time"):
        table.add_column(name, justify="right", no_wrap=True)
    for one in audit.bounds:
        found = one.found
        table.add_row(
            found.threat,
            words.SHORT_CANARIES[found.canary],
            words.METHODS[found.method] + (" *" if found.assumption else ""),
            words.floor(found.epsilon),
            words.confidence(found.confidence),
            wording.DASH if found.estimate is None else f"{found.estimate:.2f}",
            f"{found.heads:,}",
            wording.duration(found.seconds),
            style="bold red" if one.breaks(claim) else None,
        )
    return table


def membership_table(audit: Audit) -> Table:
    """Return how well members are told from others."""
    levels = sorted({rate for test in audit.memberships for rate in test.found.true_positive_rate_at}, reverse=True)
    table = Table(title=Text("membership inference"), title_justify="left", box=SIMPLE)
    for name in ("method", "attacker", "world"):
        table.add_column(name, no_wrap=True)
    for name in (*(f"found at {100 * rate:g} % false" for rate in levels), "area", "heads", "time"):
        table.add_column(name, justify="right", no_wrap=True)
    for test in audit.memberships:
        found = test.found
        table.add_row(
            words.METHODS.get(found.method, found.method),
            test.threat,
            world(test),
            *(wording.percent(found.true_positive_rate_at.get(rate), 2) for rate in levels),
            f"{found.area:.3f}",
            f"{found.heads:,}",
            wording.duration(found.seconds),
        )
    return table


def notes(audit: Audit) -> list[str]:
    """Return the lines under the tables."""
    conditions = {one.found.method: words.assumed(one.found) for one in audit.bounds if one.found.assumption}
    lines = [f"* {words.METHODS[method]}: conditional, holds if {text}" for method, text in conditions.items()]
    for one in audit.reconstructions:
        lines.append(f"reading   {reading_name(one)}: error {one.error:.3g}, a guess {one.chance:.3g}")
    if audit.checks:
        lines.append(f"replay    {len(audit.checks) - len(audit.failed)} of {len(audit.checks)} checks passed")
    lines += [f"FAILED    {check.check}: {check.sentence}" for check in audit.failed]
    lines += [f"not run   {name}: {why}" for name, why in audit.not_run.items()]
    return [*lines, "", words.verdict(audit), words.NO_PROOF]

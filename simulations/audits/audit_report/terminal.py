"""The end of an audit on the terminal: verdict, bounds, and what attacks on records reached."""

from __future__ import annotations

from collections.abc import Sequence

from rich.box import SIMPLE
from rich.console import Console
from rich.table import Table
from rich.text import Text

from simulations.audits.audit_report import words
from simulations.audits.audit_report.audit import Audit, Bound
from simulations.audits.audit_report.plots import small
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
    levels = ", ".join(sorted({words.confidence(one.found.confidence) for one in audit.bounds}))
    title = f"promised   ε ≤ {words.claimed(claim.epsilon)} ({words.terms(claim)})\nshown      at {levels} confidence"
    table = _table(title, ("attacker", "canary", "method"), ("ε ≥", "estimate", "heads", "time"))
    before: tuple[str, ...] = ()
    for one in strongest(audit):
        found = one.found
        attack = (found.threat, words.SHORT_CANARIES[found.canary])
        table.add_row(
            *(("", "") if attack == before else attack),
            words.METHODS[found.method] + (" *" if found.assumption else ""),
            words.floor(found.epsilon),
            wording.DASH if found.estimate is None else f"{found.estimate:.2f}",
            f"{found.heads:,}",
            wording.duration(found.seconds),
            style="bold red" if one.breaks(claim) else None,
        )
        before = attack
    return table


def strongest(audit: Audit) -> list[Bound]:
    """Return the largest bound of each attack, of those that rest on an assumption and of those that rest on none."""
    kept: dict[tuple[str, str, bool], Bound] = {}
    for one in audit.bounds:
        key = (one.found.threat, one.found.canary, one.found.assumption is not None)
        if key not in kept or one.found.epsilon > kept[key].found.epsilon:
            kept[key] = one
    return list(kept.values())


def membership_table(audit: Audit) -> Table:
    """Return how well members are told from others."""
    levels = sorted({rate for test in audit.memberships for rate in test.found.true_positive_rate_at}, reverse=True)
    title = "members found, at so many false alarms"
    numbers = (*(f"at {100 * rate:g}{wording.THIN}%" for rate in levels), "area", "heads", "time")
    table = _table(title, ("attacker", "world", "method"), numbers)
    before: tuple[str, ...] = ()
    for test in audit.memberships:
        found, setting = test.found, (test.threat, world(test))
        table.add_row(
            *(("", "") if setting == before else setting),
            words.METHODS.get(found.method, found.method),
            *(wording.percent(found.true_positive_rate_at.get(rate), 2) for rate in levels),
            f"{found.area:.3f}",
            f"{found.heads:,}",
            wording.duration(found.seconds),
        )
        before = setting
    return table


def _table(title: str, names: Sequence[str], numbers: Sequence[str]) -> Table:
    table = Table(title=Text(title), title_justify="left", box=SIMPLE, pad_edge=False, collapse_padding=True)
    for name in names:
        table.add_column(name, no_wrap=True)
    for name in numbers:
        table.add_column(name, justify="right", no_wrap=True)
    return table


def notes(audit: Audit) -> list[str]:
    """Return the lines under the tables."""
    lines = [f"* {method}: conditional, holds if {text}" for method, text in words.conditions(audit).items()]
    for one in audit.reconstructions:
        lines.append(f"reading   {reading_name(one)}: error {small(one.error)}, a guess {small(one.chance)}")
    if len(strongest(audit)) < len(audit.bounds):
        lines.append(f"bounds    the largest of each attack; all {len(audit.bounds)} are in --report and --json")
    if audit.steps:
        kept = sum(found.holds for found in audit.steps)
        lines.append(
            f"steps     {kept} of {len(audit.steps)} bounds through the shipped private steps keep their promise"
        )
    if audit.checks:
        lines.append(f"replay    {sum(check.holds for check in audit.checks)} of {len(audit.checks)} checks passed")
    lines += [f"FAILED    {check.check}: {check.sentence}" for check in audit.failed]
    lines += [f"not run   {name}: {why}" for name, why in audit.not_run.items()]
    return [*lines, "", words.verdict(audit), words.NO_PROOF]

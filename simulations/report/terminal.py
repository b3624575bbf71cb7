"""The end of a run on the terminal: the report's headline numbers as one table."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich.box import SIMPLE
from rich.table import Table
from rich.text import Text

from simulations.report import wording
from simulations.report.comparisons import FEDERATED, meaning, worlds
from simulations.report.prose import no_guarantee
from simulations.report.results import Facts


def result_table(result: Mapping[str, Any]) -> Table:
    """Return a run's result as a table for the terminal.

    Args:
        result: what ``result.json`` holds; anything in it may be missing or null.

    Returns:
        A row for the accuracy of the federation and of each baseline (with the standard deviation over seeds where
        there is one), the task's other metrics, then ε with its δ, unit and trust model, bytes, and time. Baselines
        that were not computed are left out; anything else that is missing is said to be "not computed".
    """
    facts = Facts(result)
    table = Table(title=headline(facts), title_justify="left", show_header=False, box=SIMPLE)
    table.add_column("what", no_wrap=True)
    table.add_column("value", justify="right", no_wrap=True)
    table.add_column("remark", style="dim")
    for world in worlds(facts):
        if world.key == FEDERATED or facts.number("accuracy", world.key) is not None:
            add(
                table,
                f"Accuracy, {world.label.lower()}",
                accuracy(facts, world.key),
                meaning(facts, world),
                world.key == FEDERATED,
            )
    for name, value in metrics(facts):
        add(table, name, value, "of the federation's head")
    table.add_section()
    add(table, *privacy(facts))
    table.add_section()
    for name, value, remark in costs(facts):
        add(table, name, value, remark)
    return table


def add(table: Table, name: str, value: str, remark: str, bold: bool = False) -> None:
    """Add a row of plain text: brackets in names are no markup."""
    table.add_row(Text(name), Text(value), Text(remark), style="bold" if bold else None)


def headline(facts: Facts) -> Text:
    """Return the table's title."""
    meaning = wording.ACCURACIES.get(facts.text("data", "task") or "")
    counts = f"{wording.many(facts.number('nodes'), 'node')}, {wording.many(facts.number('rounds'), 'round')}"
    planned = facts.number("rounds_planned")
    if planned is not None and planned != facts.number("rounds"):
        counts += f" of {wording.whole(planned)}, stopped by the validation records"
    return Text(counts if meaning is None else f"{counts}; accuracy: {meaning}")


def accuracy(facts: Facts, key: str) -> str:
    """Write one accuracy with its spread over seeds."""
    spread = facts.number("accuracy_std", key)
    value = wording.percent(facts.number("accuracy", key))
    return value if spread is None else f"{value} ± {100 * spread:.1f}"


def metrics(facts: Facts) -> list[tuple[str, str]]:
    """Return the task's metrics beside accuracy and loss, as fractions."""
    found = {name: facts.number("metrics", name) for name in facts.items("metrics") if name != "loss"}
    return [(wording.metric_name(name), f"{value:.3f}") for name, value in found.items() if value is not None]


def privacy(facts: Facts) -> tuple[str, str, str]:
    """Return the row about ε."""
    guarantee = wording.is_guarantee(facts)
    remark = wording.conditions(facts) + ("" if guarantee else f"; {no_guarantee(facts)}")
    return (
        "ε, worst node" if guarantee else "ε, worst node, nominal",
        wording.epsilon(wording.worst_epsilon(facts)),
        remark,
    )


def costs(facts: Facts) -> list[tuple[str, str, str]]:
    """Return the rows about bytes and time."""
    spent = {key: facts.number("timing_s", key) for key in ("features", "rounds", "baselines")}
    shares = ", ".join(f"{key} {wording.duration(time)}" for key, time in spent.items() if time is not None)
    sent = wording.size(facts.number("bytes", "per_round_per_node"))
    backbone = wording.size(facts.number("bytes", "backbone_once"))
    return [
        ("Sent, each node in each round", sent, f"backbone, once: {backbone}"),
        ("Time in all", wording.duration(facts.number("timing_s", "total")), shares),
    ]

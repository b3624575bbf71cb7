"""The report's answers: was it worth it, what was protected, what does the model get wrong."""

from __future__ import annotations

import numpy as np

from simulations.report import figures, prose, wording
from simulations.report.comparisons import (
    FEDERATED,
    Comparison,
    World,
    at_epsilon,
    compare,
    meaning,
    spends_the_same,
    worlds,
)
from simulations.report.heat_map import heat_map
from simulations.report.markup import Markup, definitions, element, folded, join, paragraph, table
from simulations.report.results import Facts, Run, finite
from simulations.report.svg import plate

QUESTIONS = (  # baseline, question, what it is compared with, whether the answer is a cost
    ("local_mean", "Was federating worth it?", "each node alone{at}", False),
    ("no_transfer", "Was transferring worth it?", "the same network untrained{at}", False),
    ("raw_pixels", "Did the network help at all?", "the bare pixels{at}", False),
    ("no_dp", "What did privacy cost?", "the same federation without noise", True),
    ("pooled", "What did keeping data apart cost?", "all records in one place{at}", True),
)
NOMINAL = "What follows is what the plan would give; this run does not promise it."
SHOWN_CONFUSIONS = 5
READABLE_CLASSES = 30


def worth(run: Run) -> Markup:
    """Answer what federating and transferring brought and what privacy cost."""
    accuracy = run.facts.numbers("accuracy")
    answers = [
        answer(compare(run, key), question, against.replace("{at}", at_epsilon(run.facts, key)), cost)
        for key, question, against, cost in QUESTIONS
    ]
    return join(
        [
            element("div", *answers, class_="cards"),
            element("div", bar_chart(run) if accuracy else missing("Accuracy"), accuracy_table(run), class_="pair"),
            paragraph(
                "The baselines are hypothetical worlds, trained in this process after the federated rounds, each "
                "with a ledger of its own; nothing of them was sent to or spent at a node. ",
                *uncertainty(run),
                class_="note",
            ),
            seeds_table(run) if run.seeds else None,
        ]
    )


def answer(comparison: Comparison | None, question: str, against: str, cost: bool) -> Markup:
    """Return one question's card."""
    if comparison is None:
        text = paragraph(wording.NOT_COMPUTED, class_="figure-none")
        return element("div", element("h3", question), text, class_="card")
    gain = comparison.difference
    number = element("span", wording.points(-gain).lstrip("+") if cost else wording.points(gain), class_="figure")
    margin = f" ± {wording.points(comparison.margin).lstrip('+')}" if comparison.margin is not None else ""
    both = f"{wording.percent(comparison.federated)}; {against}: {wording.percent(comparison.other)}"
    unclear = None if comparison.clear else paragraph("No clear difference: it is within the margin.", class_="unclear")
    return element(
        "div",
        element("h3", question),
        paragraph(number, element("small", f"{margin} points")),
        paragraph(both, class_="small"),
        unclear,
        class_="card",
    )


def uncertainty(run: Run) -> list[str]:
    """Say what the margins mean."""
    records = run.facts.count("data", "test")
    if not records:
        return []
    seeds = f", or the spread over {len(run.seeds)} seeds where that is larger" if run.seeds else ""
    return [
        f"Margins (±) after differences are 95{wording.THIN}% intervals from the {wording.whole(records)} held-out "
        f"records as independent draws{seeds}; all worlds are tested on the same records, so they err on the wide side."
    ]


def bar_chart(run: Run) -> Markup:
    """Draw the worlds' accuracies."""
    accuracy, spread = run.facts.numbers("accuracy"), run.facts.numbers("accuracy_std")
    bars = [
        figures.Bar(
            wording.shorten(world.label, 18), accuracy[world.key], spread.get(world.key), world.key == FEDERATED
        )
        for world in worlds(run.facts)
        if world.key in accuracy
    ]
    chance = run.facts.number("chance")
    told = "; ".join(f"{bar.label} {figures.bar_number(bar)}" for bar in bars)
    figure = figures.bars(bars, chance)
    others = [
        f"{world.label}: ε{wording.EQUALS}{wording.epsilon(run.facts.number('epsilon', world.key))}. "
        for world in worlds(run.facts)
        if not spends_the_same(run.facts, world.key)
    ]
    whose = "Federated" if others else "All ε"
    note = f"{whose}: {wording.promise(run.facts)}. {''.join(others)}“No privacy” has none."
    spread_note = " Thin lines: one standard deviation over seeds." if spread else ""
    return plate("worlds", "Accuracy on held-out records", figure, f"Accuracy: {told}.", note + spread_note)


def accuracy_table(run: Run) -> Markup:
    """List the worlds' accuracies with what each world is."""
    rows = [accuracy_row(run, world) for world in worlds(run.facts)]
    rows.append(["Chance", wording.percent(run.facts.number("chance"), 2), "", "", "", "guessing without looking"])
    columns = ["World", "Accuracy", "ε", "Federated minus it", "Std over seeds", "What it is"]
    if not run.facts.numbers("accuracy_std"):
        rows, columns = [[*row[:4], row[5]] for row in rows], [*columns[:4], columns[5]]
    return table("Accuracy of each world", columns, rows, numeric=range(1, len(columns) - 1))


def accuracy_row(run: Run, world: World) -> list[str]:
    """Return one world's row."""
    facts, comparison = run.facts, compare(run, world.key)
    spread, spent = facts.number("accuracy_std", world.key), facts.number("epsilon", world.key)
    difference = comparison.difference if comparison and world.key != FEDERATED else None
    return [
        world.label,
        wording.percent(facts.number("accuracy", world.key), 2),
        wording.DASH if spent is None else wording.epsilon(spent),
        wording.DASH if difference is None else wording.points(difference, 2),
        wording.DASH if spread is None else f"{100 * spread:.2f}",
        meaning(facts, world),
    ]


def seeds_table(run: Run) -> Markup:
    """List each seed's accuracies."""
    shown = [world for world in worlds(run.facts) if world.key in run.facts.numbers("accuracy")]
    rows = [
        [seed.seed, *(wording.percent(seed.facts.number("accuracy", w.key), 2) for w in shown)] for seed in run.seeds
    ]
    columns = ["Seed", *(world.label for world in shown)]
    return table("Accuracy by seed", columns, rows, numeric=range(1, len(columns)))


def protection(run: Run) -> Markup:
    """Say what was protected against whom, and what was not."""
    found = prose.banner(run.facts)
    return join(
        [
            paragraph(element("strong", found[0], ". "), NOMINAL) if found else None,
            definitions(prose.protected(run.facts)),
            element("h3", "Not covered"),
            definitions(prose.not_protected(run)),
            plan_table(run.facts),
        ]
    )


def plan_table(facts: Facts) -> Markup:
    """List the privacy plan's public constants."""
    number, text = facts.number, facts.text
    rows: list[tuple[str, str | None, str]] = [
        ("Privacy unit", text("privacy", "unit"), "what is added or removed between neighbouring data sets"),
        ("Trust model", text("privacy", "trust"), "who adds the noise"),
        ("δ", wording.plain(number("privacy", "delta")), "the probability that ε leaves open"),
        ("ε budget", wording.epsilon(number("privacy", "epsilon_budget")), "each node's cap, at that δ and unit"),
        (
            "ε spent, worst node",
            wording.epsilon(wording.worst_epsilon(facts)),
            "from the nodes' ledgers, at that δ and unit",
        ),
        *sums_rows(facts),
        *hospitals_rows(facts),
        (
            "Noise multiplier σ",
            wording.plain(number("privacy", "noise_multiplier")),
            "noise std ÷ clipping norm, in each step",
        ),
        (
            "Clipping norm",
            wording.plain(number("privacy", "clipping_norm")),
            "the most that one unit moves a step's sum",
        ),
        ("Sampling rate", wording.plain(number("privacy", "sampling_rate")), "the chance of a unit to be in a step"),
        ("Steps in the whole run", wording.whole(number("privacy", "steps")), "noisy steps at each node"),
        ("Accountant", text("privacy", "accountant"), "computes ε from σ, sampling rate and steps"),
        ("Noise source", text("privacy", "noise_source"), "“system” is the operating system's generator"),
    ]
    cells = [[name, value or wording.NOT_COMPUTED, meaning] for name, value, meaning in rows]
    return table("The privacy plan, as every node accounted for it", ["Constant", "Value", "Meaning"], cells)


def hospitals_rows(facts: Facts) -> list[tuple[str, str | None, str]]:
    """List what holds for a patient known to several of the nodes, where the plan says of how many."""
    hospitals = facts.number("privacy", "hospitals_per_patient")
    if hospitals is None:
        return []
    whole, epsilon = wording.whole(hospitals), facts.number("privacy", "epsilon_across_hospitals")
    rows: list[tuple[str, str | None, str]] = [
        (
            "ε across hospitals",
            wording.epsilon(epsilon),
            f"for a patient whose records are at up to {whole} of the nodes, at that δ; the ε above is each node's own",
        )
    ]
    of_model = facts.number("privacy", "epsilon_across_hospitals_against_model")
    if of_model is not None:
        rows.append(("ε across hospitals, model's readers", wording.epsilon(of_model), "who know no node's noise"))
    return rows


def sums_rows(facts: Facts) -> list[tuple[str, str | None, str]]:
    """List what the sums of secure aggregation allow for, and the figure against whoever sees the model only."""
    if facts.text("privacy", "trust") != "secagg":
        return []
    against_model = max(facts.numbers("privacy", "epsilon_against_model_per_node").values(), default=None)
    return [
        (
            "ε against the model's readers, worst node",
            wording.epsilon(against_model),
            "who know no node's noise, at that δ and unit; the ε above is against server and colluders together",
        ),
        ("Nodes in a sum", wording.whole(facts.number("privacy", "nodes")), "the fewest that a round begins with"),
        (
            "Drop-outs allowed for",
            wording.whole(facts.number("privacy", "dropouts")),
            "with more, a round is discarded",
        ),
        ("Colluders allowed for", wording.whole(facts.number("privacy", "colluders")), "whose noise does not count"),
    ]


def mistakes(run: Run) -> Markup:
    """Show the confusion matrix and the task's other metrics."""
    return element("div", confusion(run), metrics_table(run.facts), class_="pair")


def confusion(run: Run) -> Markup:
    """Draw the confusion matrix, or say that there is none."""
    counts, names = confusion_counts(run.facts)
    if counts is None or not len(counts):
        return missing("Confusion matrix")
    readable = len(counts) <= READABLE_CLASSES
    labels = names if readable else ["" for _ in names]
    figure = heat_map(counts, labels, labels, by_row=True, xlabel="predicted", ylabel="true")
    pairs = worst_confusions(counts, names)
    told = "; ".join(f"{true} taken for {predicted} ({count})" for true, predicted, count in pairs) or "none"
    right = f"{wording.whole(int(np.trace(counts)))} of {wording.whole(int(counts.sum()))} held-out records right"
    note = f"{right}. Most frequent mistakes: {told}."
    if run.seeds:
        note += f" Seed {run.shown.seed}."
    return plate("confusion", "Confusion matrix", figure, f"Confusion matrix. {note}", note, wide=len(counts) > 14)


def confusion_counts(facts: Facts) -> tuple[np.ndarray | None, list[str]]:
    """Return the square confusion matrix and its classes' names."""
    rows = [
        [finite(value) or 0.0 for value in row] if isinstance(row, list) else [] for row in facts.sequence("confusion")
    ]
    if not rows or any(len(row) != len(rows) for row in rows):
        return None, []
    given = [str(name) for name in facts.sequence("data", "classes")]
    return np.array(rows), given if len(given) == len(rows) else [str(index) for index in range(len(rows))]


def worst_confusions(counts: np.ndarray, names: list[str]) -> list[tuple[str, str, int]]:
    """Return (true, predicted, count) of the most frequent mistakes."""
    wrong = [
        (names[row], names[column], int(counts[row, column]))
        for row, column in np.argwhere(counts > 0)
        if row != column
    ]
    return sorted(wrong, key=lambda mistake: -mistake[2])[:SHOWN_CONFUSIONS]


def metrics_table(facts: Facts) -> Markup:
    """List the task's other metrics."""
    rows = [[wording.metric_name(name), metric(value)] for name, value in facts.items("metrics").items()]
    note = "Exact figures, computed by the server on the held-out records; not covered by ε."
    if not rows:
        return missing("Other metrics")
    short = all(len(value) <= len(wording.NOT_COMPUTED) for _, value in rows)
    shown = table("Other metrics", ["Metric", "Value"], rows, numeric=(1,) if short else ())
    return element(
        "div", shown if len(rows) <= 20 else folded(f"{len(rows)} metrics", shown), paragraph(note, class_="note")
    )


def metric(value: object) -> str:
    """Write a metric's value, or its parts when it has some."""
    if isinstance(value, dict):
        return ", ".join(f"{key} {metric(part)}" for key, part in value.items()) or wording.NOT_COMPUTED
    if isinstance(value, list):
        return ", ".join(metric(part) for part in value) or wording.NOT_COMPUTED
    number = finite(value)
    if number is None:
        return value if isinstance(value, str) else wording.NOT_COMPUTED
    return f"{number:.4f}" if abs(number) < 1000 and number != int(number) else wording.plain(number)


def missing(what: str) -> Markup:
    """Say that something was not computed, where it would stand."""
    return element(
        "figure", element("h3", what), paragraph(wording.NOT_COMPUTED, class_="figure-none"), class_="missing"
    )

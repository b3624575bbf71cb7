"""The report's account of the nodes: who holds what, spent what, and gained what."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from simulations.report import figures, wording
from simulations.report.course import LONG, first_seed, spans
from simulations.report.heat_map import heat_map
from simulations.report.markup import Markup, element, folded, join, paragraph, table
from simulations.report.outcome import missing
from simulations.report.results import Facts, Run, finite
from simulations.report.svg import plate

DRAWN = 40  # up to so many nodes are drawn one by one
SAMPLED = 24  # of more, so many
DRAWN_CLASSES = 30
REST = "other"


def nodes(run: Run) -> Markup:
    """Show each node's accuracy, data, ε and open reservations."""
    return join(
        [
            element("div", element("div", accuracy_plot(run), *size_plots(run)), partition_plot(run), class_="pair"),
            reservations(run.facts),
            nodes_table(run),
        ]
    )


def node_names(facts: Facts) -> list[str]:
    """Return every node that some part of the result knows, in the run's own order first."""
    listed = [str(name) for name in facts.sequence("node_names")]
    parts = (("partition",), ("privacy", "epsilon_per_node"), ("node_accuracy",), ("open_reservations",))
    known = [name for path in parts for name in facts.items(*path)]
    return list(dict.fromkeys([*listed, *known]))


def scores(facts: Facts) -> list[figures.NodeScore]:
    """Return the nodes whose federated accuracy is known."""
    found = []
    for name, values in facts.items("node_accuracy").items():
        pair = Facts(values if isinstance(values, Mapping) else {})
        federated = pair.number("federated")
        if federated is not None:
            found.append(figures.NodeScore(name, federated, pair.number("alone")))
    return found


def accuracy_plot(run: Run) -> Markup:
    """Draw each node's accuracy with the federated head and alone, or how they are distributed."""
    found = scores(run.facts)
    if not found:
        return missing("Accuracy at each node")
    alone = [score.alone for score in found if score.alone is not None]
    better = sum(score.alone is not None and score.federated > score.alone for score in found)
    compared = (
        f" The federated head is better at {wording.whole(better)} of {wording.whole(len(alone))}." if alone else ""
    )
    unknown = len(run.facts.items("node_accuracy")) - len(found)
    left_out = f" Not shown: {wording.many(unknown, 'node')} of whose classes no record is held out." if unknown else ""
    note = f"Held-out records, reweighted to each node's own mix of classes{first_seed(run)}.{compared}{left_out}"
    if len(found) <= DRAWN:
        figure = figures.dumbbells(found)
    else:
        series = {"Federated": [score.federated for score in found], **({"Alone": alone} if alone else {})}
        figure = figures.histograms(series, xlabel="accuracy at a node", as_percent=True)
    return plate("node-accuracy", "Accuracy at each node", figure, note, note)


def class_counts(facts: Facts) -> tuple[list[str], list[str], np.ndarray]:
    """Return nodes, classes and the number of records of each class at each node, shape (nodes, classes)."""
    parts = facts.items("partition")
    names = [name for name in node_names(facts) if isinstance(parts.get(name), Mapping)]
    counts = [Facts(parts[name]).numbers("classes") for name in names]
    listed = [str(label) for label in facts.sequence("data", "classes")]
    classes = list(dict.fromkeys([*listed, *(label for node in counts for label in node)]))
    return names, classes, np.array([[node.get(label, 0.0) for label in classes] for node in counts])


def partition_plot(run: Run) -> Markup:
    """Draw how many records of each class each node holds; of many nodes, a sample."""
    names, classes, counts = class_counts(run.facts)
    if not names or not classes or not counts.any():
        return missing("Data partition")
    sample = np.unique(
        np.linspace(0, len(names) - 1, len(names) if len(names) <= DRAWN else SAMPLED).round().astype(int)
    )
    counts, classes = merge_rare(counts[sample], classes)
    shown = [names[index] for index in sample]
    figure = heat_map(counts, shown, classes, by_row=False, xlabel="class", ylabel="node")
    some = f"{len(shown)} of {wording.whole(len(names))} nodes, evenly chosen. " if len(shown) < len(names) else ""
    scheme = run.facts.text("data", "partition")
    note = (
        f"{some}Training records of each class at each node{f', split “{scheme}”' if scheme else ''}; darker is more."
    )
    told = f"Data partition. {note} {wording.many(len(names), 'node')}, {wording.many(len(classes), 'class')[:-1]}es."
    return plate("partition", "Data partition", figure, told, note, wide=len(classes) > 14)


def merge_rare(counts: np.ndarray, classes: Sequence[str]) -> tuple[np.ndarray, list[str]]:
    """Keep the most frequent classes in their order and add up the others in a last column."""
    if len(classes) <= DRAWN_CLASSES:
        return counts, list(classes)
    kept = np.sort(np.argsort(-counts.sum(axis=0), kind="stable")[: DRAWN_CLASSES - 1])
    rest = counts.sum(axis=1) - counts[:, kept].sum(axis=1)
    name = f"{len(classes) - len(kept)} {REST}"
    return np.column_stack([counts[:, kept], rest]), [*(classes[index] for index in kept), name]


def size_plots(run: Run) -> list[Markup]:
    """Draw how node sizes and numbers of classes are distributed, where there are too many nodes to draw each."""
    names, _, counts = class_counts(run.facts)
    if len(names) <= DRAWN:
        return []
    sizes = [record_count(run.facts, name) or 0.0 for name in names]
    held = (counts > 0).sum(axis=1).astype(float).tolist()
    figures_drawn = (
        ("sizes", "Records at a node", sizes, "records"),
        ("class-numbers", "Classes at a node", held, "classes"),
    )
    plots = []
    for name, title, values, unit in figures_drawn:
        figure = figures.histograms({"": values}, xlabel=f"{unit} at a node", as_percent=False)
        note = f"From {wording.whole(min(values))} to {wording.whole(max(values))} {unit}."
        plots.append(plate(name, title, figure, note, note))
    return plots


def record_count(facts: Facts, name: str) -> float | None:
    """Return how many training records a node holds."""
    return finite(Facts(facts.items("partition")).get(name, "records"))


def reservations(facts: Facts) -> Markup:
    """List reservations that were paid and never used."""
    found = {name: numbers for name, numbers in facts.items("open_reservations").items() if numbers}
    if facts.get("open_reservations") is None:
        return paragraph(f"Open reservations: {wording.NOT_COMPUTED}.", class_="note")
    if not found:
        return paragraph("No open reservations: every reserved round was trained and committed.", class_="note")
    rows = [[name, spans(round_numbers(numbers))] for name, numbers in found.items()]
    shown = table("Open reservations", ["Node", "Rounds"], rows)
    said = (
        f"{wording.many(len(found), 'node')} reserved budget for rounds that were never committed. Nothing was "
        "released for them, but what was reserved stays spent and is part of ε."
    )
    return element(
        "div", paragraph(element("strong", "Open reservations. "), said), folded("Which", shown), class_="warn"
    )


def round_numbers(value: object) -> list[int]:
    """Return the round numbers in a list."""
    numbers = [finite(number) for number in value] if isinstance(value, list) else []
    return [round(number) for number in numbers if number is not None]


def nodes_table(run: Run) -> Markup:
    """List every node's records, ε and accuracies."""
    names = node_names(run.facts)
    if not names:
        return missing("ε of each node")
    columns = ["Node", "Records", "Classes", "ε", "Federated", "Alone", "Gain (points)", "Open reservations"]
    pairs = {score.name: score for score in scores(run.facts)}
    rows = [node_row(run.facts, name, pairs.get(name)) for name in names]
    caption = f"Every node; ε: {wording.conditions(run.facts)}{'' if wording.is_guarantee(run.facts) else ', nominal'}"
    shown = table(caption, columns, rows, numeric=range(1, len(columns)))
    return folded(f"ε, data and accuracy of each node ({wording.whole(len(names))})", shown, open_=len(names) <= LONG)


def node_row(facts: Facts, name: str, score: figures.NodeScore | None) -> list[str]:
    """Return one node's row."""
    held = Facts(facts.items("partition")).get(name, "classes")
    classes = float(sum(bool(finite(n)) for n in held.values())) if isinstance(held, Mapping) else None
    open_rounds = round_numbers(Facts(facts.items("open_reservations")).get(name))
    gained = score.federated - score.alone if score is not None and score.alone is not None else None
    return [
        name,
        wording.whole(record_count(facts, name)),
        wording.whole(classes),
        wording.epsilon(facts.numbers("privacy", "epsilon_per_node").get(name)),
        wording.percent(score.federated if score else None),
        wording.percent(score.alone if score else None),
        wording.DASH if gained is None else wording.points(gained),
        spans(open_rounds) if open_rounds else wording.DASH,
    ]

"""The report's account of how the run was made: data, backbone, configuration, versions."""

from __future__ import annotations

from simulations.report import wording
from simulations.report.markup import Markup, element, folded, join, paragraph, table
from simulations.report.results import Facts, Run


def setup(run: Run) -> Markup:
    """Show what it takes to repeat and to judge the run."""
    return join(
        [
            element("div", backbone_card(run.facts), run_card(run), class_="pair"),
            element("div", configuration(run), versions(run.facts)),
        ]
    )


def backbone_card(facts: Facts) -> Markup:
    """List what is known of the backbone."""
    names = {
        "name": "Name",
        "digest": "SHA-256 digest",
        "cut": "Cut point",
        "features": "Feature size",
        "licence": "Licence",
        "trained_on": "Trained on",
    }
    rows = [[label, cell(facts, "backbone", key)] for key, label in names.items()]
    return table("Backbone (frozen below the cut)", ["Property", "Value"], rows)


def run_card(run: Run) -> Markup:
    """List data, head, training and engine."""
    facts = run.facts
    classes = facts.sequence("data", "classes")
    seeds = [str(seed) for seed in facts.sequence("seeds")] or [run_.seed for run_ in run.seeds]
    rows = [
        ["Data", cell(facts, "data", "source")],
        ["Training records", wording.whole(facts.number("data", "train"))],
        ["Held-out records", wording.whole(facts.number("data", "test"))],
        ["Task", cell(facts, "data", "task")],
        ["Classes", class_list(classes)],
        ["Partition", cell(facts, "data", "partition")],
        ["Nodes", wording.whole(facts.number("nodes"))],
        ["Rounds", wording.whole(facts.number("rounds"))],
        ["Head", cell(facts, "head")],
        ["Learning rate", wording.plain(facts.number("learning_rate"))],
        ["Engine", cell(facts, "engine")],
        ["Seed", ", ".join(seeds) if run.seeds else facts.text("seed") or "none: cryptographic randomness"],
    ]
    if (truncated := facts.number("data", "truncated")) is not None:
        rows.append(["Texts that lost their end", wording.whole(truncated)])
    return table("Run", ["Property", "Value"], rows)


def class_list(classes: list[object]) -> str | Markup:
    """Name the classes, folded when there are many."""
    if not classes:
        return wording.NOT_COMPUTED
    names = ", ".join(map(str, classes))
    return f"{len(classes)}: {names}" if len(classes) <= 20 else folded(f"{wording.whole(len(classes))} classes", names)


def cell(facts: Facts, *path: str) -> str | Markup:
    """Write a text or number; long ones without blanks (digests) as code that may break anywhere."""
    text = facts.text(*path)
    if text is None:
        return wording.NOT_COMPUTED
    return element("code", text) if len(text) > 24 and " " not in text else text


def configuration(run: Run) -> Markup:
    """Show the configuration file as it was."""
    if run.config is None:
        return paragraph("The configuration was not kept with the run.", class_="note")
    return folded("Configuration (TOML): the run can be repeated from it", element("pre", element("code", run.config)))


def versions(facts: Facts) -> Markup:
    """List the versions of what computed."""
    rows = [[name, facts.text("versions", name) or wording.NOT_COMPUTED] for name in sorted(facts.items("versions"))]
    if not rows:
        return paragraph(f"Versions: {wording.NOT_COMPUTED}.", class_="note")
    return folded("Versions", table("Versions", ["Package", "Version"], rows, wide=False))

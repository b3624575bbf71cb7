"""The report as one HTML page: verdict, warnings and headline numbers, then a section for each question."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

from simulations.report import course, nodes, outcome, prose, setup, wording
from simulations.report.comparisons import FEDERATED, standard_error, verdict
from simulations.report.halves import Part, one_by_one
from simulations.report.markup import Markup, element, join, paragraph
from simulations.report.results import Facts, Run
from simulations.report.style import STYLE

SECTIONS: tuple[tuple[str, str, Callable[[Run], Markup]], ...] = (
    ("worth", "Was it worth it?", outcome.worth),
    ("protection", "What was protected, and against whom", outcome.protection),
    ("rounds", "Round by round", course.rounds),
    ("nodes", "Node by node", nodes.nodes),
    ("mistakes", "What the model gets wrong", outcome.mistakes),
    ("costs", "Bytes and time", course.costs),
    ("setup", "How it was made", setup.setup),
)
POLICY = "default-src 'none'; style-src 'unsafe-inline'"  # the page asks for nothing, and a browser holds it to that


def page(run: Run, draw: Callable[[Sequence[Part]], list[Markup]] = one_by_one) -> str:
    """Return the report on a run as a self-contained HTML document, drawn under ``svg.theme()``.

    Args:
        run: what is reported on.
        draw: has the sections drawn.
    """
    drawn = draw([partial(build, run) for _, _, build in SECTIONS])
    sections = [
        element("section", element("h2", heading), content, id=name, aria_label=heading)
        for (name, heading, _), content in zip(SECTIONS, drawn, strict=True)
    ]
    body = join([header(run), element("main", *sections), footer()])
    return f"<!DOCTYPE html>\n{element('html', head(run), element('body', body), lang='en')}\n"


def head(run: Run) -> Markup:
    """Return the document's head."""
    return element(
        "head",
        element("meta", charset="utf-8"),
        element("meta", name_="viewport", content="width=device-width, initial-scale=1"),
        element("meta", http_equiv="Content-Security-Policy", content=POLICY),
        element("meta", name_="referrer", content="no-referrer"),
        element("title", f"{title(run.facts)} · fedgraft report"),
        element("style", Markup(STYLE)),
    )


def header(run: Run) -> Markup:
    """Return title, verdict, warnings, headline numbers and contents."""
    links = (element("a", heading, href=f"#{name}") for name, heading, _ in SECTIONS)
    seeds = f", {len(run.seeds)} seeds" if run.seeds else ""
    return element(
        "header",
        paragraph(f"fedgraft simulation report · {run.name}{seeds}", class_="eyebrow"),
        element("h1", title(run.facts)),
        paragraph(capital(verdict(run)), class_="verdict"),
        *banners(run.facts),
        tiles(run),
        element("nav", *links, aria_label="Contents"),
    )


def title(facts: Facts) -> str:
    """Return the report's title."""
    source = facts.text("data", "source")
    data = wording.shorten(source.replace("\\", "/").rstrip("/").rsplit("/", 1)[-1], 60) if source else "Unnamed data"
    count = facts.number("nodes")
    nodes = "a federation" if count is None else wording.many(count, "node")
    return f"{data[:1].upper()}{data[1:]}, learned by {nodes} under differential privacy"


def capital(sentence: str) -> str:
    """Begin a sentence with a capital, except where it begins with ε."""
    return sentence if sentence.startswith("ε") else sentence[:1].upper() + sentence[1:]


def banners(facts: Facts) -> list[Markup]:
    """Return the warnings that stand over everything else."""
    found = prose.banner(facts)
    confidential = (
        "Confidential",
        "This run used real data. The exact counts and metrics below are not covered by ε: keep this report as safe as "
        "the data.",
    )
    shown = [confidential if facts.flag("confidential") else None, found]
    return [
        element("div", element("strong", pair[0]), paragraph(pair[1]), class_="banner", role="note")
        for pair in shown
        if pair
    ]


def tiles(run: Run) -> Markup:
    """Return the headline numbers."""
    facts = run.facts
    return element(
        "div",
        tile("Accuracy, federated", *accuracy_figure(run), class_="main"),
        epsilon_tile(facts),
        tile("Nodes", wording.whole(facts.number("nodes")), None, wording.many(facts.number("rounds"), "round")),
        tile(
            "Sent, each node in each round",
            wording.size(facts.number("bytes", "per_round_per_node")),
            None,
            backbone(facts),
        ),
        tile("Time in all", wording.duration(facts.number("timing_s", "total")), None, training(facts)),
        class_="tiles",
    )


def tile(label: str, value: str, extra: str | None, detail: str, class_: str = "") -> Markup:
    """Return one headline number."""
    shown = element("span", wording.NOT_COMPUTED, class_="figure-none") if value == wording.NOT_COMPUTED else None
    figure = shown or element("span", value, element("small", f" {extra}") if extra else None, class_="figure")
    return element(
        "div",
        element("div", label, class_="label"),
        figure,
        element("div", detail, class_="detail"),
        class_=f"tile {class_}".strip(),
    )


def accuracy_figure(run: Run) -> tuple[str, str | None, str]:
    """Return the accuracy, its spread over seeds, and what it was measured on."""
    spread, error = run.facts.number("accuracy_std", FEDERATED), standard_error(run, FEDERATED)
    records = run.facts.number("data", "test")
    measured = f"on {wording.whole(records)} held-out records" if records else "on held-out records"
    interval = f", ± {100 * 1.96 * error:.1f} at 95{wording.THIN}%" if error is not None else ""
    extra = f"± {100 * spread:.1f} std" if spread is not None else None
    return wording.percent(run.facts.number("accuracy", FEDERATED)), extra, measured + interval


def epsilon_tile(facts: Facts) -> Markup:
    """Return ε with δ, unit and trust model in the same breath."""
    guarantee = wording.is_guarantee(facts)
    label = "ε, worst node" if guarantee else "Nominal ε, worst node; " + prose.no_guarantee(facts)
    budget = facts.number("privacy", "epsilon_budget")
    extra = f"of {wording.epsilon(budget)}" if budget is not None else None
    value = wording.epsilon(wording.worst_epsilon(facts))
    return tile(label, value, extra, wording.conditions(facts), class_="" if guarantee else "caution")


def backbone(facts: Facts) -> str:
    """Say what the backbone weighs."""
    return f"backbone, once: {wording.size(facts.number('bytes', 'backbone_once'))}"


def training(facts: Facts) -> str:
    """Say how long features and rounds took."""
    times = [wording.duration(facts.number("timing_s", key)) for key in ("features", "rounds")]
    return f"features {times[0]}, rounds {times[1]}"


def footer() -> Markup:
    """Return what stands at the end."""
    text = (
        "Written by fedgraft. This page is complete in itself: it runs no script and asks for nothing from any network."
    )
    return element("footer", paragraph(text))

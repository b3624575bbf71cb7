"""The audit report's sections, each from an audit to markup."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from simulations.audits.audit_report import plots, words
from simulations.audits.audit_report.audit import ALARM_LEVEL, Audit, Bound, MembershipTest
from simulations.audits.findings import THREATS, Reconstruction, Threat, Vector
from simulations.report import wording
from simulations.report.markup import Markup, definitions, element, folded, join, paragraph, table
from simulations.report.svg import plate

UNFOLDED = 20  # rows of a table that stands open


def plainly(audit: Audit) -> Markup:
    """Explain the outcome to somebody who is no statistician."""
    return definitions(words.meaning(audit))


def bounds(audit: Audit) -> Markup:
    """Show every lower bound under the promise."""
    if not audit.bounds:
        return paragraph(f"Attacks on the mechanism: {wording.NOT_COMPUTED}.", class_="note")
    items = [item(audit, one) for one in audit.bounds]
    told = "; ".join(f"{one.attack}, {one.method}: {words.floor(one.low)}" for one in items)
    note = (
        "Marks: lower bounds at the confidence in the table; hollow ones are conditional. Ticks at the end of a line: "
        "point estimates, which no confidence goes with."
    )
    figure = plots.ranges(items, audit.claim.epsilon)
    shown = plate("bounds", "What the attacks show, and what is promised", figure, told, note, wide=True)
    return join([shown, *(paragraph(text) for text in reading(audit)), bounds_table(audit)])


def item(audit: Audit, one: Bound) -> plots.Range:
    """Return one bound as the plot takes it."""
    found = one.found
    attack = f"{found.threat}, {words.SHORT_CANARIES[found.canary]}"
    conditional, alarming = found.assumption is not None, one.breaks(audit.claim)
    return plots.Range(attack, words.METHODS[found.method], found.epsilon, found.estimate, conditional, alarming)


def reading(audit: Audit) -> list[str]:
    """Say how to read the bounds."""
    ceilings = [one.most for one in audit.bounds if one.most is not None]
    texts = [who(audit), words.several(audit)]
    if ceilings and min(ceilings) < audit.claim.epsilon:
        texts.append(
            f"With so many heads, an attack that never errs would show {words.floor(min(ceilings))} by the weakest "
            "method (“could show” below): a broken promise beyond that would go unseen by it. More heads raise it."
        )
    return [text for text in texts if text]


def who(audit: Audit) -> str:
    """Say who attacks."""
    seen = {one.found.threat for one in audit.bounds}
    return " ".join(f"{name.capitalize()}: {audit.claim.sees(name)}." for name in THREATS if name in seen)


def bounds_table(audit: Audit) -> Markup:
    """List the bounds in numbers."""
    rows = [bound_row(one, audit) for one in audit.bounds]
    columns = (
        "Attacker",
        "Canary",
        "Method",
        "ε at least",
        "Confidence",
        "Estimate",
        f"ε at least, {words.confidence(1 - ALARM_LEVEL)}",
        "Could show",
        "Heads",
        "Time",
    )
    whole = table("Lower bounds on ε", columns, rows, numeric=range(3, 10))
    notes = [
        paragraph(f"* Conditional ({method}): holds if {text}.", class_="note")
        for method, text in words.conditions(audit).items()
    ]
    full = join([whole, paragraph(f"All at {words.terms(audit.claim)}.", class_="note"), *notes])
    return full if len(rows) <= UNFOLDED else folded(f"All {len(rows)} bounds in numbers", full)


def bound_row(one: Bound, audit: Audit) -> list[str]:
    """Return one bound's row."""
    found = one.found
    alarming = one.breaks(audit.claim)
    low = element("strong", f"{words.floor(found.epsilon)} !", class_="red") if alarming else words.floor(found.epsilon)
    return [
        found.threat,
        words.CANARIES[found.canary],
        words.METHODS[found.method] + (" *" if found.assumption else ""),
        low,
        words.confidence(found.confidence),
        wording.DASH if found.estimate is None else f"{found.estimate:.2f}",
        wording.DASH if one.sure is None else words.floor(one.sure),
        wording.DASH if one.most is None else words.floor(one.most),
        wording.whole(found.heads),
        wording.duration(found.seconds),
    ]


def rocs(audit: Audit) -> Markup:
    """Draw how well each attacker tells heads with the canary from heads without, a plot for each canary."""
    scored = sorted((one.found for one in audit.bounds), key=lambda found: len(found.scores_out))
    known = {(found.canary, found.threat): found for found in scored if len(found.scores_out)}  # the most scores win
    if not known:
        return paragraph(f"Curves: {wording.NOT_COMPUTED}.", class_="note")
    plates = []
    for canary in (name for name in words.CANARIES if name in {canary for canary, _ in known}):
        found = [known[canary, threat] for threat in THREATS if (canary, threat) in known]
        curves = [
            plots.Roc(one.threat, *plots.roc_of(one.scores_in, one.scores_out), group=index)
            for index, one in enumerate(found)
        ]
        figure = plots.roc(curves, audit.claim.epsilon, audit.claim.delta)
        told = f"True against false positives of attacks with: {words.CANARIES[canary]}."
        plates.append(plate(f"roc-{canary}", words.CANARIES[canary].capitalize(), figure, told))
    note = (
        f"{who(audit)} Each curve: how many heads with the canary are recognised, at the price of how many "
        "false alarms; further left and further up is worse for privacy. A curve that certainly enters the shaded "
        "region refutes the promise; at the left edge, few heads decide, and curves are rough."
    )
    return join([element("div", *plates, class_="grid"), paragraph(note, class_="note")])


def memberships(audit: Audit) -> Markup:
    """Show membership inference on real records, with DP and without."""
    tests = audit.memberships
    if not tests:
        why = audit.not_run.get("membership inference")
        return paragraph(f"Membership inference was not run{f': {why}' if why else ''}.", class_="note")
    plates = [
        plate_
        for threat in dict.fromkeys(test.threat for test in tests)
        for plate_ in membership_plates(audit, threat, [test for test in tests if test.threat == threat])
    ]
    note = "Histograms: the line is the median. The promise holds for every record, so look at the right end."
    return join([element("div", *plates, class_="grid"), paragraph(note, class_="note"), membership_table(audit)])


def membership_plates(audit: Audit, threat: Threat, tests: Sequence[MembershipTest]) -> list[Markup]:
    """Draw one attacker's curves, and how exposed single records are to it."""
    curves = [membership_curve(test, tests) for test in tests]
    figure = plots.roc(curves, audit.claim.epsilon, audit.claim.delta)
    told = " ".join(words.membership_sentence(test) for test in tests)
    samples = {histogram_name(test): exposed(test) for test in strongest(tests)}
    shown = plots.vulnerability(samples)
    return [
        plate(f"members-{threat}", f"Telling members from others: {threat}", figure, told),
        plate(f"exposed-{threat}", f"How exposed single records are: {threat}", shown, "; ".join(samples)),
    ]


def membership_curve(test: MembershipTest, tests: Sequence[MembershipTest]) -> plots.Roc:
    """Return a membership test as a curve: colours for worlds, dashes for methods."""
    methods = list(dict.fromkeys(one.found.method for one in tests))
    found = test.found
    return plots.Roc(
        f"{words.METHODS.get(found.method, found.method)}, {world(test)}",
        found.false_positive_rates,
        found.true_positive_rates,
        group=0 if test.private else 1,
        style=methods.index(found.method),
    )


def world(test: MembershipTest) -> str:
    """Name a world in short."""
    return "as planned" if test.private else "without DP"


def strongest(tests: Sequence[MembershipTest]) -> list[MembershipTest]:
    """Return the strongest test of each world."""
    worlds = {test.private for test in tests}
    return [max((t for t in tests if t.private == one), key=lambda t: t.found.area) for one in sorted(worlds)[::-1]]


def histogram_name(test: MembershipTest) -> str:
    """Name a histogram: world and median."""
    values = exposed(test)
    return f"{world(test)}: median {wording.percent(float(np.median(values)))}, most {wording.percent(values.max())}"


def exposed(test: MembershipTest) -> Vector:
    """Return the vulnerability of the records that were in some attacked head."""
    return test.found.vulnerability[np.isfinite(test.found.vulnerability)]


def membership_table(audit: Audit) -> Markup:
    """List membership inference in numbers."""
    levels = sorted({rate for test in audit.memberships for rate in test.found.true_positive_rate_at}, reverse=True)
    columns = ["Method", "Attacker", "World", *(f"Found at {100 * rate:g}{wording.THIN}% false" for rate in levels)]
    rows = [
        [
            words.METHODS.get(test.found.method, test.found.method),
            test.threat,
            world(test),
            *(wording.percent(test.found.true_positive_rate_at.get(rate), 2) for rate in levels),
            f"{test.found.area:.3f}",
            wording.whole(test.found.heads),
            wording.duration(test.found.seconds),
        ]
        for test in audit.memberships
    ]
    columns += ["Area", "Heads", "Time"]
    note = (
        "Blind guessing finds as many members as it raises false alarms, and has area 0.5. The server looks at the "
        f"last head of {audit.origin.audited}, the smallest node, to which it handed its own head back in every round; "
        "“model” looks at the final head of the whole federation. “Without DP” is the same training with neither "
        "clipping nor noise."
    )
    whole = table("Membership inference", columns, rows, numeric=range(3, len(columns)))
    return join([whole, paragraph(note, class_="note")])


def reconstructions(audit: Audit) -> Markup:
    """Show what a server reads out of one update, with DP and without."""
    if not audit.reconstructions:
        why = audit.not_run.get("reconstruction")
        return paragraph(f"Reconstruction was not run{f': {why}' if why else ''}.", class_="note")
    items = [(reading_name(one), one.error, one.chance) for one in audit.reconstructions]
    told = "; ".join(
        f"{label}: error {plots.small(error)}, a guess {plots.small(chance)}" for label, error, chance in items
    )
    figure = plots.readings(items)
    note = (
        "Short bars: the server reads it well. Beside each bar, its error and that of a guess that ignores the update."
    )
    rows = [
        [reading_name(one), plots.small(one.error), plots.small(one.chance), read(one)] for one in audit.reconstructions
    ]
    columns = ("What is read", "Error", "Error of a guess", "In words")
    return element(
        "div",
        plate("readings", "Reading one update", figure, told, note),
        table("What the server reads", columns, rows, numeric=(1, 2)),
        class_="pair",
    )


def reading_name(one: Reconstruction) -> str:
    """Name a reading."""
    return f"{one.target}, {'as planned' if one.private else 'without DP'}"


def read(one: Reconstruction) -> str:
    """Say in words how good a reading is."""
    ratio = one.error / one.chance if one.chance > 0 else 1.0
    if ratio < 0.1:
        return "read almost exactly"
    if ratio < 0.5:
        return "read in good part"
    return "something is learnt" if ratio < 0.9 else "no better than a guess"


def replay(audit: Audit) -> Markup:
    """List what was recomputed."""
    if not audit.checks:
        why = audit.not_run.get("replay")
        return paragraph(f"The replay was not run{f': {why}' if why else ''}.", class_="note")
    rows = [[one.check, "passed" if one.holds else failed(), one.sentence] for one in audit.checks]
    passed = sum(check.holds for check in audit.checks)
    lead = (
        f"{passed} of {wording.many(len(rows), 'check')} passed. A replay trains twice with the same randomness, on "
        "data that differ by one record: whatever changes beyond what the promise allows is a mistake, and needs no "
        f"statistics to be seen. Looked at: {audit.checks[0].subject}."
    )
    replayed = table("Replay of the mechanism", ("Check", "Outcome", "What was seen"), rows)
    return join([paragraph(lead), replayed, *steps(audit)])


def steps(audit: Audit) -> list[Markup]:
    """List the bounds that went through the shipped private steps."""
    if not audit.steps:
        return []
    rows = [[one.check, "kept" if one.holds else failed(), one.sentence] for one in audit.steps]
    lead = (
        "The bounds with gradient canaries come from a model of the mechanism. These do not: every head was trained by "
        f"the private steps that a node runs, under small plans of their own. Looked at: {audit.steps[0].subject}."
    )
    return [paragraph(lead), table("Bounds through the shipped steps", ("Attack", "Promise", "What was seen"), rows)]


def failed() -> Markup:
    """Return the word for a check that did not pass."""
    return element("strong", "FAILED", class_="red")


def limits(audit: Audit) -> Markup:
    """Say what the audit does not say."""
    left_out = [(f"Not run: {name}", why) for name, why in audit.not_run.items()]
    return definitions([*words.limits(audit), *left_out])


def setup(audit: Audit) -> Markup:
    """Show what was audited, and what it cost."""
    return join(
        [
            element("div", claim_table(audit), origin_table(audit), class_="pair"),
            folded("Configuration (TOML)", element("pre", element("code", audit.origin.config))),
            folded(
                "Versions",
                table("Versions", ["Package", "Version"], sorted(audit.origin.versions.items()), wide=False),
            ),
        ]
    )


def claim_table(audit: Audit) -> Markup:
    """List the public constants of the promise, and the cost of the audit."""
    claim = audit.claim
    rows = [
        ["ε", words.claimed(claim.epsilon)],
        *(
            [["ε against whoever sees the model", words.claimed(claim.epsilon_against_model)]]
            if claim.epsilon_against_model is not None
            else []
        ),
        ["δ", wording.plain(claim.delta)],
        ["Unit", claim.unit],
        ["Trust", claim.trust],
        ["Noisy steps", wording.whole(claim.steps)],
        ["Sampling rate q", wording.plain(claim.sampling_rate)],
        ["Noise multiplier σ", wording.plain(claim.noise_multiplier)],
        ["Clipping norm C", wording.plain(claim.clipping_norm)],
        ["Heads trained for this audit", wording.whole(audit.heads)],
        ["Time in all", wording.duration(audit.seconds)],
    ]
    return table("Promise and cost", ("What", "Value"), rows)


def origin_table(audit: Audit) -> Markup:
    """List data, model and digests."""
    origin = audit.origin
    small, large = origin.records
    each = wording.whole(small) if small == large else f"{wording.whole(small)} to {wording.whole(large)}"
    rows = [
        ["Configuration", origin.name],
        ["Its SHA-256", element("code", origin.config_digest)],
        ["Data", origin.data],
        ["Their SHA-256", element("code", origin.data_digest)],
        ["Nodes", f"{wording.whole(origin.nodes)}, with {each} training records each"],
        ["Backbone", origin.backbone[0]],
        ["Its SHA-256", element("code", origin.backbone[1])],
        ["Head", f"{origin.head[0]}, {wording.whole(origin.head[1])} parameters"],
        ["Seed of the attacks", "none: operating system" if origin.seed is None else str(origin.seed)],
        ["Written", origin.written],
    ]
    return table("What was audited", ("What", "Value"), rows)


SECTIONS: tuple[tuple[str, str, Callable[[Audit], Markup]], ...] = (
    ("plainly", "In plain words", plainly),
    ("lower-bounds", "Lower bounds on ε", bounds),
    ("curves", "How well the attacks tell", rocs),
    ("members", "Who took part? Attacks on real records", memberships),
    ("reading", "What can be read from one update?", reconstructions),
    ("replay", "Does the code do what it says?", replay),
    ("limits", "What this audit does not say", limits),
    ("setup", "What was audited, and what it cost", setup),
)

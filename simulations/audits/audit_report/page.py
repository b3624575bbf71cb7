"""The audit as one HTML page for whoever answers for the data: alarm, verdict, headline numbers, then the evidence."""

from __future__ import annotations

from dataclasses import dataclass

from simulations.audits.audit_report import words
from simulations.audits.audit_report.audit import Audit, Bound
from simulations.audits.audit_report.sections import SECTIONS
from simulations.report import wording
from simulations.report.markup import Markup, element, join, paragraph
from simulations.report.page import POLICY, capital, footer, tile
from simulations.report.style import STYLE

ALARM_STYLE = """
:root { --red: #b3131b; --red-soft: #fdeaea; }
@media screen and (prefers-color-scheme: dark) { :root { --red: #ff8a85; --red-soft: #401717; } }
.alarm { border-left: 8px solid var(--red); background: var(--red-soft); padding: 18px 22px; margin: 0 0 16px;
  border-radius: 4px; -webkit-print-color-adjust: exact; print-color-adjust: exact; }
.alarm strong { color: var(--red); font-size: 24px; } .alarm p { margin: 6px 0 0; font-size: 17px; max-width: 90ch; }
.red { color: var(--red); }
.tile.broken { background: var(--red-soft); } .tile.broken .figure { color: var(--red); }
"""


@dataclass(frozen=True)
class Seal:
    """What ties the page to the file for machines beside it.

    Attributes:
        file: its name.
        digest: its SHA-256, hexadecimal.
        signer: fingerprint of the key that signed it; None where nobody did.
    """

    file: str
    digest: str
    signer: str | None


def page(audit: Audit, seal: Seal) -> str:
    """Return the report as a self-contained HTML document, drawn under ``svg.theme()``."""
    sections = [
        element("section", element("h2", heading), build(audit), id=name, aria_label=heading)
        for name, heading, build in SECTIONS
    ]
    body = join([header(audit), element("main", *sections, sealed(seal)), footer()])
    return f"<!DOCTYPE html>\n{element('html', head(audit), element('body', body), lang='en')}\n"


def head(audit: Audit) -> Markup:
    """Return the document's head."""
    return element(
        "head",
        element("meta", charset="utf-8"),
        element("meta", name_="viewport", content="width=device-width, initial-scale=1"),
        element("meta", http_equiv="Content-Security-Policy", content=POLICY),
        element("meta", name_="referrer", content="no-referrer"),
        element("title", f"Privacy audit of {audit.origin.name} · fedgraft"),
        element("style", Markup(STYLE + ALARM_STYLE)),
    )


def header(audit: Audit) -> Markup:
    """Return title, alarm, verdict, headline numbers and contents."""
    links = (element("a", heading, href=f"#{name}") for name, heading, _ in SECTIONS)
    return element(
        "header",
        paragraph(f"fedgraft privacy audit · {audit.origin.written}", class_="eyebrow"),
        element("h1", f"Is the promise kept? Audit of {audit.origin.name}"),
        alarm(audit),
        paragraph(words.verdict(audit), class_="verdict"),
        paragraph(words.NO_BETTER, class_="note"),
        *banners(audit),
        tiles(audit),
        element("nav", *links, aria_label="Contents"),
    )


def alarm(audit: Audit) -> Markup | None:
    """Return what stands at the top, in red, when the promise is broken."""
    if not words.broken(audit):
        return None
    sentences = [words.refuted(audit.claim, one) for one in audit.alarms] or [words.alarm(audit)]
    told = [paragraph(f"{capital(text)}.") for text in sentences[:3]]
    title = "Alarm: the promise is broken" if audit.alarms else "Alarm: the code does not do what it says"
    return element("div", element("strong", title), *told, class_="alarm", role="alert")


def banners(audit: Audit) -> list[Markup]:
    """Return the warnings over the numbers."""
    shown = []
    if audit.origin.confidential:
        shown.append(
            (
                "Confidential",
                "This audit used real data. How exposed the records are, and how well attacks do on them, is exact and "
                "not covered by ε: keep this report, and the file beside it, as safe as the data.",
            )
        )
    return [
        element("div", element("strong", title), paragraph(text), class_="banner", role="note") for title, text in shown
    ]


def tiles(audit: Audit) -> Markup:
    """Return the headline numbers."""
    nominal = "Nominal ε, promised: seeded" if audit.origin.noise == "seeded" else "ε, promised"
    return element(
        "div",
        tile(nominal, words.claimed(audit.claim.epsilon), None, words.terms(audit.claim), class_="main"),
        bound_tile("ε, shown at least", audit.best(conditional=False), audit),
        bound_tile("ε, shown at least, conditional", audit.best(conditional=True), audit),
        tile("Replay", *replayed(audit), class_="broken" if audit.failed else ""),
        tile("Time in all", wording.duration(audit.seconds), None, f"{wording.whole(audit.heads)} heads trained"),
        class_="tiles",
    )


def bound_tile(label: str, bound: Bound | None, audit: Audit) -> Markup:
    """Return the largest bound of a kind."""
    if bound is None:
        return tile(label, wording.NOT_COMPUTED, None, "")
    found = bound.found
    detail = f"{words.METHODS[found.method]}, {found.threat}, {words.CANARIES[found.canary]}"
    return tile(
        label,
        words.floor(found.epsilon),
        f"at {words.confidence(found.confidence)}",
        detail,
        class_="broken" if bound.breaks(audit.claim) else "",
    )


def replayed(audit: Audit) -> tuple[str, str | None, str]:
    """Return how many checks passed."""
    if not audit.checks:
        return wording.NOT_COMPUTED, None, ""
    passed = sum(check.holds for check in audit.checks)
    return f"{passed} of {len(audit.checks)}", None, "checks of the mechanism passed"


def sealed(seal: Seal) -> Markup:
    """Say which file holds the same numbers for machines, and who signed it."""
    by = (
        f"It is signed by the key {seal.signer}; fedgraft audit verify checks both files."
        if seal.signer
        else "Nobody signed it: whoever can write it can change it."
    )
    return element(
        "section",
        element("h2", "Signature"),
        paragraph("The same numbers, for machines, are in ", element("code", seal.file), ". Its SHA-256 is"),
        element("pre", element("code", seal.digest)),
        paragraph(by),
        id="signature",
        aria_label="Signature",
    )

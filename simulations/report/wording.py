"""Numbers as words: one way to write an accuracy, an ε, a size or a time, wherever it stands."""

from __future__ import annotations

import math

from simulations.report.results import Facts

NOT_COMPUTED = "not computed"
THIN = "\u202f"  # narrow no-break space, before a unit
EQUALS = "\u00a0=\u00a0"  # an ε stays on the line with its value
DASH, MINUS = "–", "−"

ACCURACIES = {
    "multilabel": "labels given rightly",
    "tokens": "tokens tagged rightly",
    "spans": "answers found exactly",
}
"""What accuracy means for tasks other than classification."""


def metric_name(key: str) -> str:
    """Write a metric's name as people do.

    >>> metric_name("macro_f1"), metric_name("auroc"), metric_name("entity_precision")
    ('Macro-F1', 'AUROC', 'Entity precision')
    """
    text = key.replace("macro_", "macro-").replace("_", " ")
    return text.upper() if text == "auroc" else (text[:1].upper() + text[1:]).replace("f1", "F1")


def percent(fraction: float | None, digits: int = 1) -> str:
    """Write a fraction in per cent.

    >>> percent(0.95556), percent(None)
    ('95.6\u202f%', 'not computed')
    """
    return NOT_COMPUTED if fraction is None else f"{100 * fraction:.{digits}f}{THIN}%"


def points(difference: float | None, digits: int = 1) -> str:
    """Write a signed difference of two fractions in percentage points.

    >>> points(0.0312), points(-0.5), points(0.0)
    ('+3.1', '−50.0', '0.0')
    """
    if difference is None:
        return NOT_COMPUTED
    text = f"{100 * abs(difference):.{digits}f}"
    if float(text) == 0:
        return text
    return ("+" if difference > 0 else MINUS) + text


def epsilon(value: float | None) -> str:
    """Write an ε, rounded up, so that no more privacy is shown than there is.

    >>> epsilon(2.981), epsilon(3.0), epsilon(0.1234)
    ('2.99', '3.00', '0.124')
    """
    if value is None:
        return NOT_COMPUTED
    digits = 2 if value >= 1 else 3
    return f"{math.ceil(value * 10**digits - 1e-6) / 10**digits:.{digits}f}"


def plain(value: float | None) -> str:
    """Write a parameter as short as it is exact to six digits.

    >>> plain(1e-05), plain(30.0), plain(1.23456789)
    ('1e-5', '30', '1.23457')
    """
    return NOT_COMPUTED if value is None else f"{value:.6g}".replace("e-0", "e-").replace("e+0", "e+")


def whole(value: float | None) -> str:
    """Write a count, thousands apart.

    >>> whole(307600)
    '307\u202f600'
    """
    return NOT_COMPUTED if value is None else f"{round(value):,}".replace(",", THIN)


def size(value_bytes: float | None) -> str:
    """Write a number of bytes in the unit that fits (powers of 1000).

    >>> size(30760), size(12), size(None)
    ('30.8\u202fkB', '12\u202fB', 'not computed')
    """
    if value_bytes is None:
        return NOT_COMPUTED
    units = ("B", "kB", "MB", "GB", "TB")
    power = sum(value_bytes >= 999.5 * 1000**below for below in range(len(units) - 1))
    number = value_bytes / 1000**power
    return f"{number:.0f}{THIN}{units[power]}" if number >= 99.95 or power == 0 else f"{number:.3g}{THIN}{units[power]}"


def duration(value_s: float | None) -> str:
    """Write a time in the unit that fits.

    >>> duration(0.0123), duration(3.456), duration(125), duration(7260)
    ('12.3\u202fms', '3.46\u202fs', '2\u202fmin 5\u202fs', '2\u202fh 1\u202fmin')
    """
    if value_s is None:
        return NOT_COMPUTED
    if value_s < 0.9995:
        return f"{1000 * value_s:.3g}{THIN}ms"
    if value_s < 99.5:
        return f"{value_s:.3g}{THIN}s"
    minutes, seconds = divmod(round(value_s), 60)
    if minutes < 60:
        return f"{minutes}{THIN}min {seconds}{THIN}s"
    return f"{minutes // 60}{THIN}h {minutes % 60}{THIN}min"


def many(number: float | None, noun: str) -> str:
    """Write a count with its noun.

    >>> many(1, "node"), many(3, "node"), many(None, "round")
    ('1 node', '3 nodes', 'rounds not computed')
    """
    if number is None:
        return f"{noun}s {NOT_COMPUTED}"
    return f"{whole(number)} {noun}{'' if round(number) == 1 else 's'}"


def shorten(name: str, length: int = 16) -> str:
    """Fit a name into a plot: one line, at most ``length`` characters.

    >>> shorten("St. Mary's Hospital, Radiology")
    "St. Mary's Hosp…"
    """
    line = " ".join(name.split())
    return line if len(line) <= length else line[: length - 1] + "…"


def worst_epsilon(facts: Facts) -> float | None:
    """Return the largest ε over nodes."""
    return max(facts.numbers("privacy", "epsilon_per_node").values(), default=None)


def is_guarantee(facts: Facts) -> bool:
    """Return whether ε is a guarantee: only when the run says so and its noise came from the operating system."""
    return facts.flag("privacy", "epsilon_is_guarantee") and facts.text("privacy", "noise_source") == "system"


def conditions(facts: Facts) -> str:
    """Write what every ε is said with: δ, unit and trust model."""
    unit = facts.text("privacy", "unit")
    trust = facts.text("privacy", "trust")
    return ", ".join(
        (
            f"δ{EQUALS}{plain(facts.number('privacy', 'delta'))}",
            f"per {unit}" if unit else f"unit {NOT_COMPUTED}",
            f"{trust} trust" if trust else f"trust model {NOT_COMPUTED}",
        )
    )


def promise(facts: Facts) -> str:
    """Write the run's ε in one breath with δ, unit and trust model, and whether it is nominal."""
    value = worst_epsilon(facts)
    nominal = "" if is_guarantee(facts) else "nominal "
    return f"{nominal}ε{EQUALS}{epsilon(value)} ({conditions(facts)})" if value is not None else f"ε {NOT_COMPUTED}"

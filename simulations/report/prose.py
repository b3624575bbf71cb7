"""What the run promised, in plain words, for a reader who has never met ε."""

from __future__ import annotations

import math

from simulations.report import wording
from simulations.report.results import Facts, Run

AGAINST = {
    "local": (
        "Against the server, against the other nodes, and against anybody who sees the model or the messages, "
        "even all of them together. Each node adds its own noise before anything leaves it, so nobody has to be "
        "trusted with what was there before the noise (“local trust”)."
    ),
    "secagg": (
        "Against everybody who sees only sums over nodes, the server included, together with as many nodes as the "
        "plan allows for colluders, and no more: one node's update by itself carries too little noise to be safe "
        "(“secagg trust”). Where noise is shared out, a node knows its own share of it."
    ),
}
UNIT = {
    "record": (
        "Any single record of a node's training data (one example with its label): whether it was there at all, and "
        "what it said. Formally, the guarantee compares the run with the same run after one record was added or "
        "removed."
    ),
    "patient": (
        "Any single patient of a node: all of a patient's records at that node together, whether they were there at "
        "all, and what they said. Formally, the guarantee compares the run with the same run after all of one "
        "patient's records were added or removed."
    ),
}


def protected(facts: Facts) -> list[tuple[str, str]]:
    """Return (question, answer): what was protected, against whom, how strongly."""
    unit, trust = facts.text("privacy", "unit"), facts.text("privacy", "trust")
    return [
        ("What", UNIT.get(unit or "", f"The privacy unit “{unit or wording.NOT_COMPUTED}” has no description here.")),
        (
            "Against whom",
            AGAINST.get(trust or "", f"The trust model “{trust or wording.NOT_COMPUTED}” has no description here."),
        ),
        ("How strongly", strength(facts)),
    ]


def strength(facts: Facts) -> str:
    """Return what ε means for a guess about one unit."""
    value, delta = wording.worst_epsilon(facts), facts.number("privacy", "delta")
    unit = facts.text("privacy", "unit") or "unit"
    if value is None or delta is None:
        return f"ε was {wording.NOT_COMPUTED}, so no strength can be stated."
    guess = (
        f"Somebody who knows everything else, and for whom it is a coin toss whether one {unit} took part, "
        f"can learn to guess right at most {ceiling_percent(best_guess(value, delta))} of the time "
        f"(50{wording.THIN}% is blind guessing; without privacy it can be certainty). "
        "This is the worst case that the mathematics allows."
    )
    subject = wording.promise(facts)
    opening = f"{subject[0].upper() + subject[1:]}, at the node that spent most."
    return f"{opening} {guess if wording.is_guarantee(facts) else 'If it held: ' + guess[0].lower() + guess[1:]}"


def best_guess(epsilon: float, delta: float) -> float:
    """Return the largest probability of guessing one unit's presence from an even prior, (e^ε + δ) / (1 + e^ε).

    Source: Kairouz et al. 2015, arXiv:1311.0776, the trade-off region of (ε, δ) applied to equal priors.

    >>> best_guess(0.0, 0.0), round(best_guess(3.0, 1e-5), 4)
    (0.5, 0.9526)
    """
    return 1 - (1 - delta) / (1 + math.exp(min(epsilon, 700.0)))


def ceiling_percent(fraction: float) -> str:
    """Write a probability in per cent, rounded up."""
    return f"{math.ceil(1000 * fraction - 1e-9) / 10:.1f}{wording.THIN}%"


def not_protected(run: Run) -> list[tuple[str, str]]:
    """Return (heading, explanation) for each thing that the guarantee leaves out."""
    facts = run.facts
    noiseless = facts.number("accuracy", "no_dp") is not None
    bare = "The baseline “no privacy” was trained on the private records without any noise. " if noiseless else ""
    return [
        *unit_limits(facts),
        (
            "What is public by agreement",
            "The names and declared sizes of nodes, the list of classes, the number of rounds, and the privacy plan "
            "itself.",
        ),
        (
            "The backbone's own training data",
            f"The guarantee covers the head. The backbone was trained on: {trained_on(facts)} "
            "A patient whose records were in that data is not protected by it.",
        ),
        (
            "What this report shows",
            "In a simulation the held-out records lie with the server: accuracies, losses and the confusion matrix are "
            f"exact, and so are the counts of the data partition. {bare}None of this is covered by ε, so give this "
            "report only to those who may see the data.",
        ),
        (
            "What is true of everybody",
            "If the model learns that a pattern means a disease, it says so about people who took no part, too. "
            "Differential privacy hides who took part, not what holds in general.",
        ),
        *repetition_limits(run),
    ]


def unit_limits(facts: Facts) -> list[tuple[str, str]]:
    """Return what the privacy unit leaves out."""
    value = wording.worst_epsilon(facts)
    twice = f" (two records: ε up to {wording.epsilon(2 * value)}, at a larger δ)" if value is not None else ""
    elsewhere = "A person, or a copy of a record, present at two nodes spends at both: their ε add up."
    if facts.text("privacy", "unit") != "record":
        return [("The same patient at two nodes", elsewhere)]
    return [
        (
            "A whole patient with several records",
            f"The unit is one record. For someone with k records at a node, ε grows up to k-fold{twice}. {elsewhere}",
        )
    ]


def repetition_limits(run: Run) -> list[tuple[str, str]]:
    """Return what repeating on the same data does."""
    seeds = len(run.seeds)
    several = (
        f"This report averages {seeds} seeds, each a world of its own with its own ledgers: its ε is that of one. "
        f"Whoever sees the models of all {seeds} faces up to {seeds} times as much (ε and δ add up). "
        if seeds > 1
        else ""
    )
    return [
        (
            "Other runs on the same data",
            f"{several}ε counts the training of this one model. Every other run on the same records, earlier or "
            "later, the baselines here included, spends on its own.",
        )
    ]


def trained_on(facts: Facts) -> str:
    """Return what the backbone was trained on, as a sentence."""
    text = facts.text("backbone", "trained_on")
    return f"{text.rstrip('.')}." if text else "not stated."


def no_guarantee(facts: Facts) -> str:
    """Return the few words that go with every nominal ε."""
    return "no guarantee: seeded" if facts.text("privacy", "noise_source") == "seeded" else "no guarantee"


def banner(facts: Facts) -> tuple[str, str] | None:
    """Return (title, explanation) of the banner over a run whose ε is no guarantee, or ``None``."""
    if wording.is_guarantee(facts):
        return None
    source = facts.text("privacy", "noise_source")
    if source == "seeded":
        return (
            "No guarantee: seeded",
            "Sampling and noise came from a seed, so that the run can be repeated bit for bit. Whoever knows the seed "
            "can subtract the noise. ε is therefore nominal: it is what the same plan would give with noise from the "
            "operating system's generator. Use this run to learn about accuracy and cost, never to release a model of "
            "real people.",
        )
    return (
        "No guarantee",
        f"The run does not vouch for its ε (noise source: {source or wording.NOT_COMPUTED}). Read every ε here as "
        "nominal.",
    )

"""The audit in plain words, for a reader who has never met ε."""

from __future__ import annotations

import math

from simulations.audits.audit_report.audit import ALARM_LEVEL, Audit, Bound, MembershipTest
from simulations.audits.findings import Claim, LowerBound
from simulations.report import wording
from simulations.report.prose import best_guess, ceiling_percent

METHODS = {
    "clopper-pearson": "Clopper–Pearson",
    "gaussian-fit": "Gaussian fit",
    "two-sample": "both rates",
    "two-sample-fdp": "both rates, family",
    "one-run": "one run",
    "one-run-fdp": "one run, family",
    "lira-online": "LiRA, online",
    "lira-offline": "LiRA, offline",
    "rmia": "RMIA",
}
CANARIES = {
    "gradient": "worst-case gradient",
    "mislabelled": "mislabelled record",
    "out-of-distribution": "out-of-distribution record",
    "records": "the node's oddest own record",
}
SHORT_CANARIES = {
    "gradient": "gradient",
    "mislabelled": "mislabelled",
    "out-of-distribution": "out of distr.",
    "records": "own record",
}
NO_BETTER = "That no attack of ours does better does not prove that none can."
NO_PROOF = (
    f"{NO_BETTER} A lower bound shows what is certainly lost, "
    "never what is safe. The promise rests on the mathematics of clipping and noise; an audit looks for mistakes "
    "in the code that does it."
)


def floor(value: float) -> str:
    """Write a lower bound on ε, rounded down, so that no more is shown than was found.

    >>> floor(1.339), floor(0.0), floor(float("inf"))
    ('1.33', '0.00', '∞')
    """
    return "∞" if value == math.inf else f"{math.floor(value * 100 + 1e-9) / 100:.2f}"


def claimed(value: float) -> str:
    """Write a claimed ε, rounded up."""
    return "∞" if value == math.inf else wording.epsilon(value)


def confidence(value: float) -> str:
    """Write a confidence level.

    >>> confidence(0.95), confidence(0.9999)
    ('95\u202f%', '99.99\u202f%')
    """
    return f"{100 * value:.12g}{wording.THIN}%"


def terms(claim: Claim) -> str:
    """Write what every ε is said with."""
    return f"δ{wording.EQUALS}{wording.plain(claim.delta)}, per {claim.unit}, {claim.trust} trust"


def attack_name(found: LowerBound) -> str:
    """Name an attack: by whom, with what, judged how."""
    return f"{found.threat}, {CANARIES[found.canary]}, {METHODS[found.method]}"


def verdict(audit: Audit) -> str:
    """Return the outcome in three sentences."""
    claim = audit.claim
    allows = f"The promise allows ε{wording.EQUALS}{claimed(claim.epsilon)} ({terms(claim)})."
    return " ".join(text for text in (allows, shown(audit), quiet(audit)) if text)


def quiet(audit: Audit) -> str:
    """Say that there is no alarm, where something was done that could have raised one."""
    if broken(audit):
        return ""
    if any(one.sure is not None for one in audit.bounds):
        return "No alarm."
    return "The replay raised no alarm, and no attack could have raised one." if audit.checks else ""


def broken(audit: Audit) -> bool:
    """Whether something is wrong that must stand at the top."""
    return bool(audit.alarms or audit.failed)


def shown(audit: Audit) -> str:
    """Say what the best attacks showed."""
    sound, leaning = audit.best(conditional=False), audit.best(conditional=True)
    if sound is None and leaning is None:
        return "No attack on the mechanism was run."
    parts = []
    if sound is not None:
        parts.append(
            f"The best attack that we ran shows at least {floor(sound.found.epsilon)}, with "
            f"{confidence(sound.found.confidence)} confidence for that attack by itself ({attack_name(sound.found)})."
        )
    if leaning is not None and (sound is None or leaning.found.epsilon > sound.found.epsilon):
        parts.append(
            f"If {assumed(leaning.found)}, at least {floor(leaning.found.epsilon)} ({attack_name(leaning.found)})."
        )
    return " ".join(parts)


def assumed(found: LowerBound) -> str:
    """Write a method's condition so that it fits after "if"."""
    return (found.assumption or "").rstrip(".")


def conditions(audit: Audit) -> dict[str, str]:
    """Return what conditional bounds rest on, methods -> clause."""
    found: dict[str, list[str]] = {}
    for one in (one.found for one in audit.bounds if one.found.assumption):
        found.setdefault(assumed(one), []).append(METHODS[one.method])
    return {"; ".join(dict.fromkeys(methods)): clause for clause, methods in found.items()}


def alarm(audit: Audit) -> str:
    """Return the sentence that an alarm is raised with: what was promised, what was shown, what to do."""
    if audit.alarms:
        return " ".join(refuted(audit.claim, one) for one in audit.alarms[:1])
    return f"{audit.failed[0].check}: {audit.failed[0].sentence}"


def refuted(claim: Claim, bound: Bound) -> str:
    """Return one alarm as a sentence."""
    found = bound.found
    condition = f", if {assumed(found)}" if found.assumption else ""
    return (
        f"the promise allows epsilon {claim.promised(found.threat):.4g} at delta {claim.delta:g}, but an attack "
        f"({found.threat}, {CANARIES[found.canary]}, {found.method}) shows at least {floor(bound.sure or 0.0)} with "
        f"{100 * (1 - ALARM_LEVEL):g} % confidence{condition}; release nothing that this code noised before the fault "
        "is found"
    )


def meaning(audit: Audit) -> list[tuple[str, str]]:
    """Explain the numbers, term by term."""
    claim, sound = audit.claim, audit.best(conditional=False)
    rows = [("What is promised", promised(claim))]
    if sound is not None:
        rows.append(("What the best attack showed", attacked(audit, sound)))
    return [
        *rows,
        ("What that proves, and what not", NO_PROOF),
        (
            "When this report would raise an alarm",
            f"When a lower bound, computed once more at {confidence(1 - ALARM_LEVEL)} confidence, lies above the "
            f"promise. A mechanism that keeps its promise does that to one bound in {wording.whole(1 / ALARM_LEVEL)}. "
            f"{false_alarms(audit)}A failed check of the replay is an alarm as well, and not one of chance.",
        ),
    ]


def false_alarms(audit: Audit) -> str:
    """Say with what chance at most one audit of a true mechanism raises any alarm, whatever its bounds share."""
    count = sum(one.sure is not None for one in audit.bounds) + len(audit.steps)
    if not count:
        return ""
    each = f"{count} times {wording.plain(ALARM_LEVEL)}, " if count > 1 else ""
    return (
        f"{wording.many(count, 'bound')} could raise one here, so that an audit of such a mechanism raises any with a "
        f"chance of at most {each}{confidence(count * ALARM_LEVEL)}. "
    )


def promised(claim: Claim) -> str:
    """Say what ε means for what can be seen, and for a guess."""
    if claim.epsilon == math.inf:
        return "Nothing: there is no noise, so ε has no bound."
    return (
        f"Nothing that can be seen becomes more than {factor(claim.epsilon)} times as likely, or as unlikely, because "
        f"one {claim.unit} took part (e to the power ε; δ bounds the exceptions). For somebody who knows everything "
        f"else, and for whom it is a coin toss whether that {claim.unit} took part, a guess is right at most "
        f"{ceiling_percent(best_guess(claim.epsilon, claim.delta))} of the time (50{wording.THIN}% is blind guessing)."
    )


def attacked(audit: Audit, bound: Bound) -> str:
    """Say what a lower bound means in the same terms."""
    found = bound.found
    who = f"The attacker {audit.claim.sees(found.threat)} ({found.threat}). "
    who += f"What took part or not: {CANARIES[found.canary]}. "
    if found.epsilon <= 0:
        return who + "Nothing was shown that chance alone could not do."
    return (
        f"{who}Something that this attacker can see is at least {factor(found.epsilon)} times as likely with the "
        f"canary as without, or the other way round. Had this been the only bound, the chance that the statement is "
        f"wrong would be at most {confidence(1 - found.confidence)}{chosen(audit, found)}."
    )


def chosen(audit: Audit, found: LowerBound) -> str:
    """Say what choosing the largest of many bounds does to the chance of an error."""
    count = len(audit.bounds)
    if count < 2:
        return ""
    risk = count * (1 - found.confidence)
    return f"; it is the largest of {count}, " + (
        f"of which any is too large with a chance of at most {confidence(risk)}"
        if risk < 0.5
        else "some of which may well be too large"
    )


def factor(epsilon: float) -> str:
    """Write e to the power ε in two digits.

    >>> factor(3.0), factor(0.5), factor(100.0)
    ('20', '1.6', 'a million')
    """
    if epsilon > math.log(1e6):
        return "a million"
    value = math.exp(epsilon)
    return f"{value:.1f}" if value < 9.95 else wording.whole(float(f"{value:.2g}"))


def several(audit: Audit) -> str:
    """Warn of reading the largest of many bounds as if it had been the only one."""
    count = len(audit.bounds)
    if count < 2:
        return ""
    risk = 1 - min((one.found.confidence for one in audit.bounds), default=1.0)
    return (
        f"Each bound holds with its own confidence. Of all {count}, up to {count * risk:.2g} may be too large on the "
        "average, and the largest was chosen after looking. An alarm has a stricter level of its own."
    )


def membership_sentence(test: MembershipTest) -> str:
    """Say what membership inference reached in one world."""
    found = test.found
    rates = ", ".join(
        f"{wording.percent(rate)} of the members at {100 * level:g}{wording.THIN}% false alarms"
        for level, rate in sorted(found.true_positive_rate_at.items(), reverse=True)
    )
    world = "with the plan's noise" if test.private else "without clipping and noise"
    return f"{METHODS.get(found.method, found.method)}, {world}: finds {rates}; area {found.area:.3f}."


def limits(audit: Audit) -> list[tuple[str, str]]:
    """Return what this audit does not say."""
    rows = [
        (
            "Attacks that nobody has thought of",
            "The audit runs known attacks, against one configuration. A better attack may exist. Only the accountant's "
            "ε, the upper bound, holds against all of them.",
        ),
        (
            "A model of the mechanism, tied to the code",
            "The bounds come from models: of the sampling and noise that a gradient canary meets, and of many heads "
            "that train on records at once. Tests compare both with the code that trains. That code itself is run by "
            f"the replay{' and by the bounds through the shipped steps' if audit.steps else ''}, at a smaller scale. "
            "Nothing here sees another machine, a changed installation, timing, or what a hospital does outside "
            "fedgraft.",
        ),
        (
            "One promise",
            f"ε is for one {audit.claim.unit} in one training. Other runs on the same records add to it; the ledger "
            "counts them (fedgraft audit ledger).",
        ),
    ]
    if any(one.found.assumption for one in audit.bounds):
        rows.append(
            (
                "Conditional methods",
                "A bound marked “conditional” holds only if its assumption does. It is tighter, and wrong where the "
                "assumption is. Rely on the others; use it to see how close the audit comes.",
            )
        )
    if audit.origin.noise == "seeded":
        rows.append(
            (
                "Nominal",
                "The configuration has a seed, so a run of it draws noise that can be repeated and subtracted. ε is "
                "nominal for such a run. The attacks here do not use the seed against it.",
            )
        )
    return rows

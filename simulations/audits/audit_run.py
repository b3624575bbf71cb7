"""One audit from its configuration to what it found."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Iterator, Sequence
from time import perf_counter

from common.config import RunConfig
from common.errors import ConfigError
from simulations.audits import attack_bounds, membership_run, reading_run, record_bounds
from simulations.audits.attack_bounds import Scored, family_of
from simulations.audits.attack_request import MEMBERSHIPS, ONE_RUN, Request, check_heads, out_of_reach, percent
from simulations.audits.attack_subject import Subject, make_subject, origin_of
from simulations.audits.attacks import attack_gradient, attack_in_one_run
from simulations.audits.audit_report import ALARM_LEVEL, Audit, Bound, MembershipTest
from simulations.audits.findings import Threat
from simulations.audits.one_run import canaries_needed
from simulations.audits.practice import SHIPPED, Practice
from simulations.audits.replay import replay
from simulations.audits.shipped_steps import attack_steps, attack_sums
from simulations.audits.trade_offs import Family

Advance = Callable[[str, int, int], None]
NotRun = dict[str, str]

MOST_RECORDS = 20_000
MOST_CANARIES = 256  # in one head
ONE_RUN_SHARE = 10  # for so many heads with one canary, one with many
EXPECTED = 20_000  # canaries by which the number of guesses is chosen beforehand
ONLY_LINEAR = (
    'attacks with records train hundreds of heads at once, and do so for head "linear" with one class a record only; '
    "gradient canaries attack the mechanism of any head"
)


def run_audit(
    config: RunConfig, name: str, request: Request, advance: Advance, *, practice: Practice = SHIPPED
) -> Audit:
    """Attack the mechanism of a configuration, the records in it, and replay its private steps.

    Args:
        config: of the run that is audited.
        name: of the configuration, for the report.
        request: what is asked for.
        advance: told (what, done, to do).
        practice: how nodes work, for the replay and the attacks on private steps; what is shipped.

    Raises:
        ConfigError: what is asked for cannot be done for this configuration.
        PrivacyError: the promise that is asked for cannot be kept.
    """
    began = perf_counter()
    check_heads(request, config.privacy.delta)
    subject = make_subject(config, lambda done, total: advance("features", done, total))
    asked = request.named & {*record_bounds.CANARIES, *MEMBERSHIPS}
    if asked and (why := no_records(subject)):
        raise ConfigError(f"{why}; leave out {', '.join(sorted(asked))}")
    seed = config.federation.seed
    drawn = secrets.randbits(60) if seed is None else seed
    not_run: NotRun = {}
    bounds = tuple(all_bounds(subject, request, seed, drawn, advance, not_run))
    memberships = members(subject, request, drawn, advance, not_run)
    readable = subject.has_linear_head and not subject.whole_nodes
    readings = reading_run.readings(subject, drawn) if readable else ()
    if not readings:
        not_run["reconstruction"] = subject.whole_nodes or ONLY_LINEAR
    through = "gradient" in request.canaries and "server" in request.threats and request.bounds
    attacked = attack_sums if subject.claim.survivors else attack_steps
    steps = attacked(practice, drawn) if through else ()
    checks = replay(config, practice)
    return Audit(
        claim=subject.claim,
        bounds=bounds,
        memberships=memberships,
        reconstructions=readings,
        checks=checks,
        not_run=not_run,
        origin=origin_of(subject, name, seed),
        seconds=perf_counter() - began,
        steps=steps,
    )


def head_of(subject: Subject) -> str:
    """Say which head the configuration has."""
    return f"head {subject.config.model.head!r} for the task {subject.ready.federation.data.task!r}"


def all_bounds(
    subject: Subject, request: Request, seed: int | None, drawn: int, advance: Advance, not_run: NotRun
) -> Iterator[Bound]:
    """Bound epsilon by every canary, for every attacker that is asked for.

    Args:
        subject: what is attacked.
        request: what is asked for.
        seed: of gradient canaries; None draws from the operating system, as a node does.
        drawn: seed of heads that are trained at once.
        advance: told (what, done, to do).
        not_run: is told what was left out, and why.
    """
    methods = bound_methods(subject, request, not_run)
    threats = possible_threats(subject, request, not_run)
    not_run.update(simplified(subject, threats))
    if not methods:
        return
    family = family_of(subject.claim)
    for done, threat in enumerate(threats if "gradient" in request.canaries else ()):
        advance("gradient canaries", done, len(threats))
        yield from gradient_bounds(subject, request, threat, methods, seed, family)
        advance("gradient canaries", done + 1, len(threats))
    if not set(request.canaries) & set(record_bounds.CANARIES):
        return
    if why := no_records(subject):
        not_run["attacks with records"] = why
        return
    yield from record_bounds.record_bounds(
        subject, threats, request.canaries, methods, request.confidence, request.heads, drawn, family, advance
    )


def no_records(subject: Subject) -> str | None:
    """Why records cannot be attacked, or None."""
    if subject.whole_nodes:
        return subject.whole_nodes
    if not subject.has_linear_head:
        return f"{ONLY_LINEAR}, and this is {head_of(subject)}"
    if subject.count > MOST_RECORDS:
        return f"with more than {MOST_RECORDS:,} records ({subject.count:,}) it would take hours"
    return None


def gradient_bounds(
    subject: Subject,
    request: Request,
    threat: Threat,
    methods: tuple[str, ...],
    seed: int | None,
    family: Family,
) -> Iterator[Bound]:
    """Bound epsilon by gradient canaries for one attacker: many heads with one canary, and fewer heads with many."""
    claim, terms = subject.claim, subject.terms
    began = perf_counter()
    inside, outside = attack_gradient(
        claim,
        threat,
        heads=request.heads,
        nodes=subject.nodes,
        parameters=subject.parameters,
        seed=seed,
        steps_per_round=terms.steps_per_round,
    )
    scored = Scored(threat, "gradient", inside, outside, 2 * (request.heads // 2), perf_counter() - began)
    yield from attack_bounds.many_heads(scored, methods, claim, request.confidence, family)
    if not set(methods) & set(ONE_RUN):
        return
    began, heads = perf_counter(), one_run_heads(request)
    scores, included = attack_in_one_run(
        claim,
        threat,
        canaries=canaries_of(subject),
        nodes=subject.nodes,
        seed=seed,
        heads=heads,
        steps_per_round=terms.steps_per_round,
    )
    one = Scored(threat, "gradient", scores[included], scores[~included], heads, perf_counter() - began)
    expected, _ = attack_in_one_run(
        claim,
        threat,
        canaries=EXPECTED,
        nodes=subject.nodes,
        seed=None if seed is None else seed + 1,  # the number of guesses is fixed by other draws
        steps_per_round=terms.steps_per_round,
    )
    yield from attack_bounds.one_run_bounds(one, included, scores, expected, methods, claim, request.confidence, family)


def one_run_heads(request: Request) -> int:
    """How many heads with many canaries each are trained, which count as one run with all canaries."""
    return max(1, request.heads // ONE_RUN_SHARE)


def canaries_of(subject: Subject) -> int:
    """How many canaries at right angles are put into one head: it holds as many as it has features."""
    return min(int(subject.ready.features.shape[1]), MOST_CANARIES)


def bound_methods(subject: Subject, request: Request, not_run: NotRun) -> tuple[str, ...]:
    """The estimators that suit the mechanism.

    Raises:
        ConfigError: one that does not suit it was asked for by name.
    """
    unfit: dict[str, str] = {}
    if subject.claim.sampling_rate < 1:
        unfit["gaussian-fit"] = "scores of a mechanism that samples are not normal, so that its bounds would be wrong"
    for name in (name for name in ONE_RUN if name in request.bounds):
        if why := _too_unsure(name, subject, request, request.confidence):
            unfit[name] = why
        elif why := _too_unsure(name, subject, request, 1 - ALARM_LEVEL):
            not_run[f"alarms by {name}"] = why
    for name in (name for name in request.bounds if name in unfit):
        if name in request.named:
            raise ConfigError(f"--method {name} does not suit this configuration: {unfit[name]}; choose another")
        not_run[name] = unfit[name]
    return tuple(name for name in request.bounds if name not in unfit)


def _too_unsure(method: str, subject: Subject, request: Request, confidence: float) -> str | None:
    """Why guesses in one run could not show anything with this confidence, or None."""
    delta, each = subject.claim.delta, canaries_of(subject)
    canaries = one_run_heads(request) * each
    if attack_bounds.one_run_can_show(method, canaries, delta, confidence):
        return None
    needed = canaries_needed(0.0 if method == "one-run-fdp" else delta, confidence)
    if needed is None or needed <= canaries:
        return out_of_reach(delta, confidence)
    return (
        f"a head holds as many canaries as it is given features, {each}, so there are {canaries} of them with "
        f"{request.heads} --heads, and {needed} are needed for {percent(confidence)} confidence"
    )


def possible_threats(subject: Subject, request: Request, not_run: NotRun) -> tuple[Threat, ...]:
    """The attackers that there can be.

    Raises:
        ConfigError: none of those that are asked for.
    """
    unclaimed = subject.claim.survivors and subject.claim.honest == subject.claim.survivors
    if "peer" not in request.threats or (subject.nodes > 1 and not unclaimed):
        return request.threats
    why, remedy = "a peer is a second node, and this federation has one node", "raise federation.nodes"
    if unclaimed:
        why, remedy = "with no colluder allowed for nothing is promised against a peer", "raise privacy.colluders"
    if request.threats == ("peer",):
        raise ConfigError(f"--threat peer needs a peer, but {why}; choose --threat server or {remedy}")
    not_run["attacks by a peer"] = why
    return tuple(name for name in request.threats if name != "peer")


def simplified(subject: Subject, threats: Sequence[Threat]) -> NotRun:
    """What of the federation the attackers who see averages are not shown, and why that hides nothing."""
    federation = subject.config.federation
    if not {"peer", "model"} & set(threats) or subject.claim.survivors:
        return {}
    covered = "; whatever is made of the updates, the attacker server sees them all"
    found = {}
    if federation.strategy != "fedavg":
        found[f"peer and model with the strategy {federation.strategy!r}"] = f"fedavg stands for it{covered}"
    if federation.cohort is not None:
        found["peer and model with changing cohorts"] = (
            f"for gradient canaries the same {federation.cohort} nodes take part in every round, for records all "
            f"nodes do{covered}"
        )
    return found


def members(
    subject: Subject, request: Request, seed: int, advance: Advance, not_run: NotRun
) -> tuple[MembershipTest, ...]:
    """Run membership inference, or say why not."""
    threats = tuple(name for name in request.threats if name in membership_run.THREATS)
    if not request.memberships or "records" not in request.canaries:
        return ()
    if why := no_records(subject):
        not_run["membership inference"] = why
    elif not threats:
        not_run["membership inference"] = "it looks at final heads, which the attackers server and model have"
    else:
        return membership_run.membership_tests(subject, threats, request.memberships, request.heads, seed, advance)
    return ()

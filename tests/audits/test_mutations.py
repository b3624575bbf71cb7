"""Every known mistake, made on purpose, is caught by the audit that the shipped code passes."""

from __future__ import annotations

from pathlib import Path

import pytest

from client.training import private_update, train_round
from common.heads import arrays_digest, load_arrays
from common.privacy.noise import SeededRandomness
from simulations.audits.alarms import ALARM, attacks, audit_rounds, audit_steps, noise_alarms
from simulations.audits.practice import SHIPPED, Practice, company, task_for
from simulations.audits.replay import CHECKS, SUM_CHECKS, builtin_replay, builtin_specimen
from simulations.audits.replay_node import node_for, seeded_sources
from tests.audits.__main__ import ALLOWED, AUDITS, BEGIN, END, PAGE, RUNS
from tests.audits.broken_nodes import whole_round
from tests.audits.broken_steps import private_steps
from tests.audits.killing import pitfall_rows
from tests.audits.mutants import MUTANTS

PITFALLS = PAGE.parent / "privacy-pitfalls.md"

STATISTICAL = {
    "noise at half scale": "loud record",
    "clipped after averaging": "loud record",
    "clipped to twice the norm that is noised": "loud record",
    "an accountant of its own each round": "loud record",
    "the bias is not clipped": "mere label",
    "the bias without noise": "mere label",
    "the divisor is the batch that was drawn": "second record",
    "empty batches skipped": "only record",
}
"""Mutant -> an attack that shows by statistics alone that its epsilon is wrong; the page has all of them."""

IN_ROUNDS = (
    "noise seeded alike each round",
    "noise from a number that the server sent",
    "statistics of BatchNorm leave with the head",
)


def practice_of(name: str) -> Practice:
    return next(mutant.practice for mutant in MUTANTS if mutant.name == name)


def test_the_copies_that_mutants_are_made_of_do_as_the_shipped_code(tmp_path: Path) -> None:
    specimen = builtin_specimen().with_terms(steps_per_round=3)
    task, records = task_for(specimen), company(specimen).records
    digests = []
    for update in (private_update, private_steps()):
        load_arrays(specimen.head, task.head)
        randomness = SeededRandomness(0, "n", 1, "sampling"), SeededRandomness(0, "n", 1, "noise")
        digests.append(arrays_digest(update(specimen.head, task, records, specimen.plan, randomness)))
    assert digests[0] == digests[1]
    heads = []
    for train, name in ((train_round, "a"), (whole_round(), "b")):
        (tmp_path / name).mkdir()
        source = seeded_sources()["node-0"]
        node = node_for(specimen, company(specimen), tmp_path / name, source)
        heads += [arrays_digest(train(task, node).head) for _ in range(2)]
    assert len(set(heads)) == 1


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.name)
def test_replay_kills_every_mutant(mutant) -> None:
    failed = [finding for finding in builtin_replay(mutant.practice) if not finding.holds]
    assert failed
    assert all(
        finding.check in {**CHECKS, **SUM_CHECKS} and "release nothing" in finding.sentence for finding in failed
    )


def test_the_shipped_code_raises_no_alarm_though_the_attacks_come_close_to_what_is_claimed() -> None:
    """Nine estimates, each of which accuses a true mechanism with probability 1e-4 at most.

    An audit that never finds anything would raise no alarm either: this one finds two thirds of the truth.
    """
    estimates = [*audit_steps(SHIPPED), *audit_rounds(SHIPPED)]
    assert {estimate.attack for estimate in estimates} == {"two rounds", *(attack.name for attack in attacks())}
    assert len(estimates) == 9
    assert [estimate for estimate in estimates if estimate.alarm] == []
    assert max(estimate.epsilon for estimate in estimates if estimate.attack == "loud record") > 8.0 * 2 / 3


@pytest.mark.parametrize(("name", "attack"), STATISTICAL.items())
def test_statistics_kill_mutants_whose_epsilon_is_wrong(name: str, attack: str) -> None:
    assert any(estimate.alarm for estimate in audit_steps(practice_of(name), only=(attack,)))


@pytest.mark.parametrize("name", IN_ROUNDS)
def test_two_rounds_kill_mutants_that_show_between_rounds(name: str) -> None:
    assert any(estimate.alarm for estimate in audit_rounds(practice_of(name)))


@pytest.mark.parametrize(("epsilon", "rate", "steps"), [(4.0, 1.0, 1), (1.0, 0.2, 20)])
def test_two_hundred_audits_of_the_true_mechanism_raise_no_more_alarms_than_allowed(
    epsilon: float, rate: float, steps: int
) -> None:
    """More than one in 400 estimates at 1e-4 each: with a probability below 1e-3."""
    raised = noise_alarms(AUDITS, RUNS, epsilon, rate, steps)
    assert sum(raised.values()) <= ALLOWED


def test_two_hundred_audits_of_half_the_noise_all_raise_an_alarm() -> None:
    assert noise_alarms(AUDITS, RUNS, 4.0, 1.0, 1, scale=0.5)["Gaussian fit"] == AUDITS


def test_a_level_a_thousand_times_looser_would_accuse_the_true_mechanism() -> None:
    """The control of the two above: the bounds are tight enough for their confidence to matter."""
    from simulations.audits.estimators import gaussian_fit

    accused = 0
    for audit in range(AUDITS):
        scores = SeededRandomness(1, "loose", audit, "noise").normal((2, RUNS))
        epsilon = 4.377  # of a shift by one standard deviation, at delta 1e-5
        accused += gaussian_fit(scores[0] + 1.0, scores[1], 1e-5, 1 - 1000 * ALARM)[0] > epsilon
    assert 6 <= accused <= 40  # a tenth of 200, give or take; outside with probability below 1e-3


def test_the_page_has_a_row_for_every_mutant() -> None:
    table = PAGE.read_text().split(BEGIN)[1].split(END)[0]
    listed = {line.split("|")[1].strip(): line for line in table.splitlines()[2:]}
    assert set(listed) == {mutant.name for mutant in MUTANTS} | {"the shipped code"}
    assert [name for name, line in listed.items() if "| nothing |" in line] == ["the shipped code"]


def test_every_pitfall_is_mutated_or_says_why_not() -> None:
    excused = list(pitfall_rows(PAGE.read_text().split("## Pitfalls without a mutation")[1]))
    mutated = [mutant.pitfall for mutant in MUTANTS]
    rows = list(pitfall_rows(PITFALLS.read_text()))
    for row in rows:
        made = any(row.startswith(start) for start in mutated)
        assert made != any(row.startswith(start) for start in excused), row
    for start in (*mutated, *excused):
        assert any(row.startswith(start) for row in rows), start


def test_the_page_states_the_alarm_level() -> None:
    assert f"{ALARM:g}" == "0.0001"
    assert "1 − 1e-4" in PAGE.read_text()


def test_mutants_are_no_part_of_what_is_installed() -> None:
    assert not list((PAGE.parents[1] / "simulations").rglob("*mutant*"))

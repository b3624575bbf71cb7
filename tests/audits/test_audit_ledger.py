"""The audit of ledgers: it agrees with honest ones and explains what differs."""

from __future__ import annotations

import ast
import math
from dataclasses import replace
from pathlib import Path

import pytest
from dp_accounting import gaussian_mechanism
from scipy.integrate import quad
from scipy.stats import norm

from common.errors import PrivacyError
from common.privacy.entries import read_entries
from common.privacy.export import export_ledger
from simulations.audits import recompute, renyi
from simulations.audits.ledger_audit import audit_ledgers
from simulations.audits.ledger_checks import compare, formula_differs, second_opinion
from simulations.audits.ledger_tables import to_dict
from simulations.audits.recompute import Steps, epsilons, tight_and_rdp
from tests.audits.ledgers import (
    FULL,
    SAMPLED,
    accepted,
    audited,
    charged,
    crafted,
    ledgers_of_two,
    one,
    opened,
    spend,
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return ledgers_of_two(tmp_path_factory.mktemp("ledgers"))


# --- computing anew


def test_nothing_is_shared_with_the_accountant_that_guards_ledgers():
    tree = ast.parse(Path(recompute.__file__).read_text(encoding="utf-8"))
    names = {name.name for node in ast.walk(tree) if isinstance(node, ast.Import) for name in node.names}
    names |= {str(node.module) for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    assert {"dp_accounting", "opacus.accountants"} <= names
    assert not {name for name in names if name.split(".")[0] in ("common", "client", "server", "simulations")}


def test_known_values():
    """The design's table of accountants, and dp-accounting's own search for the Gaussian mechanism."""
    sampled = epsilons([Steps(1.0, 0.05, 1000)], 1e-5)
    assert sampled.exact is None
    assert (sampled.pld, sampled.rdp, sampled.prv) == pytest.approx((10.99, 12.0, 11.0), abs=0.03)
    exact = epsilons([Steps(8.0, 1.0, 10), Steps(5.0, 1.0, 20)], 1e-6).exact
    sigma = (10 / 8.0**2 + 20 / 5.0**2) ** -0.5
    assert exact == pytest.approx(gaussian_mechanism.get_epsilon_gaussian(sigma, 1e-6), rel=1e-6)


def test_equal_steps_are_one_group_and_computed_once():
    first = epsilons([Steps(3.0, 0.2, 10)], 1e-5)
    before = recompute._prv.cache_info().hits, recompute._bounds.cache_info().hits
    assert epsilons([Steps(3.0, 0.2, 5), Steps(3.0, 0.2, 5)], 1e-5) == first
    assert (recompute._prv.cache_info().hits, recompute._bounds.cache_info().hits) == (before[0] + 1, before[1] + 1)


def test_a_cross_check_whose_numerics_fail_is_left_out():
    """Opacus integrates here without convergence."""
    steps = [Steps(1.6257565516420616, 0.9525425067563908, 78), Steps(0.8704138454119819, 0.0216, 16)]
    found = epsilons([*steps, Steps(0.3, 0.0175, 5)], 0.0056)
    assert found.prv is None or found.prv == pytest.approx(found.tight, rel=0.01)
    assert found.tight <= found.rdp


# --- Renyi DP by the formula


def direct(noise: float, rate: float, order: int) -> float:
    """The divergence by its definition, as an integral."""

    def integrand(x: float) -> float:
        ratio = (1 - rate) + rate * math.exp((2 * x - 1) / (2 * noise**2))
        return float(norm.pdf(x, 0, noise)) * ratio**order

    return math.log(quad(integrand, -20 * noise, order + 20 * noise, limit=200)[0]) / (order - 1)


@pytest.mark.parametrize(("noise", "rate"), [(1.0, 0.05), (0.7, 0.5), (3.0, 0.9), (2.0, 1.0)])
def test_the_formula_is_the_divergence(noise, rate):
    for order in (2, 3, 7):
        assert renyi.curve(noise, rate)[order - 2] == pytest.approx(direct(noise, rate, order), rel=1e-6)


@pytest.mark.parametrize("delta", [1e-5, 1e-10])
@pytest.mark.parametrize("count", [1, 50, 3000])
@pytest.mark.parametrize(("noise", "rate"), [(0.3, 0.01), (0.7, 0.1), (1.0, 0.5), (2.0, 1.0), (60.0, 1e-4), (1e5, 1.0)])
def test_the_formula_is_what_dp_accounting_computes(noise, rate, count, delta):
    steps = [Steps(noise, rate, count), Steps(4.0, 0.02, 7)]

    def ours(factor: float = 1.0) -> float:
        scaled = [(one.noise_multiplier * factor, one.sampling_rate, one.count) for one in steps]
        return renyi.epsilon_renyi(scaled, delta)

    theirs = recompute.rdp_at(steps, delta, renyi.ORDERS)
    assert ours() == pytest.approx(theirs, rel=1e-6, abs=1e-9)
    assert ours(0.95) != pytest.approx(theirs, rel=1e-3, abs=1e-9)


def test_the_formula_alone_says_when_nothing_is_spent():
    assert renyi.epsilon_renyi([(1e5, 1e-6, 1)], 1e-5) == recompute.rdp_at([Steps(1e5, 1e-6, 1)], 1e-5, renyi.ORDERS)


@pytest.mark.parametrize(("factor", "wrong"), [(0.98, True), (0.995, False), (1.005, False), (1.02, True)])
def test_a_formula_that_says_otherwise_is_a_problem(folder, factor, wrong):
    finding = one(folder / "south.sqlite")
    assert finding.by_formula >= finding.epsilons.rdp * (1 - 1e-6)
    assert bool(formula_differs(finding.by_formula, finding.by_formula * factor)) == wrong


def test_what_one_library_alone_computed_is_said(folder):
    finding = one(folder / "south.sqlite")
    alone = replace(finding.epsilons, prv=None)
    (note,) = second_opinion(finding.history, alone)[1]
    assert "rests on dp-accounting alone" in note
    assert second_opinion(finding.history, finding.epsilons)[1] == []


def test_nothing_costs_nothing():
    assert epsilons([], 1e-5).tight == 0.0
    assert tight_and_rdp([Steps(1e5, 1.0, 1)], 1e-5)[0] == 0.0


@pytest.mark.parametrize(
    ("terms", "rounds"),
    [
        (FULL, 30),
        (FULL, 7),
        (SAMPLED, 20),
        (replace(SAMPLED, noise_multiplier=60.0), 3),
        (replace(SAMPLED, delta=1e-9), 20),
        (replace(FULL, noise_multiplier=0.02), 2),
        (replace(FULL, delta=1e-12), 30),
    ],
)
def test_honest_ledgers_agree(terms, rounds):
    file = crafted(opened(terms, 1e9), accepted(terms), *charged(terms, range(rounds)))
    assert audit_ledgers([file]).problems == ()


@pytest.mark.parametrize("delta", [1e-5, 1e-9])
def test_several_plans_are_claimed_by_renyi_dp(delta):
    first, second = replace(FULL, delta=delta), replace(SAMPLED, delta=delta)
    plans = [accepted(first), *charged(first, [1, 2]), accepted(second, "next"), *charged(second, [1], "next")]
    (finding,) = audit_ledgers([crafted(opened(first), *plans)]).ledgers
    assert finding.problems == ()
    assert finding.recomputed == finding.epsilons.rdp > finding.epsilons.tight
    assert finding.notes[0].startswith("2 plans")


@pytest.mark.parametrize(("factor", "wrong"), [(0.98, True), (0.995, False), (1.005, False), (1.02, True)])
def test_a_statement_that_says_otherwise_is_a_problem(folder, factor, wrong):
    finding = one(folder / "north.sqlite")
    said = replace(finding.statement, epsilon=finding.statement.epsilon * factor)
    assert bool(compare(finding.history, said, finding.epsilons)[1]) == wrong


def test_a_statement_that_counts_otherwise_is_a_problem(folder):
    finding = one(folder / "south.sqlite")
    said = replace(finding.statement, open_reservations=())
    assert "count the events" in compare(finding.history, said, finding.epsilons)[1][0]


def test_accountants_that_differ_are_a_problem(folder):
    finding = one(folder / "north.sqlite")
    prv = finding.epsilons.tight * 1.02
    assert "Opacus" in compare(finding.history, finding.statement, replace(finding.epsilons, prv=prv))[1][0]


def test_rounding_up_to_a_tabulated_round_is_explained():
    terms = replace(SAMPLED, rounds=1000)
    file = crafted(opened(terms), accepted(terms), *charged(terms, range(101)))
    (finding,) = audit_ledgers([file]).ledgers
    assert "tabulates" in " ".join(finding.notes)
    assert finding.statement.epsilon > 1.01 * finding.recomputed


# --- what happened


def test_open_reservations_and_times_are_told(folder):
    finding = one(folder / "south.sqlite")
    assert [charge.committed is None for charge in finding.history.charges] == [False] * 8 + [True] * 2
    assert "never released: 2" in " ".join(finding.notes)
    assert finding.history.timed
    assert not one(folder / "north.sqlite").history.timed


def test_caps_and_their_changes_are_told(tmp_path):
    path = spend(tmp_path / "d.sqlite", FULL, 2, epsilon_cap=8.0)
    spend(path, FULL, 0, epsilon_cap=4.0)
    finding = one(path)
    assert [cap.epsilon for cap in finding.history.caps] == [8.0, 4.0]
    assert "changed from ε = 8 to 4" in " ".join(finding.notes)


def test_who_signed_a_higher_cap_off_is_told_and_that_nobody_did():
    higher: dict[str, object] = {"epsilon_cap": 9.0, "signed_off_by": "Dr. North", "reason": "the board agreed"}
    silent: dict[str, object] = {"epsilon_cap": 9.5}  # as earlier releases wrote it
    audit = audit_ledgers([crafted(opened(FULL), ("cap", higher), ("cap", silent))])
    assert audit.problems == ()
    (finding,) = audit.ledgers
    notes = " ".join(finding.notes)
    assert "from ε = 8 to 9 (entry 1), signed off by 'Dr. North': 'the board agreed'." in notes
    assert "from ε = 9 to 9.5 (entry 2); nobody signed it off." in notes
    assert to_dict(audit)["ledgers"][0]["caps"][1]["signed_off_by"] == "Dr. North"


@pytest.mark.parametrize(("cap", "wrong"), [(3.0, False), (2.9, True)])
def test_charges_beyond_the_cap_of_their_time_are_a_problem(cap, wrong):
    later: tuple[str, dict[str, object]] = ("cap", {"epsilon_cap": 100.0})
    file = crafted(opened(FULL, cap), accepted(FULL), *charged(FULL, range(30)), later)
    assert bool(audit_ledgers([file]).problems) == wrong


def test_a_cap_below_what_was_spent_before_it_is_fine():
    file = crafted(opened(FULL), accepted(FULL), *charged(FULL, range(30)), ("cap", {"epsilon_cap": 1.0}))
    assert audit_ledgers([file]).problems == ()


def test_a_round_charged_twice_and_rounds_beyond_the_plan_are_told():
    terms = replace(FULL, rounds=2)
    (_, second) = charged(terms, [1, 1])
    second[1]["head"] = "another"
    file = crafted(opened(terms), accepted(terms), *charged(terms, [1]), second, *charged(terms, [2]))
    notes = " ".join(audit_ledgers([file]).ledgers[0].notes)
    assert "several times for round 1" in notes
    assert "3 rounds under a plan of 2" in notes


# --- several files


def test_an_older_copy_counts_once(folder, tmp_path):
    old = tmp_path / "old.json"
    export_ledger(read_entries(folder / "north.sqlite")[:20], old)
    finding = one(old, folder / "north.sqlite", folder / "north.json")
    assert [len(file.entries) for file in finding.files] == [62, 62, 20]
    assert finding.statement == one(folder / "north.sqlite").statement


def test_ledgers_of_one_data_set_that_part_are_refused(folder, tmp_path):
    other = spend(tmp_path / "north.sqlite", FULL, 3, dataset_id="north", run="another")
    with pytest.raises(PrivacyError, match=r"must be one ledger.*part at entry 1"):
        audited(folder / "north.sqlite", other)


def test_data_sets_are_listed_apart_and_summed(folder):
    audit = audited(folder / "north.sqlite", folder / "south.sqlite")
    assert [one.history.dataset_id for one in audit.ledgers] == ["north", "south"]
    assert audit.epsilon_of_all == pytest.approx(sum(one.statement.epsilon for one in audit.ledgers), rel=1e-6)
    assert audit.delta_of_all == pytest.approx(2e-5)


# --- heads noted earlier


def test_a_head_noted_earlier_is_found(folder):
    noted = read_entries(folder / "north.sqlite")[40].hash
    assert one(folder / "north.sqlite", heads=[noted]).anchors == (40,)
    assert "--head" not in " ".join(audited(folder / "north.sqlite", heads=[noted]).not_covered)
    assert "--head" in " ".join(audited(folder / "north.sqlite").not_covered)


def test_a_head_that_is_nowhere_means_an_older_copy(folder, tmp_path):
    export_ledger(read_entries(folder / "north.sqlite")[:20], tmp_path / "restored.json")
    with pytest.raises(PrivacyError, match="older copy"):
        audited(tmp_path / "restored.json", heads=[read_entries(folder / "north.sqlite")[40].hash])

"""The audit of ledgers: it agrees with honest ones, explains what differs, and refuses every other kind."""

from __future__ import annotations

import ast
import json
import math
import shutil
import sqlite3
from collections.abc import Sequence
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from dp_accounting import gaussian_mechanism
from scipy.integrate import quad
from scipy.stats import norm

import fedgraft
from client.ledger import Ledger, Reservation, Spend
from common.config import load_config
from common.errors import FederationError, PrivacyError
from common.privacy.entries import GENESIS, LedgerEntry, entry_hash, make_entry, read_entries
from common.privacy.export import export_ledger
from common.privacy.plan import PrivacyTerms
from simulations.audits import recompute, renyi
from simulations.audits.ledger_audit import LedgerAudit, LedgerFinding, audit_ledgers
from simulations.audits.ledger_checks import compare, formula_differs, second_opinion
from simulations.audits.ledger_files import LedgerFile, read_ledger_file
from simulations.audits.ledger_tables import to_dict
from simulations.audits.recompute import Steps, epsilons, tight_and_rdp
from tests.common.test_privacy_export import key_pair, public

ROOT = Path(__file__).parents[2]
DIGITS = ROOT / "simulations" / "configs" / "digits.toml"
FULL = PrivacyTerms("record", "local", 1.0, 30, 1, 1.6, 7.617, 1e-5)
SAMPLED = PrivacyTerms("record", "local", 0.1, 20, 2, 1.0, 2.0, 1e-5)


def spend(path: Path, terms: PrivacyTerms, rounds: int, *, run: str = "run", leave_open: int = 0, **given: Any) -> Path:
    """Charge rounds to a ledger, through the node's own code."""
    settings: dict[str, Any] = {"dataset_id": path.stem, "epsilon_cap": 8.0, "durable": False, **given}
    plan = terms.for_node(100)
    with Ledger.open(path, delta=terms.delta, **settings) as ledger:
        for round in range(1, rounds + 1):
            reservation = ledger.reserve(Spend(run, round, f"head {round}"), plan)
            assert isinstance(reservation, Reservation)
            if round <= rounds - leave_open:
                ledger.commit(reservation, b"reply %d" % round)
    return path


def audited(*paths: Path, **given: Any) -> LedgerAudit:
    return audit_ledgers([read_ledger_file(path) for path in paths], **given)


def one(*paths: Path, **given: Any) -> LedgerFinding:
    (finding,) = audited(*paths, **given).ledgers
    return finding


def crafted(*bodies: tuple[str, dict[str, object]]) -> LedgerFile:
    """A chain whose hashes hold, whatever it says."""
    found: list[LedgerEntry] = []
    for position, (kind, body) in enumerate(bodies):
        found.append(make_entry(position, found[-1].hash if found else GENESIS, kind, body))
    return LedgerFile(Path("crafted"), "ledger", tuple(found))


def opened(terms: PrivacyTerms, cap: float = 8.0) -> tuple[str, dict[str, object]]:
    return "opened", {"dataset_id": "crafted", "delta": terms.delta, "epsilon_cap": cap}


def accepted(terms: PrivacyTerms, run: str = "run") -> tuple[str, dict[str, object]]:
    plan = terms.for_node(1)
    return "plan", {"run_id": run, "digest": plan.digest, "plan": plan.to_dict()}


def charged(terms: PrivacyTerms, rounds: Sequence[int], run: str = "run") -> list[tuple[str, dict[str, object]]]:
    body = {"run_id": run, "digest": terms.for_node(1).digest, "head": "h", "steps": terms.steps_per_round}
    return [("reserve", {**body, "round": round}) for round in rounds]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Ledgers that several tests read."""
    place = tmp_path_factory.mktemp("ledgers")
    spend(place / "north.sqlite", FULL, 30, dataset_id="north")
    spend(place / "south.sqlite", SAMPLED, 10, dataset_id="south", leave_open=2, durable=True)
    key_pair(place, "node")
    key_pair(place, "other")
    export_ledger(read_entries(place / "north.sqlite"), place / "north.json", private_key=place / "node")
    export_ledger(read_entries(place / "south.sqlite"), place / "south.json")
    return place


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


# --- the command


def run(*arguments: object) -> int:
    return fedgraft.main(["audit", *map(str, arguments)])


def test_the_tables_say_what_was_spent_released_and_left_out(folder, capsys):
    assert run("ledger", folder / "north.sqlite", folder / "south.json") == 0
    said = " ".join(capsys.readouterr().out.split())
    for text in ("north 3.000 3.000 3.000 3.250", "30 of 30", "10 of 20", "σ = 2, q = 0.1", "never released: 2"):
        assert text in said
    for text in ("the sums", "unsigned", "not anchored", "Not covered", "backbone", "seeded"):
        assert text in said


def test_names_in_a_ledger_do_not_reach_the_terminal_raw(tmp_path, capsys):
    spend(tmp_path / "d.sqlite", FULL, 1, dataset_id="\x1b[31mred", run="[bold]\x1b[2J")
    assert run("ledger", tmp_path / "d.sqlite") == 0
    said = capsys.readouterr().out
    assert "\x1b" not in said
    assert "?[31mred" in said


def test_json_holds_every_charge(folder, capsys):
    assert run("ledger", folder / "north.json", "--key", public(folder / "node"), "--json") == 0
    (ledger,) = json.loads(capsys.readouterr().out)["ledgers"]
    assert ledger["epsilon"] == pytest.approx(2.9998, abs=1e-3)
    assert ledger["epsilon_by"]["exact"] == pytest.approx(ledger["epsilon"], rel=1e-6)
    assert ledger["files"][0]["signature_checked_by"] == str(public(folder / "node"))
    assert [charge["round"] for charge in ledger["plans"][0]["charges"]] == list(range(1, 31))


def test_an_export_is_made_and_audited(folder, tmp_path, capsys):
    assert run("export", folder / "north.sqlite", "--out", tmp_path / "out.json", "--key", folder / "node") == 0
    assert read_entries(folder / "north.sqlite")[-1].hash in capsys.readouterr().out
    assert run("ledger", tmp_path / "out.json", "--key", public(folder / "node")) == 0
    assert run("export", tmp_path / "out.json", "--out", tmp_path / "again.json") == 2
    assert "an export of one already" in capsys.readouterr().err


def test_the_configuration_of_the_run_fits(folder, capsys):
    assert run("ledger", folder / "north.sqlite", "--config", DIGITS) == 0
    assert "The configuration fits run run." in capsys.readouterr().out


def changed(tmp_path: Path, *changes: tuple[str, str]) -> Path:
    """Write the digits' configuration, changed."""
    text = DIGITS.read_text(encoding="utf-8")
    for before, after in changes:
        assert before in text
        text = text.replace(before, after)
    (tmp_path / "config.toml").write_text(text, encoding="utf-8")
    return tmp_path / "config.toml"


@pytest.mark.parametrize(
    ("before", "after", "said"),
    [
        ("epsilon = 3.0", "epsilon = 1.0", "privacy.epsilon = 3 (configuration: 1)"),
        ("epsilon = 3.0", "epsilon = 4.0", "privacy.epsilon = 3 (configuration: 4)"),
        ("delta = 1e-5", "delta = 1e-6", "privacy.delta = 1e-05 (configuration: 1e-06)"),
        ('clipping_norm = "auto"', "clipping_norm = 1.0", "privacy.clipping_norm = 1.6 (configuration: 1)"),
        ("sampling_rate = 1.0", "sampling_rate = 0.5", "privacy.sampling_rate = 1 (configuration: 0.5)"),
        ("rounds = 30", "rounds = 20", "federation.rounds = 30 (configuration: 20)"),
        ('unit = "record"', 'unit = "patient"', "privacy.unit = record (configuration: patient)"),
        ('trust = "local"', 'trust = "secagg"', "privacy.trust = local (configuration: secagg)"),
    ],
)
def test_another_configuration_is_refused_key_by_key(folder, tmp_path, capsys, before, after, said):
    assert run("ledger", folder / "north.sqlite", "--config", changed(tmp_path, (before, after)), "--json") == 3
    out, err = capsys.readouterr()
    assert said in err
    assert err.count("\n") == 1
    assert json.loads(out)["error"]["kind"] == "PrivacyError"


BARE = replace(FULL, noise_multiplier=1.2)


@pytest.mark.parametrize(("rounds", "wrong"), [(30, False), (31, True), (60, True)])
def test_a_run_that_fits_is_charged_no_more_than_its_rounds(rounds, wrong):
    found = audit_ledgers(
        [crafted(opened(FULL), accepted(FULL), *charged(FULL, range(rounds)))], config=load_config(DIGITS)
    )
    assert bool(found.problems) == wrong
    assert ("at most the 30 rounds" in " ".join(found.problems)) == wrong
    assert ("at most the configuration's ε = 3" in " ".join(found.problems)) == wrong


def test_a_run_charged_twice_its_rounds_is_a_status(tmp_path, capsys):
    path = spend(tmp_path / "d.sqlite", FULL, 60, epsilon_cap=100.0)
    assert run("ledger", path) == 0
    assert run("ledger", path, "--config", DIGITS) == 3
    assert "was charged 60" in capsys.readouterr().err


def test_what_the_configuration_does_not_cover_is_said_beside_what_fits(tmp_path, capsys):
    path = spend(tmp_path / "d.sqlite", FULL, 30, epsilon_cap=1000.0)
    assert run("ledger", path, "--config", DIGITS) == 0
    assert "But" not in capsys.readouterr().out
    spend(path, BARE, 20, run="second", epsilon_cap=1000.0)
    assert run("ledger", path, "--config", DIGITS) == 0
    said = capsys.readouterr().out
    total = one(path).recomputed
    for text in (
        "fits run run.",
        "does not fit what was charged to run 'second' (ε = ",
        f"spent ε = {total:.4g} in all",
    ):
        assert text in said
    assert "the configuration promises 3." in said


def test_two_runs_of_one_configuration_spend_more_than_it_promises():
    runs = [(name, accepted(FULL, name), charged(FULL, range(30), name)) for name in ("a", "b")]
    bodies = [body for _, plan, charges in runs for body in (plan, *charges)]
    (finding,) = audit_ledgers([crafted(opened(FULL), *bodies)], config=load_config(DIGITS)).ledgers
    assert (finding.runs, finding.problems) == (("a", "b"), ())
    assert "in all, the configuration promises 3." in finding.notes[-1]


# --- bad files


def edited(folder: Path, tmp_path: Path, statement: str) -> Path:
    """A copy of a ledger that somebody changed."""
    path = tmp_path / "edited.sqlite"
    shutil.copyfile(folder / "north.sqlite", path)
    with closing(sqlite3.connect(path)) as connection:
        for (name,) in connection.execute("SELECT name FROM sqlite_master WHERE type = 'trigger'").fetchall():
            connection.execute(f"DROP TRIGGER {name}")
        connection.executescript(statement)
        connection.commit()
    return path


REPLIES = "DROP TABLE replies; CREATE TABLE replies AS SELECT 60 AS reservation, {} AS reply"


@pytest.mark.parametrize(
    ("statement", "said"),
    [
        ("UPDATE entries SET text = replace(text, '\"epsilon_cap\":8.0', '\"epsilon_cap\":9.0')", "entry 0"),
        ("UPDATE entries SET hash = 'x' WHERE position = 61", "entry 61"),
        ("DELETE FROM entries WHERE position = 30", "entry 30"),
        ("DELETE FROM entries WHERE position = 0", "entry 0"),
        ("DELETE FROM entries WHERE position > 50", "the reply kept for entry 60"),
        ("DELETE FROM entries", "does not begin"),
        ("UPDATE replies SET reply = x'00'", "the reply kept for entry 60"),
        (REPLIES.format("'text'"), "the reply kept for entry 60"),
        (REPLIES.format("NULL"), "the reply kept for entry 60"),
        (REPLIES.format("12"), "the reply kept for entry 60"),
        ("DROP TABLE entries", "no such table"),
        ("DROP TABLE replies", "no such table"),
    ],
)
def test_a_tampered_ledger_is_one_sentence_and_a_status(folder, tmp_path, capsys, statement, said):
    assert run("ledger", edited(folder, tmp_path, statement)) == 3
    err = capsys.readouterr().err
    assert said in err
    assert "edited.sqlite" in err
    assert err.count("\n") == 1


def test_a_chain_that_makes_no_sense_is_refused():
    with pytest.raises(PrivacyError, match=r"crafted: .*entry 1 makes no sense"):
        audit_ledgers([crafted(opened(FULL), *charged(FULL, [1]))])
    with pytest.raises(PrivacyError, match="entry 1 makes no sense"):
        audit_ledgers([crafted(opened(FULL), ("cap", {"epsilon_cap": "much"}))])


HUGE, DEEP = 10**400, "[" * 100_000
LIMITS: dict[str, object] = {"dataset_id": "d", "delta": 1e-5, "epsilon_cap": 8.0}
PLAN = accepted(FULL)[1]
CHARGE = charged(FULL, [1])[0][1]
TERMS = FULL.for_node(1).to_dict()
FORGED: dict[str, list[tuple[str, dict[str, object]]]] = {
    "no entry that opens": [("cap", {"epsilon_cap": 1.0})],
    "name is a list": [("opened", {**LIMITS, "dataset_id": ["d"]})],
    "delta above 1": [("opened", {**LIMITS, "delta": 2.0})],
    "delta is huge": [("opened", {**LIMITS, "delta": HUGE})],
    "delta is a list": [("opened", {**LIMITS, "delta": [1]})],
    "cap is huge": [("opened", {**LIMITS, "epsilon_cap": HUGE})],
    "later cap is huge": [("opened", LIMITS), ("cap", {"epsilon_cap": HUGE})],
    "who signed is no text": [("opened", LIMITS), ("cap", {"epsilon_cap": 9.0, "signed_off_by": 5})],
    "a cap changes delta": [("opened", LIMITS), ("cap", {"epsilon_cap": 1.0, "delta": 1e-3})],
    "unknown kind": [("opened", LIMITS), ("other", {})],
    "run is a list": [("opened", LIMITS), ("plan", {**PLAN, "run_id": [1]})],
    "plan is a list": [("opened", LIMITS), ("plan", {**PLAN, "plan": [1]})],
    "size is huge": [("opened", LIMITS), ("plan", {**PLAN, "plan": {**TERMS, "declared_size": HUGE}})],
    "round is a list": [("opened", LIMITS), ("plan", PLAN), ("reserve", {**CHARGE, "round": [1]})],
    "round is true": [("opened", LIMITS), ("plan", PLAN), ("reserve", {**CHARGE, "round": True})],
    "steps are huge": [("opened", LIMITS), ("plan", PLAN), ("reserve", {**CHARGE, "steps": HUGE})],
    "head is a list": [("opened", LIMITS), ("plan", PLAN), ("reserve", {**CHARGE, "head": [1]})],
    "reservation is a list": [("opened", LIMITS), ("commit", {"reservation": [1], "reply_sha256": "x"})],
    "reservation is huge": [("opened", LIMITS), ("commit", {"reservation": HUGE, "reply_sha256": "x"})],
    "reply is a list": [
        ("opened", LIMITS),
        ("plan", PLAN),
        ("reserve", CHARGE),
        ("commit", {"reservation": 2, "reply_sha256": [1]}),
    ],
}


def written(path: Path, entries: Sequence[LedgerEntry]) -> Path:
    """A database with these entries and no replies."""
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("CREATE TABLE entries (position INTEGER PRIMARY KEY, text, hash)")
        connection.execute("CREATE TABLE replies (reservation, run_id, round, reply)")
        rows = [(one.position, one.text, one.hash) for one in entries]
        connection.executemany("INSERT INTO entries VALUES (?, ?, ?)", rows)
        connection.commit()
    return path


@pytest.mark.parametrize("name", list(FORGED))
def test_forged_chains_are_one_sentence_and_a_status(tmp_path, capsys, name):
    path = written(tmp_path / "forged.sqlite", crafted(*FORGED[name]).entries)
    assert run("ledger", path) == 3
    err = capsys.readouterr().err
    assert "forged.sqlite" in err
    assert err.count("\n") == 1


@pytest.mark.parametrize("text", [DEEP, '{"position":0,"previous":' + DEEP, "[]", "1" * 5000, b"x", None, 3])
def test_entries_that_are_no_objects_are_one_sentence_and_a_status(tmp_path, capsys, text):
    hash = entry_hash(text) if isinstance(text, str) else ""
    assert run("ledger", written(tmp_path / "forged.sqlite", [LedgerEntry(0, text, hash)])) == 3
    assert capsys.readouterr().err.count("\n") == 1


def test_a_ledger_without_a_charge_says_that_nothing_was_spent(tmp_path, capsys):
    assert run("ledger", spend(tmp_path / "d.sqlite", FULL, 0)) == 0
    assert "No round was charged: nothing was spent." in capsys.readouterr().out


def test_every_cut_of_a_file_is_seen(folder, tmp_path):
    for name in ("north.sqlite", "north.json"):
        whole = (folder / name).read_bytes()
        for size in range(0, len(whole), len(whole) // 25):
            (tmp_path / "cut").write_bytes(whole[:size])
            with pytest.raises(FederationError):
                read_ledger_file(tmp_path / "cut")


@pytest.mark.parametrize("content", [b"", b"hello", b"{}", b"\x00\x01"])
def test_what_is_no_ledger_is_unusable_input(tmp_path, capsys, content):
    (tmp_path / "file").write_bytes(content)
    assert run("ledger", tmp_path / "file") == 2
    assert "error: expected a" in capsys.readouterr().err


def test_a_missing_file_a_wrong_head_and_a_key_for_a_ledger(folder, tmp_path, capsys):
    assert run("ledger", tmp_path / "missing") == 2
    assert "readable file" in capsys.readouterr().err
    assert run("ledger", folder / "north.sqlite", "--head", "abc") == 2
    assert "64 hexadecimal digits" in capsys.readouterr().err
    assert run("ledger", folder / "north.sqlite", "--key", public(folder / "node")) == 2
    assert "is a ledger itself" in capsys.readouterr().err


def test_that_any_key_may_sign_any_data_set_is_said(folder, capsys):
    assert run("ledger", folder / "north.json", "--key", public(folder / "node")) == 0
    assert "may sign any data set" in capsys.readouterr().out
    assert run("ledger", folder / "north.json") == 0
    assert "may sign any data set" not in capsys.readouterr().out


def test_wrong_signatures_are_refused(folder, capsys):
    assert run("ledger", folder / "north.json", "--key", public(folder / "other")) == 3
    assert "signed it; ask the hospital" in capsys.readouterr().err
    assert run("ledger", folder / "south.json", "--key", public(folder / "node")) == 3
    assert "nobody signed it" in capsys.readouterr().err


def test_a_signature_by_a_key_that_nobody_vouched_for_is_said_so(folder, capsys):
    assert run("ledger", folder / "north.json") == 0
    assert "a key that nobody vouched for: give --key" in capsys.readouterr().out


def test_a_ledger_is_read_without_being_changed(folder):
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    audited(folder / "north.sqlite", folder / "south.sqlite")
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


def test_a_node_stopped_in_the_middle_of_a_write_is_read_as_before_it(folder, tmp_path):
    path, live = tmp_path / "north.sqlite", tmp_path / "live.sqlite"
    shutil.copyfile(folder / "north.sqlite", live)
    with closing(sqlite3.connect(live, isolation_level=None)) as connection:
        connection.execute("PRAGMA cache_size = 1")  # so that the half-made change reaches the file
        connection.execute("BEGIN IMMEDIATE")
        connection.execute("UPDATE replies SET reply = zeroblob(100000)")
        shutil.copyfile(live, path)
        shutil.copyfile(f"{live}-journal", f"{path}-journal")
        connection.execute("ROLLBACK")
    before = {item.name: item.read_bytes() for item in tmp_path.iterdir()}
    assert before["north.sqlite"] != (folder / "north.sqlite").read_bytes()
    assert read_ledger_file(path).entries == tuple(read_entries(folder / "north.sqlite"))
    assert {item.name: item.read_bytes() for item in tmp_path.iterdir()} == before

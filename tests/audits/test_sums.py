"""Audits of sums over nodes and of patients: what is shipped passes, by replay and by attack; broken shares do not."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from torch import Tensor, nn

from client.node import Records
from client.training import private_update
from common.errors import ConfigError
from common.messages import TrainTask
from common.privacy.plan import PrivacyPlan
from simulations.audits.attack_request import make_request
from simulations.audits.attack_subject import claim_of
from simulations.audits.attacks import attack_gradient, view_of
from simulations.audits.audit_run import run_audit
from simulations.audits.practice import SHIPPED, Practice, Specimen, company
from simulations.audits.probes import PatientSampling, ShareOfNoise
from simulations.audits.replay import CHECKS, SUM_CHECKS, builtin_specimen, replay
from simulations.audits.replay_node import replay_node
from simulations.audits.replay_steps import MANY_RECORDS, replay_steps
from simulations.audits.replay_sums import replay_sums
from simulations.audits.sum_alarms import ATTACKS, audit_sums
from simulations.audits.sum_specimens import masked_by, sum_specimen
from tests.audits.broken_steps import Pair
from tests.audits.broken_sums import whole_share
from tests.audits.mutants import MUTANTS
from tests.federations import small_config

SUMS = {"trust": "secagg", "colluders": 1, "dropouts": 0, "largest_node": 2000, "sampling_rate": 1.0}
UNITS = ("record", "patient")
FOUND_BY = {
    "one node adds no noise": ("share of noise", "server and colluders, a record"),
    "noise shares sized for all nodes": ("share of noise", "server and colluders, a record"),
    "a patient's records clipped one by one": ("sum", "server and colluders, a patient"),
}
"""Mutant -> the replayed check and the attack that find it."""


def practice_of(name: str) -> Practice:
    return next(mutant.practice for mutant in MUTANTS if mutant.name == name)


def test_the_copy_that_broken_shares_are_made_of_masks_the_same() -> None:
    for unit in UNITS:
        specimen = sum_specimen(builtin_specimen(), unit)
        place = company(specimen)
        found = [
            masked_by(practice, specimen, place, place.sampling(), ShareOfNoise())
            for practice in (SHIPPED, replace(SHIPPED, share=whole_share))
        ]
        assert np.array_equal(found[0], found[1])


@pytest.mark.parametrize("name", FOUND_BY)
def test_broken_shares_are_found_by_replay_and_by_statistics(name: str) -> None:
    check, attack = FOUND_BY[name]
    practice = practice_of(name)
    findings = [each for unit in UNITS for each in replay_sums(practice, sum_specimen(builtin_specimen(), unit))]
    assert check in {finding.check for finding in findings if not finding.holds}
    assert any(estimate.alarm for estimate in audit_sums(practice, only=(attack,)))


def test_shipped_sums_raise_no_alarm_though_the_attacks_come_close_to_what_is_claimed() -> None:
    """Six estimates, each of which accuses a true mechanism with probability 1e-4 at most."""
    estimates = audit_sums(SHIPPED)
    assert [estimate for estimate in estimates if estimate.alarm] == []
    for attack in ATTACKS:
        assert max(each.epsilon / each.claimed for each in estimates if each.attack == attack.name) > 0.6


def patients() -> Specimen:
    offer = builtin_specimen().offer
    return replace(
        builtin_specimen(), offer=replace(offer, terms=replace(offer.terms, unit="patient", records_per_unit=8))
    )


def test_patients_of_one_to_fifty_records_are_replayed() -> None:
    specimen = patients()
    findings = (*replay_steps(SHIPPED, specimen), *replay_node(SHIPPED, specimen))
    assert [finding.sentence for finding in findings if not finding.holds] == []
    moved = next(finding for finding in findings if finding.check == "sensitivity").measured
    assert moved is not None
    assert moved > 0.999


def by_records(
    head: nn.Module, task: TrainTask, records: Records, plan: PrivacyPlan, randomness: Pair
) -> dict[str, Tensor]:
    """Everybody's records clipped one by one, under a plan that speaks of patients."""
    terms = replace(plan.terms, unit="record", records_per_unit=1)
    return private_update(head, task, records, replace(plan, terms=terms), randomness)


def test_records_clipped_one_by_one_move_a_patients_sum_by_as_many_norms() -> None:
    findings = replay_steps(replace(SHIPPED, update=by_records), patients())
    found = next(finding for finding in findings if finding.check == "sensitivity")
    assert not found.holds
    assert found.margin == pytest.approx(MANY_RECORDS, rel=0.01)


def test_a_patient_more_leaves_the_draws_of_the_others_alone() -> None:
    whole = company(patients())
    more = whole.joined_by_unit(whole.features[:3], whole.targets[:3])
    one, other = whole.sampling(), more.sampling()
    assert isinstance(one, PatientSampling)
    assert other.bernoulli(5, 0.5)[:-1].tolist() == one.bernoulli(4, 0.5).tolist()
    assert other.normal((len(more.numbers),))[:-3].tolist() == one.normal((len(whole.numbers),)).tolist()


def test_a_configuration_with_sums_is_replayed() -> None:
    findings = replay(small_config(privacy=SUMS), records=4)
    assert [finding.check for finding in findings] == [*SUM_CHECKS, "books", "features"]
    assert [finding.sentence for finding in findings if not finding.holds] == []
    assert set(SUM_CHECKS) & set(CHECKS) == set()


def test_attackers_of_sums_meet_the_noise_that_they_do_not_know() -> None:
    """Four nodes, one lost, one colluding: two honest shares are worth sigma, three are met by who sees the model."""
    terms = replace(sum_specimen(builtin_specimen()).offer.terms, nodes=6, dropouts=1, colluders=1)
    claim = claim_of(terms)
    assert (claim.survivors, claim.honest) == (5, 4)
    assert view_of(claim, "server", 6).deviation == pytest.approx(terms.noise_multiplier)
    assert view_of(claim, "peer", 6).deviation == pytest.approx(terms.noise_multiplier)
    assert view_of(claim, "model", 6).deviation == pytest.approx(terms.model_noise_multiplier)
    assert claim.promised("model") < claim.promised("server") == claim.promised("peer") == claim.epsilon
    inside, outside = attack_gradient(claim, "server", heads=4000, nodes=6, parameters=15, seed=1)
    expected = claim_of(replace(terms, trust="local", nodes=0, dropouts=0, colluders=0, largest_node=0))
    other, _ = attack_gradient(expected, "server", heads=4000, nodes=6, parameters=15, seed=2)
    assert float(inside.mean()) == pytest.approx(float(other.mean()), abs=6 * float(other.std()) * (2 / 2000) ** 0.5)
    assert inside.mean() > outside.mean()


@pytest.mark.slow
def test_a_configuration_with_sums_is_attacked_and_holds() -> None:
    config = small_config(privacy=SUMS)
    request = make_request("all", ("clopper-pearson", "gaussian-fit"), ("gradient", "records"), 0.95, 600)
    request = replace(request, named=frozenset({"gradient"}))
    audit = run_audit(config, "sums", request, lambda what, done, total: None)
    assert audit.alarms == ()
    assert [check.sentence for check in audit.checks if not check.holds] == []
    assert [finding.sentence for finding in audit.steps if not finding.holds] == []
    assert {one.found.threat for one in audit.bounds} == {"server", "peer", "model"}
    assert "secagg" in audit.not_run["attacks with records"]
    assert "secagg" in audit.not_run["reconstruction"]


def test_nothing_is_promised_against_a_peer_where_no_colluder_is_allowed_for() -> None:
    config = small_config(privacy={**SUMS, "colluders": 0})
    request = make_request("peer", ("clopper-pearson",), ("gradient",), 0.95, 4000)
    with pytest.raises(ConfigError, match="no colluder allowed for"):
        run_audit(config, "sums", request, lambda what, done, total: None)

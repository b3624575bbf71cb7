"""The command ``fedgraft audit attack``, on small federations, and all that it refuses."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import norm
from torch import Tensor, nn

import fedgraft
from client.node import Records
from client.training import private_update
from common.config import RunConfig, dump_toml
from common.errors import ConfigError, PrivacyError
from common.messages import TrainTask
from common.privacy.noise import Randomness
from common.privacy.plan import PrivacyPlan
from simulations.audits import alarms
from simulations.audits.attack_bounds import Scored, family_of, many_heads
from simulations.audits.attack_cli import deliver
from simulations.audits.attack_request import ceiling, check_heads, make_request, scores_needed
from simulations.audits.attack_subject import LARGEST_EPSILON, claim_of, data_digest, make_subject
from simulations.audits.audit_report import ALARM_LEVEL, Place, alarm, broken, verify_report
from simulations.audits.audit_report.words import verdict
from simulations.audits.audit_run import bound_methods, run_audit, simplified
from simulations.audits.estimators import clopper_pearson, gaussian_mu
from simulations.audits.one_run import canaries_needed, one_run
from simulations.audits.practice import SHIPPED
from simulations.audits.probes import Noise
from simulations.audits.recipes import places_of
from simulations.audits.record_bounds import number_of_heads
from simulations.audits.shipped_steps import attack_steps
from tests.audits.findings_by_hand import audit, broken_audit, claim
from tests.audits.test_audit_report import make_key
from tests.federations import small_config, small_terms

FAST = ["--heads", "400", "--method", "clopper-pearson", "--method", "gaussian-fit", "--canary", "gradient"]


def write(folder: Path, config: RunConfig) -> str:
    path = folder / "small.toml"
    path.write_text(dump_toml(config))
    return str(path)


@pytest.fixture
def small(tmp_path: Path) -> str:
    return write(tmp_path, small_config(privacy={"sampling_rate": 1.0, "epsilon": 4.0}))


def refusal(capsys: pytest.CaptureFixture[str], *arguments: str, status: int = 2) -> str:
    assert fedgraft.main(["audit", "attack", *arguments]) == status
    captured = capsys.readouterr()
    assert captured.err.splitlines()[-1].startswith("error: ")
    return captured.err.splitlines()[-1]


def result(capsys: pytest.CaptureFixture[str], *arguments: str) -> dict[str, Any]:
    assert fedgraft.main(["audit", "attack", *arguments, "--json"]) == 0
    value: dict[str, Any] = json.loads(capsys.readouterr().out)
    return value


def test_audit_shows_less_than_the_promise_and_a_good_part_of_it(small, capsys):
    value = result(capsys, small, *FAST, "--heads", "4000")
    found = {(one["threat"], one["method"]): one["epsilon"] for one in value["bounds"]}
    promised = value["claim"]["epsilon"]
    assert promised == pytest.approx(4.0, abs=0.01)
    assert 0.2 < found["server", "clopper-pearson"] < promised  # less than 0.2 with a probability of about 0.001
    assert 3.0 < found["server", "gaussian-fit"] < promised
    assert found["server", "gaussian-fit"] > found["peer", "gaussian-fit"] > 0  # other nodes' noise protects
    assert not value["alarm"]
    assert len(value["replay"]) == 15
    assert all(one["holds"] for one in value["replay"])


def test_audit_of_a_seeded_configuration_repeats(small, capsys):
    values = [result(capsys, small, *FAST, "--threat", "model") for _ in range(2)]
    bounds = [[(one["epsilon"], one["estimate"]) for one in value["bounds"]] for value in values]
    assert bounds[0] == bounds[1]


@pytest.mark.slow
def test_whole_audit_of_a_linear_head_writes_a_report_that_is_verified(small, tmp_path, capsys):
    private, public = make_key(tmp_path)
    page = tmp_path / "audit.html"
    options = ["--heads", "100", "--report", str(page), "--key", str(private), "--set", "federation.nodes=40"]
    assert fedgraft.main(["audit", "attack", small, "--threat", "server", *options]) == 0
    said = capsys.readouterr().out
    assert "promised   ε ≤ 4.00" in said
    assert "LiRA, online" in said
    value = json.loads(page.with_suffix(".json").read_text())
    assert {one["canary"] for one in value["bounds"]} == {"gradient", "mislabelled", "out-of-distribution", "records"}
    assert {(one["method"], one["private"]) for one in value["memberships"]} == {
        (method, private) for method in ("lira-online", "lira-offline", "rmia") for private in (True, False)
    }
    assert {(one["target"], one["private"]) for one in value["reconstructions"]} == {
        (target, private) for target in ("class counts", "class features", "features") for private in (True, False)
    }
    read = {(one["target"], one["private"]): one["error"] for one in value["reconstructions"]}
    assert read["features", False] < 1e-6 < 0.5 < read["features", True]
    assert fedgraft.main(["audit", "verify", str(page.with_suffix(".json")), "--key", str(public)]) == 0
    assert "as signed" in capsys.readouterr().out
    assert [path.name for path in verify_report(page.with_suffix(".json"), public).files] == [
        "audit.json",
        "audit.html",
    ]


def test_head_that_is_not_linear_has_its_mechanism_attacked_and_says_what_was_left_out(tmp_path, capsys):
    path = write(tmp_path, small_config(model={"head": "mlp"}, privacy={"sampling_rate": 1.0}))
    value = result(capsys, path, "--threat", "server", "--heads", "200")
    assert {one["canary"] for one in value["bounds"]} == {"gradient"}
    assert value["memberships"] == value["reconstructions"] == []
    assert 'for head "linear" with one class a record only' in value["not_run"]["membership inference"]
    assert "head 'mlp'" in value["not_run"]["attacks with records"]


@pytest.mark.parametrize("named", [["--canary", "mislabelled"], ["--method", "lira-online"]])
def test_records_of_a_head_that_is_not_linear_are_refused_when_named(tmp_path, capsys, named):
    path = write(tmp_path, small_config(model={"head": "mlp"}))
    said = refusal(capsys, path, *named)
    assert 'for head "linear" with one class a record only' in said
    assert "and this is head 'mlp'" in said


def test_methods_that_do_not_suit_the_mechanism_are_left_out_or_refused_when_named(tmp_path, capsys):
    not_run: dict[str, str] = {}
    kept = bound_methods(make_subject(small_config()), make_request("all", [], [], 0.95, 100), not_run)
    assert "gaussian-fit" not in kept
    assert len(kept) == 5
    assert "not normal" in not_run["gaussian-fit"]
    path = write(tmp_path, small_config())
    assert "--method gaussian-fit does not suit" in refusal(capsys, path, "--method", "gaussian-fit")


def test_one_run_needs_features_enough(tmp_path, capsys):
    path = write(tmp_path, small_config(model={"backbone": "pixels/2"}, privacy={"sampling_rate": 1.0}))
    said = refusal(capsys, path, "--method", "one-run", "--threat", "server", "--heads", "19")
    assert "given features, 4, so there are 4 of them with 19 --heads, and 6 are needed for 95 % confidence" in said


def test_bound_from_one_run_without_canaries_enough_for_an_alarm_has_none_and_says_so(tmp_path, capsys):
    path = write(tmp_path, small_config(model={"backbone": "pixels/2"}, privacy={"sampling_rate": 1.0}))
    options = ["--method", "one-run", "--canary", "gradient", "--threat", "model", "--heads", "32"]
    value = result(capsys, path, *options)
    assert [one["epsilon_at_alarm_level"] for one in value["bounds"]] == [None]
    assert "12 of them with 32 --heads, and 15 are needed for 99.99 %" in value["not_run"]["alarms by one-run"]


@pytest.mark.parametrize("delta", ["3e-5", "1e-3"])
def test_large_delta_leaves_the_bound_of_one_run_without_an_alarm(small, capsys, delta):
    """Right guesses alone have probability 4 delta, whatever their number: an alarm needs 1e-4, a bound 0.05."""
    options = ["--canary", "gradient", "--heads", "400", "--threat", "model", "--set", f"privacy.delta={delta}"]
    value = result(capsys, small, *options)
    sure = {one["method"]: one["epsilon_at_alarm_level"] for one in value["bounds"]}
    assert sure["one-run-fdp"] is not None
    assert sure["clopper-pearson"] is not None
    assert sure["one-run"] is None
    assert "whatever the number of canaries" in value["not_run"]["alarms by one-run"]


def test_extreme_confidence_leaves_out_what_cannot_reach_it_and_refuses_it_when_named(small, capsys):
    options = ["--canary", "gradient", "--heads", "400", "--threat", "model", "--confidence", "0.99999999"]
    value = result(capsys, small, *options)
    assert "99.999999 % confidence is out of its reach" in value["not_run"]["one-run"]
    assert {one["method"] for one in value["bounds"]} >= {"clopper-pearson", "one-run-fdp"}
    assert "--method one-run does not suit" in refusal(capsys, small, *options, "--method", "one-run")


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--threat", "sever"], "--threat must be one of server, peer, model, all, got 'sever'; did you mean server?"),
        (["--method", "clopper"], "got 'clopper'; "),
        (
            ["--canary", "bird"],
            "--canary must be one of gradient, mislabelled, out-of-distribution, records, got 'bird'",
        ),
        (["--confidence", "95"], "--confidence must lie above 0.5 and below 1, got 95"),
        (["--confidence", "1"], "--confidence must lie above 0.5 and below 1"),
        (["--heads", "0"], "--heads must be from 1 to 10000000, got 0"),
        (["--heads", "1"], "--heads must be at least 64 for membership tests"),
        (["--heads", "1", "--confidence", "0.99999999"], "--heads must be at least 114, half of them with the canary"),
        (["--canary", "gradient", "--method", "lira-online"], "--method lira-online looks for a node's own records"),
        (["--canary", "records", "--method", "one-run"], "--method one-run guesses at gradient canaries"),
        (["--threat", "peer", "--canary", "records", "--method", "rmia"], "got --canary records and --threat peer"),
        (
            ["--canary", "gradient", "--canary", "records", "--method", "rmia"],
            "--canary gradient needs a method that uses it, got --method rmia",
        ),
        (["--threat", "peer", "--method", "lira-offline"], "--method lira-offline looks for a node's own records"),
        (["--heads", "20", "--method", "clopper-pearson"], "half of them with the canary"),
        (["--report", "audit.txt"], "--report must end in .html"),
        (["--report", "/nowhere/audit.html"], "--report must lie in a folder that is there"),
        (["--key", "nowhere"], "--key signs a report, but no --report was asked for"),
        (["--report", "audit.html", "--key", "nowhere"], "a key must be a readable file"),
        (
            ["--set", "privacy.epsilon=1000"],
            "expected a promise that attacks can put to the test, epsilon of at most 20",
        ),
        (["--set", "privacy.epsilon=nan"], "privacy.epsilon"),
        (["--set", "federation.nodes=1", "--threat", "peer"], "this federation has one node"),
    ],
)
def test_what_makes_no_sense_is_refused_with_a_sentence(small, tmp_path, capsys, monkeypatch, arguments, sentence):
    monkeypatch.chdir(tmp_path)
    assert sentence in refusal(capsys, small, *arguments)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["small.toml"]


def test_configuration_without_privacy_is_refused(tmp_path, capsys):
    path = tmp_path / "bare.toml"
    path.write_text('[data]\nsource = "digits"\n[model]\nbackbone = "pixels/8"\n')
    assert fedgraft.main(["audit", "attack", str(path)]) == 2
    assert "privacy.epsilon" in capsys.readouterr().err


def test_one_node_has_no_peer_and_the_audit_says_so(small, capsys):
    value = result(capsys, small, *FAST, "--set", "federation.nodes=1", "--set", "privacy.delta=1e-6")
    assert {one["threat"] for one in value["bounds"]} == {"server", "model"}
    assert "one node" in value["not_run"]["attacks by a peer"]


def test_place_of_the_report_is_checked_before_any_work(small, tmp_path, capsys):
    """Ten million heads would take longer than any test may."""
    refusal(capsys, small, "--report", str(tmp_path / "none" / "a.html"), "--heads", "10000000")


def test_folder_that_cannot_be_written_is_refused(small, capsys):
    assert "/proc cannot" in refusal(capsys, small, "--report", "/proc/audit.html")


@pytest.mark.parametrize("confidence", [0.6, 0.95, 0.9999])
def test_heads_that_are_needed_are_the_fewest_that_show_anything(confidence):
    needed = scores_needed(1e-5, confidence)
    assert ceiling(needed, 1e-5, confidence) > 0 >= ceiling(needed - 1, 1e-5, confidence)
    request = make_request("all", ["clopper-pearson"], [], confidence, 2 * scores_needed(1e-5, 0.9999) - 1)
    with pytest.raises(ConfigError, match=rf"at least {2 * scores_needed(1e-5, 0.9999)}, half of them"):
        check_heads(request, 1e-5)


def test_canaries_of_one_run_that_are_needed_are_the_fewest_that_show_anything():
    needed = canaries_needed(1e-5, 0.9999)
    assert needed is not None
    assert one_run(needed, needed, needed, 1e-5, 0.9999) >= 0
    with pytest.raises(ConfigError, match=r"cannot be had .* ask for less confidence"):
        one_run(12, 12, 12, 1e-5, 0.9999)
    with pytest.raises(ConfigError, match=r"cannot be had .* all are right; ask for less confidence"):
        one_run(2000, 2000, 2000, 3e-5, 0.9999)
    assert canaries_needed(3e-5, 0.9999) == 17  # more of them would be too many


def test_alarm_level_is_the_one_that_is_checked_on_many_audits():
    assert ALARM_LEVEL == alarms.ALARM


FALSE_ALARM = 1e-4  # of each bound; 2 bounds in each of 20 audits: 0.004 for this test


@pytest.mark.parametrize("worse", [1.0, 1.8])
def test_true_mechanism_raises_no_alarm_and_one_with_too_little_noise_does(worse):
    promise = claim(epsilon=4.0, steps=1, noise_multiplier=1 / gaussian_mu(4.0, 1e-5))
    family, raised = family_of(promise), 0
    for trial in range(20 if worse == 1.0 else 3):
        rng = np.random.default_rng(trial)
        mean = worse / promise.noise_multiplier
        scored = Scored("server", "gradient", rng.normal(mean, 1, 2000), rng.normal(0, 1, 2000), 4000, 0.0)
        methods = ("clopper-pearson", "gaussian-fit")
        raised += any(one.breaks(promise) for one in many_heads(scored, methods, promise, 0.95, family))
    assert raised == (0 if worse == 1.0 else 3)


def test_gaussian_fit_raises_no_alarm_where_scores_need_not_be_normal():
    promise = claim(epsilon=1.0)
    rng = np.random.default_rng(0)
    scored = Scored("server", "records", rng.normal(9, 1, 500), rng.normal(0, 1, 500), 1000, 0.0)
    fit, exact = many_heads(scored, ("gaussian-fit", "clopper-pearson"), promise, 0.95, family_of(promise))[::-1]
    assert fit.found.epsilon > 9 * exact.found.epsilon / 9 > promise.epsilon
    assert not fit.breaks(promise)
    assert exact.breaks(promise)


def without_noise(
    head: nn.Module, task: TrainTask, records: Records, plan: PrivacyPlan, randomness: tuple[Randomness, Randomness]
) -> dict[str, Tensor]:
    return private_update(head, task, records, plan, (randomness[0], Noise(scale=0.0)))


def test_code_that_forgets_the_noise_is_found_by_bounds_and_by_the_replay():
    """The shipped code raises a false alarm with probability below 1e-3; the configuration's seed is fixed."""
    request = make_request("server", ["clopper-pearson"], ["gradient"], 0.95, 100)
    config, quiet = small_config(privacy={"sampling_rate": 1.0}), lambda what, done, total: None
    found = run_audit(config, "small", request, quiet, practice=replace(SHIPPED, update=without_noise))
    assert broken(found)
    assert "noise" in {finding.check for finding in found.failed}
    assert 'attack "second record": size, Clopper-Pearson' in {one.check for one in found.failed}
    assert 'attack "loud record"' in alarm(found)
    shipped = run_audit(config, "small", request, quiet)
    assert not broken(shipped)
    assert len(shipped.steps) == 7


def test_private_steps_that_stop_are_a_finding():
    def stops(*arguments: Any) -> dict[str, Tensor]:
        raise FloatingPointError("no number")

    (found,) = attack_steps(replace(SHIPPED, update=stops), 0)
    assert not found.holds
    assert "they stopped with FloatingPointError: no number" in found.sentence


@pytest.mark.parametrize("as_json", [True, False])
def test_alarm_is_raised_after_the_report_was_written_and_shown(tmp_path, capsys, as_json):
    place = Place(tmp_path / "audit.html")
    with pytest.raises(PrivacyError, match=r"the promise allows epsilon 3 .* shows at least 3\.60 with 99\.99 %"):
        deliver(broken_audit(), place, as_json)
    said = capsys.readouterr().out
    assert json.loads(said)["alarm"] if as_json else "ALARM: the promise allows epsilon 3" in " ".join(said.split())
    assert 'role="alert"' in place.page.read_text()


def test_no_alarm_is_said_only_of_what_could_have_raised_one():
    full = audit()
    assert verdict(full).endswith("No alarm.")
    unable = tuple(replace(one, sure=None) for one in full.bounds)
    for bounds in ((), unable):
        said = verdict(replace(full, bounds=bounds))
        assert "No alarm." not in said
        assert said.endswith("The replay raised no alarm, and no attack could have raised one.")
    assert "alarm" not in verdict(replace(full, bounds=(), checks=()))


@pytest.mark.parametrize(("weighting", "weights"), [("equal", [1.0, 1.0]), ("declared", [3.0, 2.0])])
def test_records_are_attacked_where_nodes_count_as_the_plan_says(weighting, weights):
    subject = make_subject(small_config(federation={"weighting": weighting}))
    assert subject.weights([3, 2]) == weights
    places = places_of([torch.arange(3), torch.arange(3, 5)], subject.terms, [3, 2], subject.weights([3, 2]))
    assert [place.weight for place in places] == weights


def test_what_stands_for_the_strategy_and_for_cohorts_is_said():
    subject = make_subject(small_config(federation={"strategy": "fedavgm", "cohort": 3}))
    assert simplified(subject, ("server",)) == {}
    said = simplified(subject, ("server", "model"))
    assert "fedavg stands for it" in said["peer and model with the strategy 'fedavgm'"]
    assert "the same 3 nodes" in said["peer and model with changing cohorts"]
    assert simplified(make_subject(small_config()), ("peer", "model")) == {}


def test_claim_is_that_of_the_accountant():
    terms = small_terms(sampling_rate=1.0, rounds=4, noise_multiplier=2.0)
    promise = claim_of(terms)
    mu = math.sqrt(4) / 2.0  # four Gaussian steps are one of sqrt(4) times the distance
    delta = norm.cdf(mu / 2 - promise.epsilon / mu) - math.exp(promise.epsilon) * norm.cdf(
        -mu / 2 - promise.epsilon / mu
    )
    assert delta == pytest.approx(1e-5, rel=1e-6)
    assert (promise.steps, promise.sampling_rate, promise.noise_multiplier) == (4, 1.0, 2.0)


def test_subject_attacks_the_smallest_node_and_knows_the_run():
    subject = make_subject(small_config(data={"partition": "quantity", "alpha": 2.0}, privacy={"delta": 1e-6}))
    sizes = {name: len(share) for name, share in subject.ready.federation.shares.items()}
    assert sizes[subject.node] == min(sizes.values())
    assert subject.parameters == 650
    assert subject.claim.epsilon <= min(8.0, LARGEST_EPSILON)


def test_digest_of_data_changes_with_a_label_and_with_the_order():
    data = make_subject(small_config()).ready.federation.data.take(np.arange(20))
    assert data_digest(data) == data_digest(data.take(np.arange(20)))
    assert data_digest(data) != data_digest(data.take(np.arange(20)[::-1]))


@given(st.integers(200, 10**6), st.integers(1, 10**6))
def test_attacks_with_records_train_no_more_heads_than_asked_for(heads: int, records: int) -> None:
    assert 200 <= number_of_heads(heads, records) <= heads


def test_ceiling_grows_with_heads_and_is_what_a_perfect_attack_shows():
    ceilings = [ceiling(scores, 1e-5, 0.95) for scores in (10, 100, 1000)]
    assert ceilings == sorted(ceilings)
    assert ceilings[1] == clopper_pearson(np.arange(100.0) + 1000, np.arange(100.0), 1e-5, 0.95)

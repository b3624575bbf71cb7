"""The audit's report as its readers get it, from audits put together by hand."""

from __future__ import annotations

import hashlib
import json
import math
import re
import shutil
import subprocess
from dataclasses import replace
from functools import lru_cache
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console
from scipy.stats import norm

import fedgraft
from common.errors import ConfigError, PrivacyError
from simulations.audits.audit_report import (
    Audit,
    Place,
    alarm,
    broken,
    open_place,
    place_needed,
    plots,
    to_dict,
    verify_report,
    words,
    write_report,
)
from simulations.audits.audit_report.page import Seal, page
from simulations.audits.audit_report.sections import SECTIONS
from simulations.audits.audit_report.signature import signature_path
from simulations.audits.audit_report.terminal import show
from simulations.audits.estimators import clopper_pearson
from simulations.audits.findings import Claim
from simulations.report.svg import theme
from tests.audits import findings_by_hand
from tests.audits.findings_by_hand import BOUNDS, FAILED, audit, bound, broken_audit, claim, membership, origin
from tests.simulations.report_folders import HOSTILE
from tests.simulations.test_report import LOADING, Page

EMPTY = {"bounds": (), "memberships": (), "reconstructions": (), "checks": (), "not_run": {"replay": "not asked for"}}
AUDITS = {
    "full": audit(),
    "alarm": broken_audit(),
    "failed replay": audit(checks=(*findings_by_hand.CHECKS, FAILED)),
    "empty": audit(**EMPTY),
    "no noise": audit(claim=claim(epsilon=math.inf, noise_multiplier=0.0)),
    "one bound": audit(bounds=BOUNDS[:1], memberships=(membership(private=True),)),
    "real data": audit(origin=origin(confidential=True, noise="system", seed=None, data="/data/x.npz")),
    "hostile": audit(origin=origin(name=HOSTILE[1], data=HOSTILE[1], config=HOSTILE[1], written=HOSTILE[1])),
    "no distance": audit(bounds=(bound(epsilon=math.inf, estimate=math.inf, sure=math.inf),)),
}


@lru_cache
def shown_page(name: str) -> Page:
    return parsed(AUDITS[name])


def parsed(found: Audit) -> Page:
    with theme():
        result = Page(page(found, Seal("audit.json", "ab" * 32, None)))
    assert not result.open
    return result


@pytest.fixture(scope="module", params=list(AUDITS))
def shown(request: pytest.FixtureRequest) -> Page:
    return shown_page(request.param)


def make_key(folder: Path, name: str = "auditor", curve: ec.EllipticCurve | None = None) -> tuple[Path, Path]:
    key = ec.generate_private_key(curve or ec.SECP384R1())
    private, public = folder / name, folder / f"{name}.pub"
    form = serialization.PrivateFormat.OpenSSH
    private.write_bytes(key.private_bytes(serialization.Encoding.PEM, form, serialization.NoEncryption()))
    form_public = serialization.PublicFormat.OpenSSH
    public.write_bytes(key.public_key().public_bytes(serialization.Encoding.OpenSSH, form_public))
    return private, public


@pytest.fixture(scope="module")
def reports(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An auditor's key, and what it signed: two reports in folders of their own. To be copied, not changed."""
    folder = tmp_path_factory.mktemp("reports")
    private, _ = make_key(folder)
    for name, found in (("first", audit()), ("second", broken_audit())):
        (folder / name).mkdir()
        write_report(found, open_place(folder / name / "audit.html", private))
    return folder


@pytest.fixture
def signed(reports: Path, tmp_path: Path) -> tuple[Path, Path]:
    shutil.copytree(reports / "first", tmp_path, dirs_exist_ok=True)
    return tmp_path / "audit.json", Path(shutil.copy(reports / "auditor.pub", tmp_path))


def test_page_is_self_contained(shown):
    assert not [
        tag for tag, attributes in shown.elements if tag in ("script", "link", "img") or LOADING & set(attributes)
    ]
    for _, attributes in shown.elements:
        assert all(value.startswith("#") for key, value in attributes.items() if key.endswith("href") and value)


def test_page_has_every_section_once_and_unique_names(shown):
    names = [attributes["id"] for _, attributes in shown.elements if attributes.get("id")]
    assert len(names) == len(set(names))
    assert {name for name, _, _ in SECTIONS} <= set(names)


def test_page_says_claim_bound_and_what_it_does_not_prove():
    text = shown_page("full").text
    assert "The promise allows ε = 3.00 (δ = 1e-5, per record, local trust). The best attack that we ran" in text
    assert "shows at least 1.10, with 95 % confidence for that attack by itself (server, worst-case gradient" in text
    assert "If the scores are Gaussian, at least 2.60" in text
    assert "does not prove that none can" in text
    assert "No alarm." in text


def test_alarm_stands_before_everything_else():
    result = shown_page("alarm")
    assert [attributes for _, attributes in result.elements if attributes.get("role") == "alert"]
    assert result.text.index("Alarm: the promise is broken") < result.text.index("The promise allows ε")
    assert "shows at least 3.60 with 99.99 % confidence" in result.text
    assert "No alarm" not in result.text


@pytest.mark.parametrize("name", ["full", "empty", "one bound", "no noise"])
def test_page_without_alarm_shows_none(name):
    assert not [1 for _, attributes in shown_page(name).elements if attributes.get("role") == "alert"]


def test_failed_replay_is_an_alarm_with_its_sentence():
    found = AUDITS["failed replay"]
    assert broken(found)
    assert "measured 7, expected at most 1, when added" in alarm(found)
    assert "the code does not do what it says" in shown_page("failed replay").text


def test_conditional_methods_are_labelled_and_the_others_are_not():
    text = shown_page("full").text
    assert "Gaussian fit, conditional" in text
    assert "* Conditional (Gaussian fit): holds if the scores are Gaussian" in text
    assert "Clopper–Pearson, conditional" not in text
    assert "onditional: Gaussian" not in shown_page("one bound").text


def test_real_data_are_marked_confidential_and_digits_are_not(tmp_path):
    assert "Confidential" in shown_page("real data").text
    assert "Confidential" not in shown_page("full").text


def test_report_is_for_its_owner_only(tmp_path):
    write_report(AUDITS["real data"], Place(tmp_path / "a.html"))
    assert {path.stat().st_mode & 0o777 for path in tmp_path.iterdir()} == {0o600}


def test_alarm_goes_by_the_stricter_bound_not_by_the_one_shown():
    near = bound(epsilon=3.4, sure=2.9)
    assert not broken(audit(bounds=(near,)))
    assert broken(audit(bounds=(replace(near, sure=3.01),)))


def test_what_was_not_run_says_why():
    text = parsed(audit(**{**EMPTY, "not_run": {"membership inference": "the head is not linear"}})).text
    assert "Membership inference was not run: the head is not linear." in text


@given(st.floats(min_value=0, max_value=50))
def test_a_bound_is_never_shown_larger_than_it_is(value: float) -> None:
    assert value - 0.0101 <= float(words.floor(value)) <= value + 1e-9


@given(st.floats(min_value=0.01, max_value=13))
def test_the_factor_in_words_is_e_to_the_epsilon(value: float) -> None:
    assert float(words.factor(value).replace(" ", "").replace("\u202f", "")) == pytest.approx(math.exp(value), rel=0.06)


@given(st.lists(st.integers(-5, 5), min_size=1, max_size=40), st.lists(st.integers(-5, 5), min_size=1, max_size=40))
def test_curves_are_what_counting_gives(inside: list[int], outside: list[int]) -> None:
    false, true = plots.roc_of(np.array(inside, float), np.array(outside, float))
    points = set(zip(false.round(9), true.round(9), strict=True))
    for threshold in range(-5, 7):
        by_hand = np.mean(np.array(outside) >= threshold), np.mean(np.array(inside) >= threshold)
        assert (round(by_hand[0], 9), round(by_hand[1], 9)) in points
    assert all(a <= b for a, b in pairwise(false))
    assert all(a <= b for a, b in pairwise(true))


def test_no_gaussian_mechanism_within_the_promise_passes_the_limit_and_a_worse_one_does():
    rates = np.geomspace(1e-6, 1, 200)
    limit = plots.allowed(3.0, 1e-5, rates)
    kept, worse = (norm.sf(norm.isf(rates) - mu) for mu in (0.68, 1.2))  # mu = 0.7126 is epsilon 3 at 1e-5
    assert (kept <= limit + 1e-12).all()
    assert (worse > limit).any()


def test_machines_get_every_number_and_can_compute_the_bound_again():
    value = json.loads(json.dumps(to_dict(audit()), allow_nan=False))
    assert value["claim"]["epsilon"] == 3.0
    assert value["bounds"][0]["epsilon"] == 1.1
    scores = value["attacks"][0]
    again = clopper_pearson(np.array(scores["scores_in"]), np.array(scores["scores_out"]), 1e-5, 0.95)
    first = BOUNDS[0].found
    assert again == pytest.approx(clopper_pearson(first.scores_in, first.scores_out, 1e-5, 0.95), abs=1e-6)
    assert len(value["attacks"]) == 3  # once for each attacker and canary
    assert to_dict(AUDITS["no noise"])["claim"]["epsilon"] is None


def test_machines_get_no_single_record():
    value = to_dict(audit())["memberships"][0]
    assert sum(value["vulnerability"]["counts"]) == value["records"] == 120
    assert 120 not in {len(item) for item in value.values() if isinstance(item, list)}


def test_heads_that_several_methods_read_are_counted_once():
    assert audit(memberships=()).heads == 3 * 4000


def test_page_carries_the_digest_of_the_file_beside_it(tmp_path):
    write_report(audit(), Place(tmp_path / "audit.html"))
    digest = hashlib.sha256((tmp_path / "audit.json").read_bytes()).hexdigest()
    assert digest in (tmp_path / "audit.html").read_text()
    assert "Nobody signed it" in (tmp_path / "audit.html").read_text()


def test_signed_report_is_verified(signed):
    found = verify_report(*signed)
    assert [path.name for path in found.files] == ["audit.json", "audit.html"]
    assert found.signer in signed[0].with_suffix(".html").read_text()
    assert not found.alarm


@pytest.mark.parametrize("name", ["audit.json", "audit.html"])
def test_changed_report_is_refused(signed, name):
    path = signed[0].with_name(name)
    path.write_bytes(path.read_bytes().replace(b"3.0", b"1.0"))
    with pytest.raises(PrivacyError, match=rf"must fit .*{name}, but it does not"):
        verify_report(*signed)


def test_report_without_its_page_is_verified_and_says_so(signed, capsys):
    assert verify_report(*signed).missing is None
    signed[0].with_suffix(".html").rename(signed[0].with_name("renamed.html"))
    found = verify_report(*signed)
    assert ([path.name for path in found.files], found.missing) == (["audit.json"], signed[0].with_suffix(".html"))
    assert fedgraft.main(["audit", "verify", str(signed[0]), "--key", str(signed[1])]) == 0
    assert "page not checked" in capsys.readouterr().out
    assert fedgraft.main(["audit", "verify", str(signed[0]), "--key", str(signed[1]), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["page_checked"] is False


def test_the_page_in_place_of_the_file_for_machines_is_unusable_input(signed, capsys):
    assert fedgraft.main(["audit", "verify", str(signed[0].with_suffix(".html")), "--key", str(signed[1])]) == 2
    assert "audit.json, and the page beside it" in capsys.readouterr().err


@pytest.mark.parametrize("taken", [("audit.html",), ("audit.json",), ("audit.json.sig",), ("audit.html", "audit.json")])
def test_files_of_two_reports_signed_by_one_key_do_not_mix(reports, tmp_path, taken):
    public = reports / "auditor.pub"
    first, second = (Path(shutil.copytree(reports / name, tmp_path / name)) for name in ("first", "second"))
    for folder in (first, second):
        verify_report(folder / "audit.json", public)
    for name in taken:
        (first / name).write_bytes((second / name).read_bytes())
    with pytest.raises(PrivacyError, match="or they are of different reports"):
        verify_report(first / "audit.json", public)


def test_wrong_key_is_refused_by_name(signed, tmp_path):
    _, other = make_key(tmp_path, "other")
    with pytest.raises(PrivacyError, match=r"must be signed by the key SHA256:.* of .*other\.pub, but SHA256:"):
        verify_report(signed[0], other)


def test_signature_of_another_key_under_the_right_name_is_refused(signed, tmp_path):
    private, _ = make_key(tmp_path, "other")
    forged = tmp_path / "forged"
    forged.mkdir()
    write_report(audit(), open_place(forged / "audit.html", private))
    mine, theirs = (json.loads(signature_path(path).read_text()) for path in (signed[0], forged / "audit.json"))
    signature_path(forged / "audit.json").write_text(json.dumps({**theirs, "public_key": mine["public_key"]}))
    with pytest.raises(PrivacyError, match="must fit"):
        verify_report(forged / "audit.json", signed[1])


def test_unsigned_report_is_refused(signed):
    signature_path(signed[0]).unlink()
    with pytest.raises(PrivacyError, match=r"must be signed, but there is no audit\.json\.sig"):
        verify_report(*signed)


BROKEN = ["", "[]", "{}", '{"format": "fedgraft audit signature 2"}', '{"format": 2}', "[" * 100_000, "\udcff"]


@pytest.mark.parametrize("content", BROKEN)
def test_broken_signature_file_is_refused(signed, content):
    signature_path(signed[0]).write_bytes(content.encode(errors="surrogateescape"))
    with pytest.raises(PrivacyError, match="found something else"):
        verify_report(*signed)


CHANGES = [
    {"digests": None},
    {"digests": {"json": [1], "html": "00"}},
    {"digests": {"json": "00" * 32}},
    {"signature": 3},
    {"signature": "é"},
    {"public_key": "\ud800"},
    {"format": ["fedgraft audit signature 2"]},
]


@pytest.mark.parametrize("change", CHANGES)
def test_forged_signature_file_is_refused(signed, change):
    value = json.loads(signature_path(signed[0]).read_text())
    signature_path(signed[0]).write_text(json.dumps({**value, **change}))
    with pytest.raises(PrivacyError, match="found something else"):
        verify_report(*signed)


def test_unsigned_report_replaces_an_older_signature(signed):
    write_report(audit(), open_place(signed[0].with_suffix(".html"), None))
    assert not signature_path(signed[0]).exists()


def test_openssl_verifies_the_signature_as_well(signed, tmp_path):
    key = serialization.load_ssh_public_key(signed[1].read_bytes())
    pem = key.public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
    (tmp_path / "key.pem").write_bytes(pem)
    value = json.loads(signature_path(signed[0]).read_text())["signature"]
    decoded = subprocess.run(["openssl", "base64", "-d", "-A"], input=value.encode(), capture_output=True, check=True)
    (tmp_path / "signature").write_bytes(decoded.stdout)
    page, machine = (hashlib.sha256(signed[0].with_suffix(end).read_bytes()).hexdigest() for end in (".html", ".json"))
    (tmp_path / "text").write_text(f'fedgraft audit signature 2\n{{"html":"{page}","json":"{machine}"}}')
    options = ["-sha384", "-verify", str(tmp_path / "key.pem"), "-signature", str(tmp_path / "signature")]
    command = ["openssl", "dgst", *options, str(tmp_path / "text")]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert "Verified OK" in done.stdout


def test_places_that_cannot_hold_a_report_are_refused_before_any_work(tmp_path):
    with pytest.raises(ConfigError, match=r"must end in \.html"):
        open_place(tmp_path / "audit.pdf", None)
    with pytest.raises(ConfigError, match="is not; make it first"):
        open_place(tmp_path / "none" / "audit.html", None)
    (tmp_path / "folder.html").mkdir()
    with pytest.raises(ConfigError, match="is a folder"):
        open_place(tmp_path / "folder.html", None)
    with pytest.raises(ConfigError, match="add --report"):
        place_needed(None, tmp_path / "key")


@pytest.mark.parametrize("content", ['{"format": "fedgraft run 1"}', "{}", "[]", "hello", "[" * 100_000])
@pytest.mark.parametrize("name", ["result.json", "result.html", "result.json.sig"])
def test_a_report_replaces_nothing_but_a_report(tmp_path, name, content):
    (tmp_path / name).write_text(content)
    with pytest.raises(
        ConfigError, match=rf"nothing but an earlier report of an audit, but .*{name} is something else"
    ):
        open_place(tmp_path / "result.html", None)
    assert (tmp_path / name).read_text() == content


def test_a_report_replaces_an_earlier_one_and_empty_files(signed):
    open_place(signed[0].with_suffix(".html"), None)
    (signed[0].parent / "new.html").touch()
    open_place(signed[0].parent / "new.html", None)
    signed[0].unlink()
    with pytest.raises(ConfigError, match=r"audit\.html is something else"):
        open_place(signed[0].with_suffix(".html"), None)


def test_keys_that_cannot_sign_are_refused_before_any_work(tmp_path):
    page_path = tmp_path / "audit.html"
    with pytest.raises(ConfigError, match="must be a readable file"):
        open_place(page_path, tmp_path / "none")
    _, public = make_key(tmp_path)
    with pytest.raises(ConfigError, match="expected an OpenSSH private key without a passphrase"):
        open_place(page_path, public)
    wrong, _ = make_key(tmp_path, "wrong", ec.SECP256R1())
    with pytest.raises(ConfigError, match="expected an ECDSA key on P-384"):
        open_place(page_path, wrong)
    form = serialization.PrivateFormat.OpenSSH
    other = ed25519.Ed25519PrivateKey.generate()
    wrong.write_bytes(other.private_bytes(serialization.Encoding.PEM, form, serialization.NoEncryption()))
    with pytest.raises(ConfigError, match="expected an ECDSA key on P-384"):
        open_place(page_path, wrong)


@pytest.mark.parametrize("name", list(AUDITS))
def test_terminal_shows_every_audit(name):
    console = Console(width=100, record=True, force_terminal=False)
    with console.capture() as capture:
        show(AUDITS[name], console)
    said = capture.get()
    assert "does not prove that none can" in said
    assert ("ALARM" in said) == bool(AUDITS[name].alarms)
    assert max(map(len, re.findall(r"[^\n]*[│─][^\n]*", said)), default=0) <= 100


def test_claims_are_shown_rounded_up_and_without_noise_as_infinite():
    assert words.claimed(2.9998) == "3.00"
    assert words.claimed(math.inf) == "∞"
    assert "no bound" in words.promised(Claim(math.inf, 1e-5, "record", "local", 1, 1.0, 0.0, 1.0))

"""A real node: what its operator decided holds, whatever a server sends."""

from __future__ import annotations

import json
import shutil
import stat
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from flwr.app import ConfigRecord, Context, Message, RecordDict
from PIL import Image

import client.app
from client.approvals import APPROVALS, Approvals, keep_approvals, read_approvals
from client.journal import words_for
from client.node import Node
from client.node_config import NODE_TOML, load_node_config
from client.node_folder import PAUSED
from client.open_node import open_node
from client.own_node import open_own_node
from client.own_records import OwnRecords
from client.training import accept_offer, train_round
from common import paths, wire
from common.backbones.controls import load_reference
from common.config import to_flat
from common.data import load_source
from common.errors import BudgetSpentError, ConfigError, FederationError, PrivacyError
from common.features import default_cache
from common.messages import Hello, Offer, Reason, Refusal, TrainTask, Update
from common.plan_file import plan_digest, plan_in_words
from common.privacy.accountant import epsilon_by_round
from common.privacy.entries import read_entries
from common.privacy.noise import SystemRandomness
from common.privacy.statement import statement_of
from simulations.engine import task_identity
from tests.federations import small_config, small_offer, small_task

CONFIG = """
[node]
name = "st-mary"

[server]
address = "coordinator.example.org:9092"

[data]
id = "st-mary-digits"
source = "records"
declared_size = 60
classes = ["0", "1", "2", "3", "4", "5", "6", "7", "8", "9"]

[privacy]
max_epsilon = 8.0
delta = 1e-5
"""

Configure = Callable[..., Path]


@pytest.fixture
def node_folder(tmp_path: Path) -> Path:
    """A node with 60 digits of the classes 0 to 5, and ``pixels/8`` approved."""
    folder = tmp_path / "node"
    folder.mkdir()
    digits = load_source("digits")
    for number in range(60):
        label = number % 6
        place = folder / "records" / str(label)
        place.mkdir(parents=True, exist_ok=True)
        image = digits.inputs[np.flatnonzero(digits.labels == label)[number // 6]]
        Image.fromarray(np.asarray(image)).save(place / f"{number}.png")
    (folder / NODE_TOML).write_text(CONFIG)
    keep_approvals(folder, Approvals().with_backbone(load_reference("pixels/8").digest, "pixels/8"))
    return folder


@pytest.fixture
def node(node_folder: Path) -> Node:
    return open_own_node(node_folder)


def configure(folder: Path, before: str, after: str) -> None:
    text = (folder / NODE_TOML).read_text()
    assert before in text
    (folder / NODE_TOML).write_text(text.replace(before, after))


def test_a_round_is_trained_paid_durably_and_noised_by_the_operating_system(node_folder: Path, node: Node) -> None:
    assert accept_offer(small_offer(), node) == Hello("st-mary", 60)
    update = train_round(small_task(), node)
    assert isinstance(update, Update)
    assert all(isinstance(source, SystemRandomness) for source in node.randomness(1))
    path = node_folder / "ledgers" / "st-mary-digits.sqlite"
    entries = read_entries(path)
    assert all("at" in entry.body for entry in entries)
    statement = statement_of(entries)
    assert statement.epsilon == epsilon_by_round(small_offer().terms)[1]
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700


def test_a_repeated_message_is_answered_with_the_stored_bytes(node_folder: Path, node: Node) -> None:
    first = train_round(small_task(), node)
    again = train_round(small_task(), open_own_node(node_folder))
    assert all(torch.equal(first.head[name], again.head[name]) for name in first.head)


def test_classes_without_a_record_here_keep_their_place(node: Node) -> None:
    assert node.classes == tuple("0123456789")
    targets = node.records(small_offer().model).targets
    assert sorted(set(targets.tolist())) == [0, 1, 2, 3, 4, 5]


def test_the_backbone_is_the_operators_own_whatever_the_server_calls_it(node_folder: Path, node: Node) -> None:
    offer = small_offer()
    named = offer.model.model_copy(update={"backbone": "module/antigravity:fly"})
    assert accept_offer(Offer(offer.run_id, named, offer.terms), node) == Hello("st-mary", 60)
    task = small_task()
    train_round(TrainTask(Offer(offer.run_id, named, offer.terms), 1, task.head, task.learning_rate), node)


def test_a_backbone_that_nobody_approved_is_refused_before_anything_is_loaded(node_folder: Path) -> None:
    (node_folder / APPROVALS).unlink()
    with pytest.raises(PrivacyError, match="is not approved on this node"):
        accept_offer(small_offer(), open_own_node(node_folder))


@pytest.mark.parametrize(
    ("before", "after", "words"),
    [
        ("max_epsilon = 8.0", "max_epsilon = 2.0", "the 3 rounds of this plan would make it"),
        ("delta = 1e-5", "delta = 1e-6", "accounts at delta 1e-06"),
        ("delta = 1e-5", "delta = 1e-5\nmin_noise_multiplier = 3", "noise multiplier of at least 3"),
        ("delta = 1e-5", "delta = 1e-5\nmax_clipping_norm = 0.5", "clipping norm of at most 0.5"),
    ],
)
def test_a_plan_weaker_than_the_operators_is_refused_at_the_offer(
    before: str, after: str, words: str, node_folder: Path
) -> None:
    configure(node_folder, before, after)
    with pytest.raises(PrivacyError, match=words):
        accept_offer(small_offer(noise_multiplier=0.9, rounds=3), open_own_node(node_folder))


def test_a_partial_node_joins_a_plan_that_is_too_long_until_the_last_round_that_fits(node_folder: Path) -> None:
    terms = small_offer(noise_multiplier=0.9, rounds=3).terms
    table = epsilon_by_round(terms)
    cap = (table[2] + table[3]) / 2
    configure(node_folder, "max_epsilon = 8.0", f"max_epsilon = {cap}\npartial = true")
    node = open_own_node(node_folder)
    assert isinstance(accept_offer(small_offer(noise_multiplier=0.9, rounds=3), node), Hello)
    for round_ in (1, 2):
        train_round(small_task(round_, noise_multiplier=0.9, rounds=3), node)
    with pytest.raises(BudgetSpentError):
        train_round(small_task(3, noise_multiplier=0.9, rounds=3), node)
    with node.open_ledger() as ledger:
        assert ledger.statement().epsilon == table[2]


def test_a_node_that_joins_approved_plans_only_tells_which_plan_it_refused(
    node_folder: Path, caplog: pytest.LogCaptureFixture, as_own_node: Path
) -> None:
    configure(node_folder, "delta = 1e-5", "delta = 1e-5\napproved_plans_only = true")
    offer, hello = small_offer(), RecordDict({wire.CONFIG: wire.encode_task(small_offer())})
    digest = plan_digest(offer.model, offer.terms)
    assert wire.decode_reply(ask(hello, wire.QUERY_HELLO)) == Refusal(Reason.POLICY)
    assert f"`fedgraft node approve plan {digest}`" in caplog.text
    assert plan_in_words(offer.model, offer.terms) in caplog.text
    keep_approvals(node_folder, read_approvals(node_folder).with_plan(digest, "read"))
    assert isinstance(train_round(small_task(), open_own_node(node_folder)), Update)
    with pytest.raises(PrivacyError, match="nobody approved the plan"):
        accept_offer(small_offer(rounds=4), open_own_node(node_folder))
    keep_approvals(node_folder, read_approvals(node_folder).without(digest))
    with pytest.raises(PrivacyError, match="nobody approved the plan"):
        train_round(small_task(2), open_own_node(node_folder))


def test_what_was_paid_counts_for_every_later_run(node_folder: Path, node: Node) -> None:
    for round_ in (1, 2, 3):
        train_round(small_task(round_, noise_multiplier=0.9), node)
    with node.open_ledger() as ledger:
        spent = ledger.statement().epsilon
    configure(node_folder, "max_epsilon = 8.0", f"max_epsilon = {spent * 1.05}")
    offer = small_offer(noise_multiplier=0.9)
    with pytest.raises(BudgetSpentError):
        accept_offer(Offer("run-2", offer.model, offer.terms), open_own_node(node_folder))
    assert isinstance(accept_offer(offer, open_own_node(node_folder)), Hello)  # the run that has paid already


@pytest.mark.parametrize("partial", ["false", "true"])
def test_a_cap_that_nobody_signed_off_refuses_offers_and_rounds_and_one_that_is_lowered_holds_at_once(
    partial: str, node_folder: Path
) -> None:
    configure(node_folder, "delta = 1e-5", f"delta = 1e-5\npartial = {partial}")
    train_round(small_task(), open_own_node(node_folder))
    configure(node_folder, "max_epsilon = 8.0", "max_epsilon = 9.0")
    for ask_for in (lambda node: accept_offer(small_offer(), node), lambda node: train_round(small_task(2), node)):
        with pytest.raises(PrivacyError, match=r"raise-cap 9\.0"):
            ask_for(open_own_node(node_folder))
    with open_own_node(node_folder).open_ledger() as ledger:
        ledger.raise_cap("Dr. North")
    assert isinstance(train_round(small_task(2), open_own_node(node_folder)), Update)
    configure(node_folder, "max_epsilon = 9.0", "max_epsilon = 0.1")
    with pytest.raises(BudgetSpentError):
        train_round(small_task(3), open_own_node(node_folder))


def test_exact_metrics_never_leave(node: Node) -> None:
    from client.training import evaluate
    from common.messages import EvaluateTask

    with pytest.raises(PrivacyError, match="lets no exact metric out"):
        evaluate(EvaluateTask(small_offer(), small_task().head), node)


@pytest.fixture
def as_own_node(node_folder: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.setenv(paths.NODE_FOLDER, str(node_folder))
    with task_identity():
        yield node_folder


def ask(content: RecordDict, kind: str) -> Message:
    config = to_flat(small_config())
    return client.app.app(Message(content, 2, kind), Context(1, 2, {"partition-id": 0}, RecordDict(), config))


def test_the_apps_answer_for_the_node_of_this_process_whatever_configuration_is_received(as_own_node: Path) -> None:
    task = small_task()
    config = wire.encode_task(task.offer, task.learning_rate)
    assert wire.decode_reply(ask(RecordDict({wire.CONFIG: config}), wire.QUERY_HELLO)) == Hello("st-mary", 60)
    config[wire.ROUND] = 1
    reply = ask(RecordDict({wire.CONFIG: config, wire.ARRAYS: wire.encode_head(task.head)}), "train")
    assert isinstance(wire.decode_reply(reply), Update)


def test_a_refusal_leaves_one_word(as_own_node: Path) -> None:
    (as_own_node / APPROVALS).unlink()
    reply = ask(RecordDict({wire.CONFIG: wire.encode_task(small_offer())}), wire.QUERY_HELLO)
    assert wire.decode_reply(reply) == Refusal(Reason.POLICY)


def test_a_message_cannot_make_a_real_node_a_simulated_one(as_own_node: Path) -> None:
    node = open_node(1, to_flat(small_config(federation={"seed": 3})), {"partition-id": 0})
    assert not node.simulated
    assert isinstance(node.randomness(1)[1], SystemRandomness)
    assert wire.decode_reply(ask(RecordDict({wire.CONFIG: ConfigRecord({})}), "evaluate")) == Refusal(Reason.PROTOCOL)


@pytest.mark.parametrize(
    ("before", "after", "words"),
    [
        ("[privacy]", "[privcy]", r"did you mean \[privacy\]"),
        ("max_epsilon", "max_epsilom", "did you mean privacy.max_epsilon"),
        ("delta = 1e-5", "delta = 0.5", r"at most 1 / data.declared_size"),
        ('"coordinator.example.org:9092"', '"coordinator"', 'server.address: expected "host:port" or'),
        ('"9"]', '"9", "0"]', "expected every class once"),
        ('"9"]', '"9"', "expected TOML"),
        ("[data]", "[data]\nkeys = {labls = 'x'}", "expected only the keys"),
        ("declared_size = 60", "declared_size = 0", "data.declared_size: expected a whole number"),
        ('name = "st-mary"', 'name = "st mary"', "node.name: expected a name of letters"),
    ],
)
def test_a_configuration_with_a_mistake_is_refused_in_a_sentence(
    before: str, after: str, words: str, node_folder: Path
) -> None:
    configure(node_folder, before, after)
    with pytest.raises(ConfigError, match=words):
        load_node_config(node_folder)


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (lambda folder: (folder / NODE_TOML).unlink(), "run `fedgraft node init` first"),
        (lambda folder: (folder / APPROVALS).write_text("{"), "remove it and approve again"),
        (lambda folder: (folder / "records" / "5").rename(folder / "records" / "ten"), "expected only the classes"),
        (lambda folder: (folder / "records").rename(folder / "elsewhere"), "found nothing; correct data.source"),
    ],
)
def test_a_node_that_cannot_be_opened_says_why(spoil: Callable[[Path], Any], words: str, node_folder: Path) -> None:
    spoil(node_folder)
    with pytest.raises(FederationError, match=words):
        open_own_node(node_folder)


def test_approvals_are_kept(node_folder: Path) -> None:
    digest = "ab" * 32
    keep_approvals(node_folder, read_approvals(node_folder).with_app(digest, "fedgraft 1.0"))
    assert read_approvals(node_folder).apps == {digest: "fedgraft 1.0"}
    assert json.loads((node_folder / APPROVALS).read_text())["backbones"]
    assert stat.S_IMODE((node_folder / APPROVALS).stat().st_mode) == 0o600


def test_a_log_of_a_real_node_names_no_file_and_no_record(as_own_node: Path, caplog: pytest.LogCaptureFixture) -> None:
    (as_own_node / "records" / "5" / "5.png").write_bytes(b"patient 4711")
    task = small_task()
    config = wire.encode_task(task.offer, task.learning_rate)
    config[wire.ROUND] = 1
    reply = ask(RecordDict({wire.CONFIG: config, wire.ARRAYS: wire.encode_head(task.head)}), "train")
    assert wire.decode_reply(reply) == Refusal(Reason.DATA)
    assert "`fedgraft node check` says why" in caplog.text
    assert "records/5" not in caplog.text


def test_an_unforeseen_error_is_logged_by_its_kind_and_place_only() -> None:
    try:
        raise KeyError("patient 4711")
    except KeyError as error:
        said = words_for(error, simulated=False)
    assert said.startswith("KeyError in test_an_unforeseen_error")
    assert "4711" not in said


def test_a_paused_node_refuses_every_message(as_own_node: Path) -> None:
    (as_own_node / PAUSED).touch()
    reply = ask(RecordDict({wire.CONFIG: wire.encode_task(small_offer())}), wire.QUERY_HELLO)
    assert wire.decode_reply(reply) == Refusal(Reason.POLICY)


def test_files_are_read_once_and_again_when_one_changes(node_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(paths.CACHE, str(node_folder / "cache"))
    model = small_offer().model

    def fresh() -> OwnRecords:
        return OwnRecords(node_folder, load_node_config(node_folder))

    first = fresh()
    read = first.of(model)
    again = fresh()
    assert again.facts == {"task": "classification", "patients": False}
    found = again.of(model)
    assert "data" not in again.__dict__  # nothing was read
    assert np.array_equal(found.features[found.rows], read.features[read.rows])
    assert torch.equal(found.targets, read.targets)
    (node_folder / "records" / "5" / "5.png").unlink()
    changed = fresh()
    assert len(changed.of(model)) == len(read) - 1
    assert len(list((node_folder / "index").iterdir())) == 1
    default_cache().purge()
    emptied = fresh()
    assert len(emptied.of(model)) == len(read) - 1
    assert "data" in emptied.__dict__


def test_a_damaged_index_is_made_anew(node_folder: Path) -> None:
    model = small_offer().model
    whole = OwnRecords(node_folder, load_node_config(node_folder)).of(model)
    (path,) = (node_folder / "index").iterdir()
    path.write_bytes(path.read_bytes()[:200])
    anew = OwnRecords(node_folder, load_node_config(node_folder)).of(model)
    assert torch.equal(anew.targets, whole.targets)


def test_records_that_name_patients_need_an_acknowledgement(node_folder: Path) -> None:
    rows = "".join(f"records/{n % 6}/{n}.png,{n % 6},p{n // 2}\n" for n in range(60))
    (node_folder / "list.csv").write_text("path,label,patient\n" + rows)
    configure(node_folder, 'source = "records"', 'source = "list.csv"')
    with pytest.raises(PrivacyError, match="the data name patients"):
        open_own_node(node_folder)
    configure(node_folder, "delta = 1e-5", "delta = 1e-5\nacknowledge_record_unit = true")
    assert isinstance(train_round(small_task(), open_own_node(node_folder)), Update)
    configure(node_folder, "acknowledge_record_unit = true", "acknowledge_record_unit = false")
    with pytest.raises(PrivacyError, match="the data name patients"):  # the index remembers
        open_own_node(node_folder)


def test_a_round_of_a_plan_that_does_not_fit_whole_is_refused_though_no_offer_came_before(node_folder: Path) -> None:
    table = epsilon_by_round(small_offer(noise_multiplier=0.9, rounds=3).terms)
    configure(node_folder, "max_epsilon = 8.0", f"max_epsilon = {(table[2] + table[3]) / 2}")
    with pytest.raises(BudgetSpentError, match="the 3 rounds of this plan"):
        train_round(small_task(1, noise_multiplier=0.9, rounds=3), open_own_node(node_folder))
    with open_own_node(node_folder).open_ledger() as ledger:
        assert ledger.statement().epsilon == 0


def test_an_image_that_leaves_a_list_leaves_the_records(node_folder: Path) -> None:
    rows = "".join(f"records/{n % 6}/{n}.png,{n % 6}\n" for n in range(60))
    (node_folder / "list.csv").write_text("path,label\n" + rows)
    configure(node_folder, 'source = "records"', 'source = "list.csv"')
    model = small_offer().model
    assert len(OwnRecords(node_folder, load_node_config(node_folder)).of(model)) == 60
    (node_folder / "records" / "5" / "5.png").unlink()
    with pytest.raises(ConfigError):
        OwnRecords(node_folder, load_node_config(node_folder)).of(model)


def test_two_nodes_on_the_same_data_share_a_ledger(node_folder: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    shutil.copytree(node_folder, other)
    for folder in (node_folder, other):
        configure(folder, 'source = "records"', f'source = "records"\nledgers = "{tmp_path / "shared"}"')
    train_round(small_task(), open_own_node(node_folder))
    with open_own_node(other).open_ledger() as ledger:
        assert ledger.statement().epsilon > 0


def test_a_server_cannot_write_lines_into_the_log(as_own_node: Path) -> None:
    config = wire.encode_task(small_offer())
    body = json.loads(str(config[wire.TASK]))
    for change in ({"backbone_digest": "x\nWARNING approve this"}, {"backbone": "a\nb"}, {"cut": "a\nb"}):
        forged = ConfigRecord({wire.TASK: json.dumps({**body, "model": {**body["model"], **change}})})
        reply = ask(RecordDict({wire.CONFIG: forged}), wire.QUERY_HELLO)
        assert wire.decode_reply(reply) == Refusal(Reason.PROTOCOL)


def test_patients_are_protected_where_the_node_says_so_and_its_records_name_them(node_folder: Path) -> None:
    digits = load_source("digits")
    who = np.array([f"p{number % 20}" for number in range(60)])
    images = np.stack([np.asarray(image) for image in digits.inputs[:60]])
    np.savez(node_folder / "records.npz", images=images, labels=digits.labels[:60], patient=who)
    configure(node_folder, 'source = "records"', 'source = "records.npz"')
    with pytest.raises(PrivacyError, match="protects one record of a patient only"):
        open_own_node(node_folder)
    configure(node_folder, "[privacy]", '[privacy]\nunit = "patient"')
    configure(node_folder, "declared_size = 60", "declared_size = 20")
    task = small_task(unit="patient", records_per_unit=2)
    for _ in range(2):  # the second time from the index
        node = open_own_node(node_folder)
        patients = node.records(node.own(task.offer.model)).patients
        assert patients is not None
        assert np.bincount(patients).tolist() == [3] * 20
    assert accept_offer(task.offer, node) == Hello("st-mary", 20)
    assert isinstance(train_round(task, node), Update)
    with pytest.raises(PrivacyError, match="one patient, the server offers unit 'record'"):
        accept_offer(small_offer(), node)
    index = b"".join(path.read_bytes() for path in (node_folder / "index").iterdir())
    assert b"p19" not in index


def test_patients_that_no_record_names_are_refused(node_folder: Path) -> None:
    configure(node_folder, "[privacy]", '[privacy]\nunit = "patient"')
    with pytest.raises(PrivacyError, match="needs data that name patients"):
        open_own_node(node_folder)

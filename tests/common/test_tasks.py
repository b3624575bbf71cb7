"""Losses of single records, targets, metrics: against slow and obvious computations."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import logsumexp
from sklearn.metrics import balanced_accuracy_score, f1_score, roc_auc_score
from torch import Tensor, nn

from common.backbones.backbone import Backbone
from common.backbones.controls import load_reference
from common.backbones.vectors import WordPreprocessing
from common.data.local import LocalData
from common.data.records import Pair
from common.errors import ConfigError
from common.metrics import CUT_OFF, IGNORED, best_spans, entities
from common.targets import make_targets
from common.tasks import TASKS, multilabel_loss, span_loss, task_named, token_loss


def drawn(task: str, seed: int, count: int = 7) -> tuple[Tensor, Tensor]:
    """Logits and targets of some records."""
    rng = torch.Generator().manual_seed(seed)
    if task == "classification":
        return torch.randn(count, 4, generator=rng), torch.randint(0, 4, (count,), generator=rng)
    if task == "multilabel":
        return torch.randn(count, 3, generator=rng), torch.randint(0, 2, (count, 3), generator=rng).float()
    if task == "tokens":
        targets = torch.randint(-1, 3, (count, 6), generator=rng)
        return torch.randn(count, 6, 3, generator=rng), torch.where(targets < 0, IGNORED, targets)
    return torch.randn(count, 6, 2, generator=rng), torch.randint(0, 6, (count, 2), generator=rng).sort(dim=1).values


@settings(max_examples=40, deadline=None)
@given(task=st.sampled_from(list(TASKS)), seed=st.integers(0, 2**30), row=st.integers(0, 6))
def test_a_records_loss_does_not_depend_on_the_others(task: str, seed: int, row: int) -> None:
    logits, targets = drawn(task, seed)
    loss = TASKS[task].loss
    alone = loss(logits[row : row + 1], targets[row : row + 1])
    assert loss(logits, targets).shape == (7,)
    assert torch.allclose(loss(logits, targets)[row], alone[0])


def test_losses_equal_sums_over_what_is_to_be_predicted() -> None:
    logits, targets = drawn("multilabel", 1)
    chances = logits.sigmoid()
    by_hand = -(targets * chances.log() + (1 - targets) * (1 - chances).log()).mean(dim=1)
    assert torch.allclose(multilabel_loss(logits, targets), by_hand)
    logits, targets = drawn("tokens", 1)
    logs = logits.log_softmax(dim=2)
    for row in range(len(targets)):
        terms = [-logs[row, at, tag] for at, tag in enumerate(targets[row].tolist()) if tag != IGNORED]
        expected = torch.stack(terms).mean() if terms else torch.tensor(0.0)
        assert torch.allclose(token_loss(logits, targets)[row], expected)
    logits, targets = drawn("spans", 1)
    logs = logits.log_softmax(dim=1)
    by_hand = torch.stack([-(logs[row, a, 0] + logs[row, b, 1]) / 2 for row, (a, b) in enumerate(targets.tolist())])
    assert torch.allclose(span_loss(logits, targets), by_hand)


def test_a_record_without_a_tagged_token_has_no_loss_and_no_gradient() -> None:
    logits = torch.randn(1, 4, 3, requires_grad=True)
    loss = token_loss(logits, torch.full((1, 4), IGNORED))
    loss.sum().backward()
    assert logits.grad is not None
    assert float(loss.detach()) == 0.0
    assert not logits.grad.any()


@pytest.mark.parametrize("task", list(TASKS))
def test_scores_are_those_of_scikit_learn(task: str) -> None:
    logits, targets = drawn(task, 3, count=60)
    head = nn.Flatten(0, 0) if task != "classification" else nn.Identity()
    scores = TASKS[task].score(head, logits, targets)
    found = scores.metrics(("a", "b", "c", "d")[: logits.shape[-1]] if task != "tokens" else ("O", "B-x", "I-x"))
    assert math.isclose(scores.loss, float(TASKS[task].loss(logits, targets).double().mean()), rel_tol=1e-6)
    if task == "classification":
        predicted = logits.argmax(dim=1)
        chances = logits.double().softmax(dim=1).numpy()
        assert found["balanced_accuracy"] == pytest.approx(balanced_accuracy_score(targets, predicted))
        assert found["macro_f1"] == pytest.approx(f1_score(targets, predicted, average="macro"))
        assert found["auroc"] == pytest.approx(roc_auc_score(targets.numpy(), chances, multi_class="ovr"))
    elif task == "multilabel":
        assert scores.accuracy == pytest.approx(float(((logits > 0) == (targets > 0.5)).double().mean()))
        assert found["auroc"] == pytest.approx(roc_auc_score(targets.numpy(), logits.numpy(), average="macro"))
    elif task == "tokens":
        known = targets != IGNORED
        assert scores.accuracy == pytest.approx(float((logits.argmax(2) == targets)[known].double().mean()))
    else:
        assert scores.accuracy == found["exact_match"]


def test_ties_and_absent_classes_count_as_they_do_in_scikit_learn() -> None:
    generator = np.random.default_rng(5)
    for _ in range(40):
        count, classes = int(generator.integers(2, 60)), int(generator.integers(2, 5))
        logits = torch.from_numpy(generator.normal(size=(count, classes)).round(1))
        targets = torch.from_numpy(generator.integers(0, classes, count))
        predicted = logits.argmax(dim=1)
        options = {"average": "macro", "zero_division": 0}
        found = TASKS["classification"].metrics(logits, targets, tuple("abcde"[:classes]))
        assert found["macro_f1"] == pytest.approx(f1_score(targets, predicted, **options))
        several = torch.from_numpy(generator.integers(0, 2, (count, classes))).float()
        found = TASKS["multilabel"].metrics(logits, several, tuple("abcde"[:classes]))
        assert found["macro_f1"] == pytest.approx(f1_score(several > 0.5, logits > 0, **options))
        both = [column for column in range(classes) if several[:, column].unique().numel() == 2]
        wanted = [roc_auc_score(several[:, column], logits[:, column]) for column in both]
        assert found["auroc"] == (pytest.approx(np.mean(wanted)) if wanted else None)


@pytest.mark.parametrize("classes", [2, 3, 5])
@pytest.mark.parametrize("scale", [1.0, 100.0, 1e4])
def test_the_order_of_records_is_kept_where_probabilities_round_to_one(classes: int, scale: float) -> None:
    generator = np.random.default_rng(6)
    targets = np.arange(60) % classes
    logits = scale * (np.eye(classes)[targets] + generator.normal(size=(60, classes)))
    margins = [logits[:, k] - logsumexp(np.delete(logits, k, axis=1), axis=1) for k in range(classes)]
    wanted = np.mean([roc_auc_score(targets == k, margins[k]) for k in range(classes)])
    facts = torch.from_numpy(logits), torch.from_numpy(targets), tuple("abcde"[:classes])
    assert TASKS["classification"].metrics(*facts)["auroc"] == pytest.approx(wanted, abs=1e-12)


def test_an_infinite_logit_leaves_no_order() -> None:
    logits, targets = torch.randn(6, 3), torch.arange(6) % 3
    logits[4, 1] = torch.inf
    assert TASKS["classification"].metrics(logits, targets, tuple("abc"))["auroc"] is None


def test_metrics_of_a_class_without_records_are_left_out() -> None:
    logits, targets = torch.randn(5, 2), torch.zeros(5, dtype=torch.int64)
    assert TASKS["classification"].score(nn.Identity(), logits, targets).metrics(("a", "b"))["auroc"] is None


def test_entities_are_counted_whole() -> None:
    assert entities(["B-x", "I-x", "O", "I-y", "B-y"]) == {(0, 2, "x"), (3, 4, "y"), (4, 5, "y")}
    assert entities([]) == set()
    targets = torch.tensor([[1, 2, 0, 1, IGNORED]])  # x x O x
    logits = torch.nn.functional.one_hot(torch.tensor([[1, 0, 0, 1, 1]]), 3).float()  # the first entity is cut short
    found = TASKS["tokens"].metrics(logits, targets, ("O", "B-x", "I-x"))
    assert (found["entity_precision"], found["entity_recall"], found["entity_f1"]) == (0.5, 0.5, 0.5)


def test_an_answer_never_ends_before_it_begins() -> None:
    logits = torch.zeros(1, 5, 2)
    logits[0, 4, 0], logits[0, 1, 1] = 6.0, 5.0
    assert best_spans(logits).tolist() == [[4, 4]]
    assert TASKS["spans"].metrics(logits, torch.tensor([[3, 4]]), ("start", "end"))["token_f1"] == pytest.approx(2 / 3)


def words_at_a_time(length: int) -> Backbone:
    """A backbone that cuts texts into their words, and off after so many of them."""
    return Backbone("words", {}, WordPreprocessing(("took", "aspirin"), length), "none", "none", "none")


TAGS = ("O", "B-x", "I-x", "B-y", "I-y")


@given(st.lists(st.lists(st.integers(0, 4), min_size=1, max_size=16), min_size=1, max_size=6), st.integers(0, 2**30))
@settings(max_examples=60, deadline=None)
def test_entities_that_were_cut_off_are_true_ones(rows: list[list[int]], seed: int) -> None:
    """Eight words score as sixteen do of which the last eight are taken for no entity; training sees none of those."""
    labels = np.array([[*row, *[-1] * (16 - len(row))] for row in rows])
    inputs = tuple(("took",) * len(row) for row in rows)
    data = LocalData(inputs, labels, TAGS, modality="words", task="tokens")
    seen, whole = make_targets(data, words_at_a_time(8)), make_targets(data, words_at_a_time(16))
    logits = torch.randn(len(rows), 8, 5, generator=torch.Generator().manual_seed(seed))
    nothing = torch.tensor([1.0, 0, 0, 0, 0]).expand(len(rows), 8, 5)
    task = TASKS["tokens"]
    assert task.metrics(logits, seen, TAGS) == task.metrics(torch.cat([logits, nothing], dim=1), whole, TAGS)
    assert torch.equal(task.loss(logits, seen), task.loss(logits, whole[:, :8]))
    right, words = task.correct(logits, seen)
    assert words.tolist() == [len(row) for row in rows]
    assert right.tolist() == ((logits.argmax(dim=2) == whole[:, :8]) & (whole[:, :8] != IGNORED)).sum(dim=1).tolist()


def test_an_entity_at_the_cut_is_not_found_by_its_beginning() -> None:
    data = LocalData((("took",) * 9,), np.array([[0] * 7 + [1, 2]]), TAGS, modality="words", task="tokens")
    targets = make_targets(data, words_at_a_time(8))
    logits = torch.nn.functional.one_hot(targets[:, :8], 5).float()  # all words right that were seen
    found = TASKS["tokens"].score(nn.Identity(), logits, targets)
    assert found.accuracy == pytest.approx(8 / 9)
    assert found.metrics(TAGS) == {"entity_f1": 0.0, "entity_precision": 0.0, "entity_recall": 0.0}


@given(st.integers(0, 2**30))
@settings(max_examples=40, deadline=None)
def test_an_answer_that_was_cut_off_is_never_found(seed: int) -> None:
    context = "took " * 9 + "aspirin"
    pairs = tuple(Pair("took", text) for text in (context, context, "aspirin"))
    labels = np.array([[45, 52], [-1, -1], [0, 7]])
    data = LocalData(pairs, labels, ("start", "end"), modality="pair", task="spans")
    targets = make_targets(data, words_at_a_time(8))
    assert targets.tolist() == [[CUT_OFF, CUT_OFF], [0, 0], [1, 1]]
    logits = torch.randn(3, 8, 2, generator=torch.Generator().manual_seed(seed))
    for row in (logits[:1], torch.eye(8)[:1, :, None].expand(1, 8, 2)):  # whatever is answered; and no answer
        assert TASKS["spans"].metrics(row, targets[:1], data.classes) == {"exact_match": 0.0, "token_f1": 0.0}
        assert TASKS["spans"].score(nn.Identity(), row, targets[:1]).accuracy == 0.0
    assert torch.equal(span_loss(logits, targets), span_loss(logits, targets.clamp(min=0)))


def test_labels_become_targets_of_their_task() -> None:
    pixels = load_reference("pixels/4")
    images = np.zeros((2, 4, 4), np.uint8)
    single = LocalData(images, np.array([1, 0]), ("a", "b"))
    several = LocalData(images, np.array([[1, 1], [0, 0]]), ("a", "b"), task="multilabel")
    assert make_targets(single, pixels).tolist() == [1, 0]
    assert make_targets(several, pixels).dtype == torch.float32
    spans = LocalData((Pair("who?", "nobody"),), np.array([[0, 6]]), ("start", "end"), modality="pair", task="spans")
    with pytest.raises(ConfigError, match="a backbone for texts"):
        make_targets(spans, pixels)


def test_an_unknown_task_is_refused() -> None:
    with pytest.raises(ConfigError, match="expected a task out of"):
        task_named("guessing")

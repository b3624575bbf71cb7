"""Replay: what is shipped passes on every kind of head, and broken steps are caught on each of them."""

from __future__ import annotations

import functools
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from common.config import RunConfig
from common.data.records import TaskName
from common.heads import build_head
from common.solved_heads import SOLVED_HEADS
from simulations.audits.practice import SHIPPED, Practice, Specimen, company
from simulations.audits.probes import Noise, Sampling
from simulations.audits.replay import CHECKS, SUM_CHECKS, builtin_replay, builtin_specimen, replay
from simulations.audits.replay_finding import Case, at_most
from simulations.audits.replay_steps import replay_steps
from tests.audits.broken_steps import clip_to_twice, private_steps, scaled
from tests.audits.mutants import MUTANTS
from tests.federations import small_config
from tests.stages import features_for, perturbed, stages

CLASSES, RECORDS = 3, 4
SEQUENCE = ((6, 4), (6,))
STEPS = {"sensitivity", "noise", "empty batch", "sampling", "steps", "not finite", "what leaves"}
UPPER = [f"upper {kind} {train}" for kind in ("residual", "bert") for train in ("all", "biases", "adapters")]
HEADS = ["linear", "labels", "mlp", "tokens", "tokens mlp", "spans", "spans mlp", *SOLVED_HEADS, *UPPER]


@functools.cache
def specimen(name: str) -> Specimen:
    """A head of this kind with a few records, some of which are clipped."""
    head, task = head_of(name)
    layout = getattr(head, "layout", ((5,),))
    offer = replace(builtin_specimen().offer, model=builtin_specimen().offer.model.model_copy(update={"task": task}))
    return Specimen(name, head, offer, features_for(layout, RECORDS, 1, 2.0), targets_of(task, layout), 20)


def head_of(name: str) -> tuple[nn.Module, TaskName]:
    if name.startswith("upper"):
        _, kind, train = name.split()
        upper, layout = stages(kind)
        return perturbed(build_head("upper", layout, CLASSES, upper=upper, train=train)), "classification"
    if name in SOLVED_HEADS:
        return build_head(name, 5, CLASSES), "classification"
    kind = "mlp" if name.endswith("mlp") else "linear"
    tasks: dict[str, TaskName] = {"tokens": "tokens", "spans": "spans", "labels": "multilabel"}
    task: TaskName = tasks.get(name.split()[0], "classification")
    outputs = 2 if task == "spans" else CLASSES
    shape = SEQUENCE if task in ("tokens", "spans") else ((5,),)
    return perturbed(build_head(kind, shape, outputs, hidden=4, task=task)), task


def targets_of(task: str, layout: tuple[tuple[int, ...], ...]) -> Tensor:
    if task == "tokens":
        return torch.arange(RECORDS * layout[1][0]).reshape(RECORDS, -1) % CLASSES
    if task == "spans":
        return torch.tensor([[0, 0], [0, 0], [0, 0], [0, 1]])  # the first token is never padding
    if task == "multilabel":
        return torch.eye(CLASSES)[torch.arange(RECORDS) % CLASSES]
    return torch.arange(RECORDS) % CLASSES


def broken(name: str) -> Practice:
    return next(mutant.practice for mutant in MUTANTS if mutant.name == name)


def failed(practice: Practice, of: Specimen) -> set[str]:
    return {finding.check for finding in replay_steps(practice, of) if not finding.holds}


@pytest.mark.parametrize("name", HEADS)
def test_the_shipped_steps_pass_on_every_kind_of_head(name: str) -> None:
    findings = replay_steps(SHIPPED, specimen(name))
    assert [finding.sentence for finding in findings if not finding.holds] == []
    assert {finding.check for finding in findings} == STEPS


@pytest.mark.parametrize("name", HEADS)
def test_twice_the_norm_and_five_percent_less_noise_are_caught_on_every_kind_of_head(name: str) -> None:
    steps = private_steps(clip=clip_to_twice, release=scaled(0.95))
    assert {"sensitivity", "noise", "empty batch"} <= failed(replace(SHIPPED, update=steps), specimen(name))


def test_everything_shipped_holds_on_the_built_in_records() -> None:
    findings = builtin_replay()
    assert [finding.check for finding in findings] == [*CHECKS, *SUM_CHECKS, *SUM_CHECKS]
    assert [finding.sentence for finding in findings if not finding.holds] == []


@pytest.mark.parametrize("model", [{}, {"head": "mlp", "hidden": 4}])
def test_a_configuration_is_replayed_on_its_own_records(model: dict[str, object]) -> None:
    findings = replay(small_config(model=model), records=4)
    assert [finding.check for finding in findings] == list(CHECKS)
    assert [finding.sentence for finding in findings if not finding.holds] == []


def tagging(folder: Path) -> RunConfig:
    """Two nodes that tag words, with word vectors of four numbers."""
    words = ["fever", "cough", "aspirin", "took"]
    vectors = "\n".join(f"{word} {place} 1 -1 0.5" for place, word in enumerate(words))
    (folder / "tiny.txt").write_text(vectors + "\n")
    lines = ['{"tokens": ["took", "aspirin"], "tags": ["O", "B-Drug"]}', '{"tokens": ["fever"], "tags": ["O"]}'] * 20
    (folder / "words.jsonl").write_text("\n".join(lines) + "\n")
    return small_config(
        federation={"nodes": 2},
        data={"source": str(folder / "words.jsonl")},
        model={"backbone": f"vectors/{folder / 'tiny.txt'}:8"},
    )


def test_a_configuration_of_tagged_words_is_replayed(tmp_path: Path) -> None:
    assert [finding.sentence for finding in replay(tagging(tmp_path), records=4) if not finding.holds] == []


@pytest.mark.slow
def test_a_configuration_with_upper_stages_is_replayed() -> None:
    model = {"backbone": "torchvision/resnet18:32", "weights": "random-0", "cut": "layer3", "head": "upper"}
    findings = replay(small_config(model={**model, "train": "biases"}), records=2)
    assert [finding.sentence for finding in findings if not finding.holds] == []


def test_a_broken_practice_is_found_on_a_configuration_too() -> None:
    findings = replay(small_config(), broken("features centred on the node's records"), records=4)
    assert [finding.check for finding in findings if not finding.holds] == ["company"]


def test_a_failed_check_says_what_was_expected_what_came_and_what_to_do() -> None:
    practice = broken("clipped to twice the norm that is noised")
    finding = next(finding for finding in replay_steps(practice, specimen("linear")) if not finding.holds)
    assert finding.margin == pytest.approx(2.0, rel=1e-4)
    for words in ("at most the clipping norm", "measured 2", "expected at most 1", "release nothing"):
        assert words in finding.sentence


def test_a_figure_that_is_no_number_passes_no_bound() -> None:
    assert not at_most(
        "check", "subject", "promise", 1.0, [Case(0.5, 0.0, "fine"), Case(float("nan"), 0.0, "odd")]
    ).holds


def test_a_record_more_leaves_the_flags_of_the_others_alone() -> None:
    whole = company(specimen("linear"))
    more = whole.joined_by(whole.features[0], whole.targets[0])
    less = whole.take(np.arange(len(whole.numbers)) != 1)
    drawn = {
        name: Sampling(place.numbers).bernoulli(len(place.numbers), 0.5)
        for name, place in {"whole": whole, "more": more, "less": less}.items()
    }
    assert drawn["more"][:-1].tolist() == drawn["whole"].tolist()
    assert drawn["less"].tolist() == np.delete(drawn["whole"], 1).tolist()


def test_probes_are_random_enough_to_tell_draws_apart() -> None:
    sampling, noise = Sampling(np.arange(20)), Noise()
    assert sampling.bernoulli(20, 0.5).tolist() != sampling.bernoulli(20, 0.5).tolist()
    assert noise.normal((5,)).tolist() != noise.normal((5,)).tolist()
    assert Sampling(np.arange(20), "everyone").bernoulli(20, 0.01).all()
    assert not Sampling(np.arange(20), "nobody").bernoulli(20, 1.0).any()

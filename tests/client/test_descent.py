"""Steps down the gradient: taken together as by themselves, from a start that stays, to finite values."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from client.descent import LARGEST, Step, descend
from common.lockstep import SMALL
from common.messages import TrainTask
from tests.federations import small_task

Head = dict[str, Tensor]


def drawn(seed: int, dtype: torch.dtype, width: int = 64) -> Head:
    generator = torch.Generator().manual_seed(seed)
    return {
        "weight": torch.randn(10, width, generator=generator, dtype=dtype),
        "bias": torch.randn(10, generator=generator, dtype=dtype),
    }


def step(seed: int, task: TrainTask, width: int = 64) -> Step:
    return Step(drawn(seed, torch.float32, width), drawn(seed + 100, torch.float64, width), task)


def task_of(rate: float = 0.5, mu: float = 0.0, width: int = 64) -> TrainTask:
    head = drawn(7, torch.float32, width)
    return replace(small_task(), head=head, learning_rate=rate, proximal_mu=mu)


def same(one: Head, other: Head) -> bool:
    return list(one) == list(other) and all(torch.equal(one[name], other[name]) for name in one)


def test_a_step_goes_down_the_gradient_and_towards_the_head_that_was_sent() -> None:
    asked = step(1, task_of(rate=0.25, mu=0.5))
    (reached,) = descend([asked])
    for name, start in asked.start.items():
        pull = 0.5 * (reached[name].double() - asked.task.head[name])
        expected = start.double() - 0.25 * (asked.gradient[name] + pull)
        assert reached[name].dtype == torch.float32
        torch.testing.assert_close(reached[name], expected.float(), rtol=0, atol=1e-6)


@given(st.floats(1e-3, 1e3), st.floats(0, 1e300))
def test_no_pull_leads_beyond_the_head_that_was_sent(rate: float, mu: float) -> None:
    task = task_of(rate, mu)
    still = {name: torch.zeros_like(value) for name, value in drawn(1, torch.float64).items()}
    (reached,) = descend([Step(drawn(1, torch.float32), still, task)])
    for name, start in drawn(1, torch.float32).items():
        sent = task.head[name]
        assert ((torch.minimum(start, sent) <= reached[name]) & (reached[name] <= torch.maximum(start, sent))).all()


@pytest.mark.parametrize("mu", [0.0, 0.3, 1e6])
@pytest.mark.parametrize("rates", [(0.5, 0.5, 0.5), (0.5, 0.1, 0.5)])
@pytest.mark.parametrize("widths", [(64, 64, 64), (64, 5, 64), (SMALL // 10,) * 3])
def test_steps_of_many_nodes_lead_where_each_leads_by_itself(
    mu: float, rates: tuple[float, ...], widths: tuple[int, ...]
) -> None:
    steps = [step(node, task_of(rates[node], mu, widths[node]), widths[node]) for node in range(3)]
    before = [{name: value.clone() for name, value in each.start.items()} for each in steps]
    together = descend(steps)
    assert all(same(found, descend([each])[0]) for found, each in zip(together, steps, strict=True))
    assert all(same(dict(each.start), kept) for each, kept in zip(steps, before, strict=True))


def test_steps_of_many_nodes_may_start_from_the_very_same_head() -> None:
    start, task = drawn(1, torch.float32), task_of()
    steps = [Step(start, drawn(node, torch.float64), task) for node in range(3)]
    together = descend(steps)
    assert all(same(found, descend([each])[0]) for found, each in zip(together, steps, strict=True))
    together[0]["weight"].zero_()
    assert same(together[1], descend([steps[1]])[0])
    assert same(start, drawn(1, torch.float32))


@pytest.mark.parametrize("nodes", [1, 2])
def test_what_would_not_be_finite_is_bounded(nodes: int) -> None:
    wild = {name: torch.full_like(value, 1e300) for name, value in drawn(1, torch.float64).items()}
    wild["bias"][:3] = torch.tensor([float("nan"), float("inf"), -float("inf")])
    for reached in descend([Step(drawn(1, torch.float32), wild, task_of()) for _ in range(nodes)]):
        assert (reached["weight"] == -LARGEST).all()
        assert reached["bias"][:3].tolist() == [0.0, -LARGEST, LARGEST]

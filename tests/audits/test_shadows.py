"""Heads trained at once are the heads that nodes train one by one; without privacy, those of the plain federation."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from scipy.stats import binom, chi2
from torch import Tensor, nn

from client.mechanism import clipped_sum, noisy_gradient
from common.config import RunConfig
from common.data.federation import source_targets
from common.errors import ConfigError
from common.privacy.noise import SeededRandomness
from common.privacy.plan import PrivacyPlan, PrivacyTerms
from common.tasks import classification_loss
from server.checkpoints import RunStore
from server.run_folder import run_identity
from simulations.audits.recipes import open_recipe, places_of, private_recipe
from simulations.audits.shadows import Place, Recipe, train_heads
from simulations.engine import run_in_process
from simulations.preflight import check
from simulations.without_privacy import train_without_privacy
from tests.federations import small_config

WIDTH, CLASSES, RECORDS, HEADS = 24, 4, 30, 5
FALSE_ALARM = 1e-6  # of each statistical test


def terms(rate: float = 0.6, rounds: int = 6, steps: int = 1) -> PrivacyTerms:
    return PrivacyTerms("record", "local", rate, rounds, steps, 0.8, 1.3, 1e-5)


def records(seed: int = 0, count: int = RECORDS) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    features = torch.randn(count, WIDTH, generator=generator)
    return features, torch.randint(0, CLASSES, (count,), generator=generator)


def halves(heads: int = HEADS, count: int = RECORDS) -> Tensor:
    return torch.rand(heads, count, generator=torch.Generator().manual_seed(9)) < 0.5


def flat(head: nn.Linear) -> Tensor:
    return torch.cat([head.weight, head.bias[:, None]], dim=1).detach()


class AsNodes:
    """The draws that nodes would make, one randomness for sampling and one for noise to each head."""

    def __init__(self, included: Tensor, names: list[str]) -> None:
        self.included = included
        self.pairs = [randomness(name) for name in names]

    def flags(self, heads: int, records: int, rate: float) -> Tensor:
        found = torch.zeros(heads, records, dtype=torch.bool)
        for head, (sampling, _) in enumerate(self.pairs):
            own = self.included[head]
            found[head, own] = torch.from_numpy(sampling.bernoulli(int(own.sum()), rate))
        return found

    def normals(self, shape: torch.Size) -> Tensor:
        classes, width = shape[1], shape[2] - 1
        drawn = [torch.from_numpy(noise.normal((classes * (width + 1),))) for _, noise in self.pairs]
        return torch.stack(
            [torch.cat([row[classes:].view(classes, width), row[:classes, None]], dim=1) for row in drawn]
        )


def randomness(name: str) -> tuple[SeededRandomness, SeededRandomness]:
    return SeededRandomness(1, name, 1, "sampling"), SeededRandomness(1, name, 1, "noise")


def by_one_node(features: Tensor, targets: Tensor, plan: PrivacyPlan, rate: float, name: str) -> Tensor:
    """A head as a node trains it: float32 parameters, one mechanism call a step."""
    head = nn.Linear(WIDTH, CLASSES)
    sampling, noise = randomness(name)
    with torch.no_grad():
        head.weight.zero_()
        head.bias.zero_()
        for _ in range(plan.terms.steps):
            flags = torch.from_numpy(sampling.bernoulli(len(features), plan.terms.sampling_rate))
            clipped = clipped_sum(head, classification_loss, features[flags], targets[flags], plan.terms.clipping_norm)
            for key, value in noisy_gradient(clipped, plan, noise).items():
                head.get_parameter(key).sub_(rate * value)
    return flat(head)


@pytest.mark.parametrize("rate", [1.0, 0.4])
def test_a_batched_head_is_the_one_that_a_node_trains(rate):
    features, targets = records()
    included, plan = halves(), terms(rate).for_node(12)
    recipe = Recipe(CLASSES, 0.7, plan.terms, plan.expected_batch)
    names = [f"node-{head}" for head in range(HEADS)]
    found = train_heads(
        features, targets, included, recipe, seed=0, dtype=torch.float64, draws=lambda _: AsNodes(included, names)
    )
    for head in range(HEADS):
        own = included[head]
        expected = by_one_node(features[own], targets[own], plan, 0.7, names[head])
        assert float((found[head] - expected).abs().max()) < 1e-6


def test_in_float32_it_differs_by_rounding_only():
    features, targets = records()
    included, plan = halves(), terms().for_node(12)
    recipe = Recipe(CLASSES, 0.7, plan.terms, plan.expected_batch)
    names = [f"node-{head}" for head in range(HEADS)]

    def train(dtype: torch.dtype) -> Tensor:
        def draws(_: int) -> AsNodes:
            return AsNodes(included, names)

        return train_heads(features, targets, included, recipe, seed=0, dtype=dtype, draws=draws)

    assert float((train(torch.float32) - train(torch.float64)).abs().max()) < 1e-5


class Queue:
    """Draws that were made before, for one head."""

    def __init__(self) -> None:
        self.sampled: list[Tensor] = []
        self.drawn: list[Tensor] = []

    def flags(self, heads: int, records: int, rate: float) -> Tensor:
        return self.sampled.pop(0)[None]

    def normals(self, shape: torch.Size) -> Tensor:
        classes, width = shape[1], shape[2] - 1
        row = self.drawn.pop(0)
        return torch.cat([row[classes:].view(classes, width), row[:classes, None]], dim=1)[None]


def of_federation(config: RunConfig, sizes: dict[str, int], rate: float, parameters: int) -> Queue:
    """What the nodes of a seeded run draw; their noises in one where they average after every step."""
    queue, together = Queue(), config.training.local_steps == 1
    share = torch.ones(len(sizes), dtype=torch.float64) / np.sqrt(len(sizes))  # weight / divisor is the same for all
    for round_ in range(1, config.federation.rounds + 1):
        flags, normals = [], []
        for name, size in sizes.items():
            sampling, noise = (SeededRandomness(7, name, round_, purpose) for purpose in ("sampling", "noise"))
            for _ in range(config.training.local_steps):
                flags.append(torch.from_numpy(sampling.bernoulli(size, rate)))
                normals.append(torch.from_numpy(noise.normal((parameters,))))
        queue.sampled += [torch.cat(flags)] if together else flags
        queue.drawn += [share @ torch.stack(normals)] if together else normals
    return queue


@pytest.mark.parametrize("steps", [1, 2])
def test_a_batched_head_is_the_global_head_of_a_federation(tmp_path, steps):
    """The real apps, their checkpoint after three rounds, and every node's own draws."""
    config = small_config(training={"local_steps": steps})
    run_in_process(config, tmp_path, range(4))
    checkpoint = RunStore(tmp_path, run_identity(tmp_path)).latest()
    assert checkpoint is not None
    ready = check(config)
    offer, shares = ready.proposal.plan.offer, ready.federation.shares
    sizes = {name: len(own) for name, own in shares.items()}
    recipe = private_recipe(offer.terms, 10, 64, list(sizes.values()))
    targets = source_targets(ready.federation, offer.model.backbone)
    queue = of_federation(config, sizes, offer.terms.sampling_rate, 650)
    found = train_heads(
        torch.from_numpy(np.array(ready.features)),
        targets,
        torch.ones(1, len(targets), dtype=torch.bool),
        recipe,
        seed=0,
        places=places_of([torch.from_numpy(own) for own in shares.values()], offer.terms, list(sizes.values())),
        dtype=torch.float64,
        draws=lambda _: queue,
    )[0]
    expected = torch.cat([checkpoint.head["weight"], checkpoint.head["bias"][:, None]], dim=1)
    assert float(expected.abs().max()) > 0.01
    assert float((found - expected).abs().max()) < 1e-6


@pytest.mark.parametrize("change", [{"clipping_norm": 0.81}, {"noise_multiplier": 1.31}])
def test_a_mechanism_one_percent_off_is_seen(change):
    features, targets = records()
    included, plan = halves(), terms().for_node(12)
    recipe = Recipe(CLASSES, 0.7, dataclasses.replace(plan.terms, **change), plan.expected_batch)
    found = train_heads(
        features,
        targets,
        included,
        recipe,
        seed=0,
        dtype=torch.float64,
        draws=lambda _: AsNodes(included, ["node-0"] * HEADS),
    )
    expected = by_one_node(features[included[0]], targets[included[0]], plan, 0.7, "node-0")
    assert float((found[0] - expected).abs().max()) > 1e-4


@pytest.mark.parametrize("steps", [1, 3])
def test_a_federation_averages_what_its_nodes_train(steps):
    """Without noise to speak of and with every record in each step, against three nodes trained by hand."""
    features, targets = records()
    agreed = dataclasses.replace(terms(1.0, 4, steps), noise_multiplier=0.01, clipping_norm=1e-4)
    sizes, weights = (6, 10, 14), (0.2, 0.3, 0.5)
    rows = torch.split(torch.randperm(RECORDS, generator=torch.Generator().manual_seed(2)), list(sizes))
    places = [Place(own, float(len(own)), 3 * weight) for own, weight in zip(rows, weights, strict=True)]
    everything = torch.ones(1, RECORDS, dtype=torch.bool)
    rate = 1e3
    found = train_heads(
        features, targets, everything, Recipe(CLASSES, rate, agreed, 1.0), seed=0, places=places, dtype=torch.float64
    )
    head = nn.Linear(WIDTH, CLASSES).double()
    start = torch.zeros(CLASSES, WIDTH + 1, dtype=torch.float64)
    for _ in range(agreed.rounds):
        parts = []
        for own in rows:
            local = start.clone()
            for _ in range(steps):
                with torch.no_grad():
                    head.weight.copy_(local[:, :-1])
                    head.bias.copy_(local[:, -1])
                total = clipped_sum(head, classification_loss, features[own], targets[own], agreed.clipping_norm)
                local -= rate * torch.cat([total.values["weight"], total.values["bias"][:, None]], dim=1) / len(own)
            parts.append(local)
        start = sum((w * part for w, part in zip(weights, parts, strict=True)), torch.zeros_like(start))
    noise = (
        rate * 1e-6 * np.sqrt(agreed.steps) * np.sqrt(sum((w / n) ** 2 for w, n in zip(weights, sizes, strict=True)))
    )
    assert float((found[0] - start).abs().max()) < 20 * noise
    assert float(start.abs().max()) > 100 * noise


@pytest.mark.parametrize("steps", [1, 3])
def test_the_noise_of_a_federation_has_the_variance_of_its_parts(steps):
    agreed = terms(1.0, 4, steps)
    features, targets = torch.zeros(6, WIDTH), torch.arange(6) % CLASSES
    places = [Place(torch.arange(2), 2.0, 1.0), Place(torch.arange(2, 6), 5.0, 3.0)]
    nobody = torch.zeros(400, 6, dtype=torch.bool)
    recipe = Recipe(CLASSES, 0.5, agreed, 1.0)
    heads = train_heads(features, targets, nobody, recipe, seed=4, places=places)
    spread = 0.5 * 0.8 * 1.3 * np.sqrt(agreed.steps * ((0.25 / 2) ** 2 + (0.75 / 5) ** 2))
    assert has_std(heads, spread)
    assert not has_std(heads, spread * 1.05)


def has_std(values: Tensor, std: float) -> bool:
    """One 5 % off passes with probability below 1e-9 at 40,000 values."""
    low, high = chi2.ppf([FALSE_ALARM / 2, 1 - FALSE_ALARM / 2], df=values.numel())
    return bool(low <= float((values.double() / std).square().sum()) <= high)


def test_each_head_samples_its_own_records_at_the_rate_of_the_terms():
    """Features of one, a single step, hardly any noise: the sum counts the records that were sampled."""
    agreed = dataclasses.replace(terms(0.3, 1), noise_multiplier=0.01)
    count, heads = 50, 400
    features, targets = torch.zeros(count, WIDTH), torch.zeros(count, dtype=torch.int64)
    included = torch.zeros(heads, count, dtype=torch.bool)
    included[:, :20] = True
    found = train_heads(features, targets, included, Recipe(CLASSES, 1.0, agreed, 1.0), seed=3)
    slope = min(1 - 1 / CLASSES, 0.8 * (1 - 1 / CLASSES) / np.hypot(1 - 1 / CLASSES, np.sqrt(3) / CLASSES))
    sampled = int((found[:, 0, -1] / slope).round().sum())
    low, high = binom.ppf([FALSE_ALARM / 2, 1 - FALSE_ALARM / 2], heads * 20, 0.3)
    assert low <= sampled <= high
    assert not low <= binom.mean(heads * 20, 0.35) <= high


def test_without_terms_it_is_plain_gradient_descent_on_each_nodes_mean_loss():
    features, targets = records()
    included = halves()
    places = [Place(torch.arange(10), 1.0, 1.0), Place(torch.arange(10, RECORDS), 1.0, 2.0)]
    for steps in (1, 2):
        recipe = Recipe(CLASSES, 0.4, None, 1.0, rounds=3, steps_per_round=steps)
        found = train_heads(features, targets, included, recipe, seed=0, places=places, dtype=torch.float64)
        for head in range(HEADS):
            expected = plain(features, targets, [place.rows[included[head][place.rows]] for place in places], recipe)
            assert torch.allclose(found[head], expected, atol=1e-10)


@pytest.mark.parametrize("steps", [1, 2])
def test_without_terms_a_head_is_the_one_of_the_world_without_privacy(steps):
    """The learning rate that it chooses among seven included."""
    ready = check(small_config(training={"local_steps": steps}))
    shares = ready.federation.shares
    features = torch.from_numpy(np.array(ready.features))
    targets = source_targets(ready.federation, ready.proposal.plan.offer.model.backbone)
    order = torch.from_numpy(np.concatenate(list(shares.values())))
    sizes = [len(own) for own in shares.values()]
    places = places_of(list(torch.split(torch.arange(len(order)), sizes)), None, sizes)
    own, labels = features[order], targets[order]
    recipe = open_recipe(own, labels, 10, 3, places=places, steps_per_round=steps)
    found = train_heads(own, labels, torch.ones(1, len(order), dtype=torch.bool), recipe, seed=0, places=places)[0]
    expected = train_without_privacy(ready)
    assert torch.allclose(found[:, :-1], expected["weight"], atol=1e-4)
    assert torch.allclose(found[:, -1], expected["bias"], atol=1e-4)


def plain(features: Tensor, targets: Tensor, rows: list[Tensor], recipe: Recipe) -> Tensor:
    """FedAvg with autograd, weights 1 : 2."""
    head = nn.Linear(WIDTH, CLASSES).double()
    start = torch.zeros(CLASSES, WIDTH + 1, dtype=torch.float64)
    rounds, steps = recipe.schedule
    for _ in range(rounds):
        parts = []
        for own in rows:
            with torch.no_grad():
                head.weight.copy_(start[:, :-1])
                head.bias.copy_(start[:, -1])
            for _ in range(steps):
                loss = classification_loss(head(features[own].double()), targets[own]).mean()
                for value, slope in zip(
                    head.parameters(), torch.autograd.grad(loss, list(head.parameters())), strict=True
                ):
                    value.data -= recipe.learning_rate * slope
            parts.append(flat(head))
        start = (parts[0] + 2 * parts[1]) / 3
    return start


def test_every_round_can_be_kept_and_reduced():
    features, targets = records()
    recipe = Recipe(CLASSES, 0.7, terms(rounds=6), 12.0)
    path = train_heads(features, targets, halves(), recipe, seed=2, keep="every-step")
    assert path.shape == (HEADS, 6, CLASSES, WIDTH + 1)
    assert torch.equal(path[:, -1], train_heads(features, targets, halves(), recipe, seed=2))
    last = train_heads(features, targets, halves(), recipe, seed=2, reduce=lambda heads: heads.sum(dim=(1, 2)))
    assert torch.allclose(last, path[:, -1].sum(dim=(1, 2)))


def test_the_seed_decides_and_chunks_have_noise_of_their_own():
    features, targets = records()
    included = halves(12_000)
    recipe = Recipe(CLASSES, 0.7, terms(1.0, 1), 12.0)
    seen: list[tuple[int, int]] = []

    def train(seed: int) -> Tensor:
        return train_heads(features, targets, included, recipe, seed=seed, progress=lambda *at: seen.append(at))

    heads = train(0)
    assert len(seen) > 1
    assert seen[-1] == (12_000, 12_000)
    assert torch.equal(heads, train(0))
    assert not torch.equal(heads, train(1))
    assert len(torch.unique(heads[:, 0, 0])) > 11_980


@pytest.mark.parametrize(
    ("included", "targets", "what"),
    [
        (torch.ones(2, 3, dtype=torch.bool), torch.zeros(4, dtype=torch.int64), "one row a record"),
        (torch.ones(0, 4, dtype=torch.bool), torch.zeros(4, dtype=torch.int64), "at least one head"),
        (torch.ones(2, 4, dtype=torch.bool), torch.full((4,), CLASSES), "targets from 0 to 3"),
    ],
)
def test_what_does_not_fit_is_refused(included, targets, what):
    with pytest.raises(ConfigError, match=what):
        train_heads(torch.zeros(4, WIDTH), targets, included, Recipe(CLASSES, 1.0, terms(), 1.0), seed=0)


def test_recipes_and_places_that_train_nothing_are_refused():
    features, targets = records()
    with pytest.raises(ConfigError, match="at least one round"):
        Recipe(CLASSES, 1.0, None, 1.0)
    with pytest.raises(ConfigError, match="positive learning rate"):
        Recipe(CLASSES, 0.0, terms(), 1.0)
    twice = [Place(torch.arange(5), 1.0, 1.0), Place(torch.arange(4, 9), 1.0, 1.0)]
    with pytest.raises(ConfigError, match="at one place"):
        train_heads(features, targets, halves(), Recipe(CLASSES, 1.0, terms(), 1.0), seed=0, places=twice)
    features[0, 0] = float("inf")
    with pytest.raises(ConfigError, match="finite features"):
        train_heads(features, targets, halves(), Recipe(CLASSES, 1.0, terms(), 1.0), seed=0)

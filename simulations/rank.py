"""Which backbone, and which cut of it, suits a federation's data: scores before any training."""

from __future__ import annotations

import math
import uuid
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

import client.app
from client.node import Node
from client.open_node import open_node
from client.simulated_node import simulated_in_process
from common.config import RunConfig, to_flat
from common.config_schema import ModelConfig
from common.data.federation import Federation, assemble
from common.data.local import LocalData
from common.errors import ConfigError, PrivacyError
from common.features import cached_backbone, default_cache
from common.messages import ModelSpec, Offer
from common.model import layout_at, suited
from common.noised_moments import MOST_WIDTH, SENSITIVITY, Sketch, StatisticsTask, noised_error, noised_score
from common.privacy.accountant import epsilon_by_round, noise_multiplier_for
from common.privacy.plan import PrivacyTerms
from common.scored_rows import rows_of
from common.scored_targets import scored_targets
from common.targets import make_targets
from common.token_heads import TOKEN_TASKS, is_sequence
from common.transferability import score_records
from server.coordinator import check_unit, model_spec
from server.link import Link, unanswered
from simulations.baselines import changed
from simulations.engine import RUN_ID, InProcessGrid, task_identity

LINEAR = {"head": "linear", **{key: ModelConfig.model_fields[key].default for key in ("train", "hidden")}}

Cuts = Literal["all", "last"]
Progress = Callable[[str, int, int], None]


@dataclass(frozen=True)
class Candidate:
    """A backbone and a cut of it; None is the cut that ``cuts`` says."""

    backbone: str
    cut: str | None = None


@dataclass(frozen=True)
class Ranked:
    """A candidate with its scores; higher is better.

    Attributes:
        backbone: reference.
        cut: last frozen stage.
        features: values of a record that pass the cut.
        score: exact, log evidence a record (LogME); see ``common.transferability``.
        private_score: from noised statistics, see ``common.noised_moments.noised_score``; None where not asked for.
        private_error: how far the noise moves it (one standard deviation).
    """

    backbone: str
    cut: str
    features: int
    score: float
    private_score: float | None = None
    private_error: float | None = None


@dataclass(frozen=True)
class Spending:
    """What the private scores cost each node.

    Attributes:
        epsilon: of this ranking alone.
        epsilon_in_ledger: the most that any node's ledger now says, everything charged to it before included.
        accountant: of that ledger: PLD for one plan, RDP for several.
        delta: of both.
        unit: of privacy.
        noise_multiplier: of each release.
        nodes: how many there are.
        epsilon_is_guarantee: False where the run is seeded.
    """

    epsilon: float
    epsilon_in_ledger: float
    accountant: str
    delta: float
    unit: str
    noise_multiplier: float
    nodes: int
    epsilon_is_guarantee: bool


@dataclass(frozen=True)
class Ranking:
    """All candidates, best first: by the private score where there is one.

    Attributes:
        ranked: the candidates.
        records: training records that the exact score looked at.
        training_records: of the whole federation.
        spending: None without private scores.
    """

    ranked: tuple[Ranked, ...]
    records: int
    training_records: int
    spending: Spending | None

    def to_dict(self) -> dict[str, Any]:
        """Plain values."""
        return asdict(self)


def parse_candidate(text: str) -> Candidate:
    """Read ``REFERENCE`` or ``REFERENCE#CUT``.

    >>> parse_candidate("embedded/glyph#stage3")
    Candidate(backbone='embedded/glyph', cut='stage3')

    Raises:
        ConfigError: one of the two is empty.
    """
    reference, mark, cut = text.rpartition("#")
    if not mark:
        reference, cut = text, ""
    if not reference.strip() or (mark and not cut.strip()):
        raise ConfigError(f"--candidate must be REFERENCE or REFERENCE#CUT, got {text!r}; name a backbone and its cut")
    return Candidate(reference.strip(), cut.strip() or None)


def rank(
    config: RunConfig,
    candidates: Sequence[Candidate],
    cuts: Cuts,
    records: int,
    progress: Progress,
    private: tuple[float, Path] | None = None,
) -> Ranking:
    """Score every candidate on the federation's training records, and order them.

    Args:
        config: of the run that is planned; its data, federation and privacy sections are used.
        candidates: at least one.
        cuts: of candidates that name none: every stage, or the last one.
        records: most training records that the exact score looks at, drawn by the seed.
        progress: called with (candidate, records done, records to do) while features are computed.
        private: epsilon of the private scores, which look at every training record, and the folder with the nodes'
            ledgers; None for exact scores only.

    Raises:
        ConfigError: data or a candidate are not usable.
        PrivacyError: the private scores cannot be promised, or a node's budget does not suffice for them.
    """
    federation = assemble(config)
    models = _models(config, federation.data, candidates, cuts)
    terms = None if private is None else _terms(config, federation, private[0], len(models))
    rows = np.sort(np.concatenate(list(federation.shares.values())))
    chosen = draw(rows, records, config.federation.seed or 0)
    sample = federation.data.take(chosen)
    privately, spending = None, None
    if private is not None and terms is not None:  # first: the features of all records then lie in one piece
        privately, spending = _private(config, federation, models, terms, private[1], progress)
    scored = [_exact(model, sample, progress) for model in models]
    if privately is not None:
        scored = [
            replace(one, private_score=score, private_error=error)
            for one, (score, error) in zip(scored, privately, strict=True)
        ]
    best = sorted(scored, key=lambda one: one.score if one.private_score is None else one.private_score, reverse=True)
    return Ranking(tuple(best), len(chosen), len(rows), spending)


def _models(config: RunConfig, data: LocalData, candidates: Sequence[Candidate], cuts: Cuts) -> list[ModelSpec]:
    """Every candidate with its cuts as a model with a linear head, each once."""
    models = []
    for candidate in candidates:
        reference = suited(candidate.backbone, data)
        for cut in _cuts(reference, candidate.cut, cuts, data.task):
            model = {"backbone": reference, "weights": None, "cut": cut, **LINEAR}
            models.append(model_spec(changed(config, model=model), data))
    return list(dict.fromkeys(models))


def _cuts(reference: str, cut: str | None, cuts: Cuts, task: str) -> list[str | None]:
    if cut is not None or cuts == "last":
        return [cut]
    stages = list(cached_backbone(reference).stages)
    fitting = [name for name in stages if task not in TOKEN_TASKS or is_sequence(layout_at(reference, name))]
    return [*fitting] or [None]  # None: choose_cut says why none fits


def draw(rows: NDArray[np.int64], most: int, seed: int) -> NDArray[np.int64]:
    """At most so many of the rows, drawn by the seed, in order."""
    if len(rows) <= most:
        return rows
    return np.sort(np.random.default_rng([seed, most]).permutation(rows)[:most])


def _exact(model: ModelSpec, sample: LocalData, progress: Progress) -> Ranked:
    backbone = cached_backbone(model.backbone)
    name = f"{model.backbone}#{model.cut}"
    features = default_cache().features(
        backbone, model.cut, sample, lambda done, total: progress(name, done, total), model.precision
    )
    shapes = layout_at(model.backbone, model.cut)
    rows = rows_of(features, make_targets(sample, backbone), model.task, shapes, len(model.classes))
    targets = rows.targets[:, : scored_targets(model.task, len(model.classes))]
    try:
        score = score_records(rows.features, targets, rows.weights)
    except ConfigError as error:
        raise ConfigError(f"{name} cannot be scored: {error}") from error
    return Ranked(model.backbone, model.cut, features.shape[1], score)


def _terms(config: RunConfig, federation: Federation, epsilon: float, candidates: int) -> PrivacyTerms:
    """One noised release of each candidate from all records, all of them within epsilon."""
    check_unit(config, federation)
    privacy = config.privacy
    if privacy.unit != "record":
        raise PrivacyError(
            f"private ranking clips record by record, and would not protect one {privacy.unit}; rank with "
            '--set privacy.unit="record" on data that may be released so, or on other data'
        )
    if privacy.trust != "local":
        raise PrivacyError(
            f"private ranking adds all noise at each node, privacy.trust is {privacy.trust!r}; rank with --set "
            'privacy.trust="local"'
        )
    if epsilon > privacy.epsilon:
        raise PrivacyError(
            f"--epsilon must be at most privacy.epsilon = {privacy.epsilon:g}, the cap of every node's ledger, got "
            f"{epsilon:g}; ask for less"
        )
    terms = PrivacyTerms(
        unit=privacy.unit,
        trust=privacy.trust,
        sampling_rate=1.0,
        rounds=candidates,
        steps_per_round=1,
        clipping_norm=SENSITIVITY,
        noise_multiplier=noise_multiplier_for(epsilon, privacy.delta, 1.0, candidates),
        delta=privacy.delta,
    )
    for share in federation.shares.values():
        terms.for_node(len(share))
    return terms


def _private(
    config: RunConfig,
    federation: Federation,
    models: Sequence[ModelSpec],
    terms: PrivacyTerms,
    folder: Path,
    progress: Progress,
) -> tuple[list[tuple[float, float]], Spending]:
    """Ask every node for every candidate's noised statistics, add them up and score the sums."""
    folder.mkdir(parents=True, exist_ok=True)
    run_id, nodes = f"rank-{uuid.uuid4().hex}", len(federation.shares)
    size = sum(len(share) for share in federation.shares.values())
    scores = []
    with task_identity(), simulated_in_process(folder):
        link = Link(InProcessGrid(client.app.app, config, range(nodes), folder))
        link.offer(Offer(run_id, models[0], terms))
        if len(link.members) < nodes:
            raise unanswered("every node to accept the offer", link.refused)
        for number, model in enumerate(models, start=1):
            _warm(model, federation, progress)
            task = StatisticsTask(Offer(run_id, model, terms), number, _sketch(config, model))
            total = np.sum(list(link.statistics(task).values()), axis=0)
            deviation = terms.noise_multiplier * SENSITIVITY * math.sqrt(nodes)
            facts = (total, deviation, size, task.sketch, model.task, len(model.classes))
            scores.append((noised_score(*facts), noised_error(*facts)))
        return scores, _spending(config, terms, list(_nodes(config, nodes)))


def _nodes(config: RunConfig, count: int) -> Iterator[Node]:
    flat = to_flat(config)
    for partition in range(count):
        yield open_node(RUN_ID, flat, {"partition-id": partition, "num-partitions": count})


def _warm(model: ModelSpec, federation: Federation, progress: Progress) -> None:
    """Compute the features that the nodes will look up."""
    name = f"{model.backbone}#{model.cut}"
    default_cache().features(
        cached_backbone(model.backbone),
        model.cut,
        federation.data,
        lambda done, total: progress(name, done, total),
        model.precision,
    )


def _sketch(config: RunConfig, model: ModelSpec) -> Sketch:
    shapes = layout_at(model.backbone, model.cut)
    features = shapes[0][-1] if model.task in TOKEN_TASKS else sum(int(np.prod(shape)) for shape in shapes)
    return Sketch(config.federation.seed or 0, min(MOST_WIDTH, features))


def _spending(config: RunConfig, terms: PrivacyTerms, nodes: Sequence[Node]) -> Spending:
    statements = []
    for node in nodes:
        with node.open_ledger() as ledger:
            statements.append(ledger.statement())
    most = max(statements, key=lambda statement: statement.epsilon)
    return Spending(
        epsilon=epsilon_by_round(terms)[-1],
        epsilon_in_ledger=most.epsilon,
        accountant=most.accountant,
        delta=terms.delta,
        unit=terms.unit,
        noise_multiplier=terms.noise_multiplier,
        nodes=len(nodes),
        epsilon_is_guarantee=config.federation.seed is None,
    )

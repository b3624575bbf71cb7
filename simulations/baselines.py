"""Baselines: the worlds that a federation is compared with, on the same records, rounds and held-out test.

Each private world is a federation of its own, run by the real apps in process, with ledgers of its own: it says what
would have been, and charges nothing to the nodes of the run.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from torch import Tensor

from common.config import RunConfig
from common.config_schema import DataConfig
from common.data.federation import assemble
from common.errors import ConfigError, PrivacyError
from common.features import cached_backbone
from common.privacy.accountant import epsilon_after
from common.tasks import Scores
from server.checkpoints import RunStore
from server.coordinator import propose
from server.run_folder import run_identity
from simulations.engine import run_in_process
from simulations.preflight import Preflight
from simulations.without_privacy import train_without_privacy

RAW_PIXELS = 32  # side of the largest image that is taken as it is

BY_ITSELF = {
    "trust": "local",
    "dropouts": None,
    "colluders": None,
    "largest_node": None,
}  # a node has no one to sum with

IN_ONE_PLACE = {**BY_ITSELF, "hospitals_per_patient": None}

DEALT_EVENLY = {
    "partition": "iid",
    **{key: DataConfig.model_fields[key].default for key in ("alpha", "shards_per_node")},
}

Progress = Callable[[str, int, int], None]


@dataclass(frozen=True)
class World:
    """The outcome of one baseline.

    Attributes:
        accuracy: on the held-out records; the mean over nodes where each trains alone.
        recalls: per node, or once as ``"all"``: recall of each class, shape (K,), None where there are none.
        epsilon: of the node that spent most, at the run's delta and unit; None without privacy.
    """

    accuracy: float
    recalls: Mapping[str, Tensor | None]
    epsilon: float | None


def run_baselines(
    config: RunConfig, preflight: Preflight, rounds: int, folder: Path, progress: Progress
) -> dict[str, World]:
    """Run the baselines that the configuration names.

    Args:
        config: of the run.
        preflight: of the run.
        rounds: that the federation played; a baseline plays no more of the same plan, with the same noise.
        folder: where the worlds keep their files; emptied by the caller.
        progress: called with (name, federations done, federations to do).

    Raises:
        FederationError: as the federation itself raises it.
    """
    plan = replace(preflight.proposal.plan, last_round=rounds)
    played = replace(preflight, proposal=replace(preflight.proposal, plan=plan))
    worlds = {}
    for name in config.evaluation.baseline_names:
        worlds[name] = _WORLDS[name](config, played, folder / name, progress)
    return worlds


def check_baselines(config: RunConfig, preflight: Preflight) -> None:
    """Find out before the run whether its baselines can be run after it.

    Raises:
        ConfigError: a baseline needs a backbone that cannot be made.
        PrivacyError: delta is too large for all records in one place.
    """
    names = config.evaluation.baseline_names
    if "no_transfer" in names:
        cached_backbone(_untrained(config))
    if "raw_pixels" in names and preflight.federation.data.modality != "image":
        raise ConfigError(
            f"the baseline raw_pixels needs images, the data hold records of the kind "
            f"{preflight.federation.data.modality!r}; leave it out of evaluation.baselines"
        )
    federation, unit = preflight.federation, config.privacy.unit
    pooled = sum(federation.units(share, unit) for share in federation.shares.values())
    if "pooled" in names and config.privacy.delta > 1 / pooled:
        raise PrivacyError(
            f"the baseline pooled puts {pooled} {unit}s in one place, where delta must be at most {1 / pooled:.2g}, "
            f"got {config.privacy.delta:g}; lower privacy.delta or leave the baseline out"
        )


def _untrained(config: RunConfig) -> str:
    return f"{config.model.backbone}@random-{config.federation.seed or 0}"  # other weights, the same network


def _pooled(config: RunConfig, preflight: Preflight, folder: Path, progress: Progress) -> World:
    federation = {"nodes": 1, **_of_one_node(config)}
    alone = changed(config, data=DEALT_EVENLY, federation=federation, privacy=IN_ONE_PLACE)
    return _one_federation(alone, preflight, folder)


def _of_one_node(config: RunConfig) -> dict[str, object]:
    """Among the updates of one node there is nothing to choose: they are their own mean."""
    chooses = config.federation.least_updates > 1
    return {"cohort": None, **({"strategy": "fedavg", "malicious": None} if chooses else {})}


def _no_transfer(config: RunConfig, preflight: Preflight, folder: Path, progress: Progress) -> World:
    untrained = changed(config, model={"backbone": _untrained(config), "weights": None})
    return _one_federation(untrained, preflight, folder)


def _raw_pixels(config: RunConfig, preflight: Preflight, folder: Path, progress: Progress) -> World:
    side = max(max(image.shape[:2]) for image in preflight.federation.data.inputs[:64])
    pixels = {"backbone": f"pixels/{min(side, RAW_PIXELS)}", "weights": None, "cut": None}
    head = "linear" if config.model.head == "upper" else config.model.head  # there is no stage above pixels
    return _one_federation(changed(config, model={**pixels, "head": head, "train": "all"}), preflight, folder)


def _local(config: RunConfig, preflight: Preflight, folder: Path, progress: Progress) -> World:
    alone = changed(config, federation=_of_one_node(config), privacy=BY_ITSELF)
    names = preflight.federation.names
    rounds, ends = preflight.proposal.plan.rounds, {}
    for partition, name in enumerate(names):
        ends[name] = final_scores(alone, folder / name, [partition], rounds)
        progress("local_mean", partition + 1, len(names))
    accuracy = float(np.mean([scores.accuracy for scores, _ in ends.values()]))
    recalls = {name: scores.class_recall for name, (scores, _) in ends.items()}
    return World(accuracy, recalls, max(epsilon for _, epsilon in ends.values()))


def _no_dp(config: RunConfig, preflight: Preflight, folder: Path, progress: Progress) -> World:
    scores = preflight.proposal.evaluate(train_without_privacy(preflight, config=config))
    return World(scores.accuracy, {"all": scores.class_recall}, None)


def _one_federation(config: RunConfig, preflight: Preflight, folder: Path) -> World:
    partitions = range(len(assemble(config).shares))
    scores, epsilon = final_scores(config, folder, list(partitions), preflight.proposal.plan.rounds)
    return World(scores.accuracy, {"all": scores.class_recall}, epsilon)


def final_scores(
    config: RunConfig, folder: Path, partitions: list[int], rounds: int | None = None
) -> tuple[Scores, float]:
    """Run a federation of these nodes in a new folder, and score its last head on the held-out records.

    Args:
        config: of the federation.
        folder: does not exist yet.
        partitions: numbers of the nodes.
        rounds: after which it ends, under the plan of all; None plays all.

    Returns:
        The scores, and epsilon of the node that spent most.
    """
    folder.mkdir(parents=True)
    run_in_process(config, folder, partitions, last_round=rounds)
    final = RunStore(folder, run_identity(folder)).latest()
    assert final is not None
    proposal = propose(config, run_identity(folder))
    spent = epsilon_after(proposal.plan.offer.terms, max(final.participation.values()))
    return proposal.evaluate(final.head), spent


def changed(config: RunConfig, **sections: Mapping[str, object]) -> RunConfig:
    """The configuration with other values in some sections, without baselines, evaluated at the end only."""
    quiet = {"evaluation": {"baselines": "none", "node_metrics": "none", "every": config.federation.rounds}}
    changes = {**quiet, **{name: dict(values) for name, values in sections.items()}}
    tree = config.model_dump()
    return RunConfig.model_validate({name: {**tree[name], **changes.get(name, {})} for name in tree})


_WORLDS: dict[str, Callable[[RunConfig, Preflight, Path, Progress], World]] = {
    "pooled": _pooled,
    "local_mean": _local,
    "no_dp": _no_dp,
    "no_transfer": _no_transfer,
    "raw_pixels": _raw_pixels,
}

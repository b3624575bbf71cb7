"""The result of a run, put together from what it left on disk."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from client.simulated_node import open_simulated_ledger, untouched_ledger
from common.config import BASELINES, RunConfig
from common.data.federation import Federation
from common.errors import PrivacyError
from common.privacy.accountant import epsilon_after
from common.privacy.plan import PrivacyTerms
from common.privacy.statement import Statement
from common.tasks import Scores
from server.checkpoints import Checkpoint, Line
from server.result_facts import backbone_facts, bytes_facts, privacy_facts, versions
from simulations.baselines import World
from simulations.preflight import Preflight

Result = dict[str, Any]
ACROSS = ("epsilon_across_hospitals", "epsilon_across_hospitals_against_model")


def build_result(
    config: RunConfig,
    preflight: Preflight,
    final: Checkpoint,
    lines: list[Line],
    worlds: Mapping[str, World],
    baselines_s: float | None,
    folder: Path,
    engine: str,
) -> Result:
    """Put ``result.json`` together.

    Args:
        config: of the run.
        preflight: of the run.
        final: the state after the last round.
        lines: the round log.
        worlds: baselines by name.
        baselines_s: time that they took; None where there are none.
        folder: the run folder, with the nodes' ledgers.
        engine: that played the run.

    Returns:
        JSON values; what was not computed is None.
    """
    scores = preflight.proposal.evaluate(final.head)
    privacy, plan = _privacy(config, preflight, final, lines, folder), preflight.proposal.plan
    federation = preflight.federation
    return {
        "accuracy": {"federated": scores.accuracy, **{name: _accuracy(worlds, name) for name in BASELINES}},
        "accuracy_std": None,
        "metrics": {
            "loss": scores.loss if math.isfinite(scores.loss) else None,
            **scores.metrics(federation.data.classes),
        },
        "epsilon": {
            "federated": max(privacy["epsilon_per_node"].values()),
            **{name: worlds[name].epsilon if name in worlds else None for name in BASELINES},
        },
        "privacy": privacy,
        "bytes": bytes_facts(lines, backbone_once=0),
        "timing_s": _timing(lines, preflight.seconds, baselines_s),
        "rounds": final.round,
        "rounds_planned": plan.rounds,
        "nodes": len(federation.shares),
        "node_names": list(federation.names),
        "seed": config.federation.seed,
        "seeds": [config.federation.seed],
        "versions": versions(),
        "partition": partition_table(federation),
        "node_accuracy": _node_accuracy(federation, scores, worlds.get("local_mean")),
        "open_reservations": _open_reservations(config, federation, folder),
        "chance": _chance(federation),
        "confidential": config.data.source != "digits",
        "learning_rate": lines[-1]["learning_rate"],
        "backbone": _backbone(preflight),
        "head": config.model.head,
        "engine": engine,
        "data": _data(config, preflight),
        "confusion": None if scores.confusion is None else scores.confusion.tolist(),
    }


def _backbone(preflight: Preflight) -> dict[str, Any]:
    facts = backbone_facts(preflight.proposal.plan.offer.model)
    return {**facts, "features": int(preflight.features.shape[1])}


def _data(config: RunConfig, preflight: Preflight) -> dict[str, Any]:
    federation = preflight.federation
    return {
        "source": config.data.source,
        "classes": list(federation.data.classes),
        "task": federation.data.task,
        "modality": federation.data.modality,
        "truncated": preflight.truncated,
        "train": sum(len(share) for share in federation.shares.values()),
        "test": len(federation.test),
        "partition": config.data.partition,
    }


def mean_result(results: list[Result]) -> Result:
    """One result for several seeds: means, with the standard deviation of each accuracy beside them."""
    first = results[0]
    accuracies = {name: [result["accuracy"][name] for result in results] for name in first["accuracy"]}
    epsilons = [result["privacy"]["epsilon_per_node"] for result in results]
    worst = {name: max(epsilon.get(name, 0.0) for epsilon in epsilons) for name in epsilons[0]}
    of_model = [result["privacy"].get("epsilon_against_model_per_node", {}) for result in results]
    against_model = {name: max(each.get(name, 0.0) for each in of_model) for name in of_model[0]}
    return {
        **first,
        "accuracy": {name: _mean(values) for name, values in accuracies.items()},
        "accuracy_std": {name: _std(values) for name, values in accuracies.items()},
        "metrics": {name: _mean([result["metrics"][name] for result in results]) for name in first["metrics"]},
        "epsilon": {name: _max([result["epsilon"][name] for result in results]) for name in first["epsilon"]},
        "privacy": {
            **first["privacy"],
            "epsilon_per_node": worst,
            **({"epsilon_against_model_per_node": against_model} if against_model else {}),
            **{name: max(result["privacy"][name] for result in results) for name in ACROSS if name in first["privacy"]},
        },
        "timing_s": {name: _sum([result["timing_s"][name] for result in results]) for name in first["timing_s"]},
        "open_reservations": _all_open(results),
        "seeds": [result["seed"] for result in results],
    }


def partition_table(federation: Federation) -> dict[str, dict[str, Any]]:
    """How many records of which class each node holds (exact: for the eyes of whoever owns all of them)."""
    classes, labels = federation.data.strata_names, federation.data.strata
    table: dict[str, dict[str, Any]] = {}
    for name, share in federation.shares.items():
        counts = np.bincount(labels[share], minlength=len(classes))
        table[name] = {"records": len(share), "classes": dict(zip(classes, counts.tolist(), strict=True))}
        if federation.data.patient is not None:
            table[name]["patients"] = federation.units(share, "patient")
    return table


def _privacy(
    config: RunConfig, preflight: Preflight, final: Checkpoint, lines: Sequence[Line], folder: Path
) -> dict[str, Any]:
    terms = preflight.proposal.plan.offer.terms
    statements = {}
    for name in preflight.federation.names:
        if (untouched := untouched_ledger(folder, name, config)) is not None:
            statements[name] = untouched.statement()  # it was never charged
            continue
        with open_simulated_ledger(folder, name, config) as ledger:
            ledger.verify()
            statements[name] = ledger.statement()
    for name, rounds in answered(final.participation, lines).items():
        _check_paid(statements[name], rounds, terms)
    seeded, exact = config.federation.seed is not None, config.evaluation.node_metrics == "exact"
    return privacy_facts(
        terms,
        {name: statement.epsilon for name, statement in statements.items()},
        {name: statement.steps // terms.steps_per_round for name, statement in statements.items()},
        budget=config.privacy.epsilon,
        accountant=", ".join(sorted({statement.accountant for statement in statements.values()})),
        noise_source="seeded" if seeded else "system",
        guarantee=not seeded and not exact,  # exact metrics have left the nodes without noise
    )


def answered(participation: Mapping[str, int], lines: Iterable[Line]) -> dict[str, int]:
    """Rounds that each node has surely paid for: of those that it was asked in, those in which it did not fail.

    >>> answered({"north": 3, "south": 3}, [{"failed": {"north": "internal"}}, {"failed": {}}, {}])
    {'north': 2, 'south': 3}
    """
    failed = Counter(name for line in lines for name in line.get("failed", ()))
    return {name: max(0, rounds - failed[name]) for name, rounds in participation.items()}


def _check_paid(statement: Statement, rounds: int, terms: PrivacyTerms) -> None:
    if statement.epsilon < epsilon_after(terms, rounds):
        raise PrivacyError(
            f"the ledger of {statement.dataset_id} must hold the {rounds} rounds that the run counted, but it says "
            f"epsilon {statement.epsilon:.4g}, which is less; put the ledger back that was there, or run again"
        )


def _open_reservations(config: RunConfig, federation: Federation, folder: Path) -> dict[str, list[int]]:
    found = {}
    for name in federation.names:
        if untouched_ledger(folder, name, config) is not None:
            continue
        with open_simulated_ledger(folder, name, config) as ledger:
            if rounds := [round_ for _, round_ in ledger.statement().open_reservations]:
                found[name] = rounds
    return found


def _all_open(results: list[Result]) -> dict[str, list[int]]:
    found: dict[str, list[int]] = {}
    for result in results:
        for name, rounds in result["open_reservations"].items():
            found[name] = sorted([*found.get(name, []), *rounds])
    return dict(sorted(found.items()))


def _node_accuracy(federation: Federation, scores: Scores, alone: World | None) -> dict[str, dict[str, float | None]]:
    table: dict[str, dict[str, float | None]] = {}
    for name, share in federation.shares.items():
        mix = np.bincount(federation.data.strata[share], minlength=len(federation.data.strata_names))
        table[name] = {
            "federated": _expected(scores.class_recall, mix),
            "alone": None if alone is None else _expected(alone.recalls[name], mix),
        }
    return table


def _expected(recall: Tensor | None, mix: np.ndarray) -> float | None:
    """Accuracy on held-out records reweighted to a node's own mix of classes; None where none of them is held out."""
    if recall is None:
        return None
    known = ~torch.isnan(recall).numpy()
    counted = mix[known].sum()
    return float((recall.numpy()[known] * mix[known]).sum() / counted) if counted else None


def _chance(federation: Federation) -> float | None:
    if federation.data.task != "classification":
        return None
    counts = np.bincount(federation.data.labels[federation.test])
    return float(counts.max() / counts.sum())


def _timing(lines: list[Line], features: float, baselines: float | None) -> dict[str, float | None]:
    rounds = sum(line["seconds"] for line in lines)
    total = features + rounds + (baselines or 0.0)
    return {"features": features, "rounds": rounds, "baselines": baselines, "total": total}


def _accuracy(worlds: Mapping[str, World], name: str) -> float | None:
    return worlds[name].accuracy if name in worlds else None


def _mean(values: list[float | None]) -> float | None:
    return None if None in values else float(np.mean(np.array(values, dtype=float)))


def _sum(values: list[float | None]) -> float | None:
    return None if None in values else float(np.sum(np.array(values, dtype=float)))


def _max(values: list[float | None]) -> float | None:
    return max((value for value in values if value is not None), default=None)


def _std(values: list[float | None]) -> float | None:
    return None if None in values or len(values) < 2 else float(np.std(np.array(values, dtype=float), ddof=1))

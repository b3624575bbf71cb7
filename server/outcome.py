"""What a run of real nodes leaves: its model, a card, and ``result.json``; from what the server saw, no ledger."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from common import durable
from common.config import BASELINES, RunConfig
from common.data.federation import Federation
from common.durable import read_lines
from common.messages import Reason
from common.model import classifier_width
from common.model_folder import ModelFacts, save_model
from common.privacy.accountant import epsilon_after
from common.privacy.hospitals import card_sentence
from common.privacy.sums import against_whom
from server.checkpoints import Checkpoint, RunStore
from server.coordinator import Proposal
from server.result_facts import backbone_facts, bytes_facts, privacy_facts, versions
from server.sent_bytes import bytes_sent

RESULT, ROUNDS, MODEL = "result.json", "rounds.jsonl", "model"


def conclude(folder: Path, config: RunConfig, federation: Federation, proposal: Proposal, final: Checkpoint) -> None:
    """Write result and model of a run that has come to its end.

    Args:
        folder: of the run.
        config: of the run.
        federation: the server's own records.
        proposal: of the run.
        final: the state after the last round.
    """
    model, data = proposal.plan.offer.model, federation.data
    result = _result(folder, config, federation, proposal, final)
    facts = ModelFacts(
        model=model.finished,
        features=classifier_width(model),
        modality=data.modality,
        columns=data.columns,
        keys=config.data.keys,
        privacy=result["privacy"],
    )
    save_model(folder / MODEL, facts, final.head, _card(result))
    durable.write_json(folder / RESULT, result)


def _result(
    folder: Path, config: RunConfig, federation: Federation, proposal: Proposal, final: Checkpoint
) -> dict[str, Any]:
    offer, lines = proposal.plan.offer, read_lines(folder / ROUNDS)
    scores = proposal.evaluate(final.head)
    loss = scores.loss if math.isfinite(scores.loss) else None
    return {
        "accuracy": {"federated": scores.accuracy, **dict.fromkeys(BASELINES)},
        "metrics": {"loss": loss, **scores.metrics(federation.data.classes)},
        "privacy": _privacy(folder, config, proposal, final),
        "bytes": bytes_facts(lines, bytes_sent(folder)),
        "timing_s": {"features": None, "rounds": sum(line["seconds"] for line in lines), "total": None},
        "rounds": final.round,
        "rounds_planned": proposal.plan.rounds,
        "nodes": len(final.participation),
        "node_names": sorted(final.participation),
        "seed": None,
        "versions": versions(),
        "learning_rate": lines[-1]["learning_rate"] if lines else None,
        "backbone": backbone_facts(offer.model),
        "head": offer.model.head,
        "engine": "deployed",
        "data": {"classes": list(federation.data.classes), "task": offer.model.task, "test": len(federation.test)},
    }


def _paid(folder: Path, proposal: Proposal) -> dict[str, set[int]]:
    """Rounds that each node may have paid for: all that it was asked for, but those that its budget refused."""
    refused = {
        (name, line["round"])
        for line in read_lines(folder / ROUNDS)
        for name, reason in line["failed"].items()
        if reason == Reason.BUDGET.value
    }
    asked = RunStore(folder, proposal.plan.offer.run_id).asked()
    return {name: {round_ for round_ in rounds if (name, round_) not in refused} for name, rounds in asked.items()}


def _privacy(folder: Path, config: RunConfig, proposal: Proposal, final: Checkpoint) -> dict[str, Any]:
    """What this run spent at each node as far as the server knows; the nodes' ledgers hold what they ever spent."""
    terms = proposal.plan.offer.terms
    paid = {name: len(rounds) for name, rounds in _paid(folder, proposal).items()}
    if terms.trust == "secagg":  # a round that was begun again was paid for again
        paid = {name: max(final.participation.get(name, 0), rounds) for name, rounds in paid.items()}
    return privacy_facts(
        terms,
        {name: epsilon_after(terms, rounds) for name, rounds in sorted(paid.items())},
        paid,
        budget=config.privacy.epsilon,
        accountant="PLD, this run alone",
        noise_source="system",
        guarantee=True,
    )


def _card(result: dict[str, Any]) -> str:
    privacy, backbone, data = result["privacy"], result["backbone"], result["data"]
    return f"""# Model card

A {result["head"]} head on the frozen backbone `{backbone["name"]}`, cut after `{backbone["cut"]}`, trained by
{result["nodes"]} nodes in {result["rounds"]} rounds.

- Accuracy on {data["test"]} records of the coordinator's own: {result["accuracy"]["federated"]:.4f}

## Privacy

This run spent at most epsilon {max(privacy["epsilon_per_node"].values()):.3f} at delta {privacy["delta"]:g} at each
node, unit: one {privacy["unit"]}, trust model: {privacy["trust"]}; noise multiplier {privacy["noise_multiplier"]:.4g},
clipping norm {privacy["clipping_norm"]:.4g}, sampling rate {privacy["sampling_rate"]:g}. Sampling and noise came from
the nodes' operating systems. What a node spent before, and on other runs, is in its own ledger and adds to this.

{against_whom(privacy)}{card_sentence(privacy)}The promise covers the head only. The backbone was trained on
{backbone["trained_on"]} and is licensed under {backbone["licence"]}; its digest is
`{backbone["digest"]}`.
"""

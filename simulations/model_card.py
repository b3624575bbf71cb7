"""The model card: what a trained head is, how good it is, and what was promised to the people in its data."""

from __future__ import annotations

import html
from typing import Any

from common.privacy.hospitals import card_sentence
from common.privacy.sums import against_whom


def model_card(result: dict[str, Any]) -> str:
    """Write the card of a run's model, Markdown.

    Args:
        result: of the run, as in ``result.json``.
    """
    privacy, backbone, data = result["privacy"], result["backbone"], result["data"]
    worst = max(privacy["epsilon_per_node"].values())
    return f"""# Model card

A {result["head"]} head on the frozen backbone `{backbone["name"]}`, cut after `{backbone["cut"]}`
({backbone["features"]} features), trained by {result["nodes"]} nodes in {result["rounds"]} rounds.

- Classes: {", ".join(_plain(name) for name in data["classes"])}
- Data: {_plain(data["source"])} ({data["train"]} training records, partition {data["partition"]})
- Accuracy on {data["test"]} held-out records: {result["accuracy"]["federated"]:.4f}

## Privacy

Epsilon {worst:.3f} at delta {privacy["delta"]:g} for each node, unit: one {privacy["unit"]}, trust model:
{privacy["trust"]}, accountant: {privacy["accountant"]}; noise multiplier {privacy["noise_multiplier"]:.4g}, clipping
norm {privacy["clipping_norm"]:.4g}, sampling rate {privacy["sampling_rate"]:g}, {privacy["steps"]} steps.

{against_whom(privacy)}{card_sentence(privacy)}{_guarantee(privacy)}

The promise covers the head only. The backbone was trained on {backbone["trained_on"]} and is licensed under
{backbone["licence"]}; its digest is `{backbone["digest"]}`.
"""


def _guarantee(privacy: dict[str, Any]) -> str:
    if privacy["epsilon_is_guarantee"]:
        return "This is a guarantee: sampling and noise came from the operating system's generator."
    if privacy["noise_source"] == "seeded":
        return (
            "**No guarantee: seeded.** Sampling and noise came from a seed, so the epsilon is nominal: whoever knows "
            "the seed can subtract the noise. Train without a seed before real data are involved."
        )
    return (
        "**No guarantee: exact metrics.** The nodes also sent their accuracy without noise, which epsilon does not "
        "cover. Leave evaluation.node_metrics out before real data are involved."
    )


def _plain(name: str) -> str:
    """A name from the user's data on one line, without any markup."""
    return html.escape(" ".join(name.split()))

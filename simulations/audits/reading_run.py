"""What a server reads out of one update of a configuration's nodes, noised as planned and not at all."""

from __future__ import annotations

from dataclasses import replace

import torch

from simulations.audits.attack_subject import Subject
from simulations.audits.findings import Reconstruction
from simulations.audits.recipes import private_recipe
from simulations.audits.reconstruction import reconstruct, reconstruct_records
from simulations.audits.shadows import Recipe

RECORDS = 50  # that are each the only one of a node


def readings(subject: Subject, seed: int) -> tuple[Reconstruction, ...]:
    """Read class counts and class features of the smallest node, and records that are alone at a node.

    Args:
        subject: with a linear head.
        seed: of the noise.
    """
    features, targets = subject.records(subject.ready.federation.shares[subject.node])
    public, _ = subject.records(subject.ready.federation.test)
    classes = len(subject.ready.federation.data.classes)
    found: list[Reconstruction] = []
    for private in (True, False):
        recipe = _recipe(subject, classes, features.shape[1], len(features), private)
        found += reconstruct(features, targets, [torch.arange(len(features))], recipe, public, seed=seed)
        alone = replace(recipe, expected_batch=1.0)
        found.append(reconstruct_records(features[:RECORDS], targets[:RECORDS], alone, public, seed=seed))
    return tuple(found)


def _recipe(subject: Subject, classes: int, width: int, size: int, private: bool) -> Recipe:
    recipe = private_recipe(subject.terms, classes, width, [size], subject.learning_rate)
    return recipe if private else replace(recipe, terms=None, rounds=1)

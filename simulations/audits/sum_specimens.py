"""Heads with records for audits of sums over nodes, and what one node of them would mask."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from common.heads import head_arrays, load_arrays
from common.messages import SumTask
from common.privacy.noise import Randomness, WordSource
from common.privacy.shares import NoiseShares
from common.privacy.sums import noise_shares
from common.secagg.messages import Stage
from simulations.audits.practice import Company, Practice, Specimen
from simulations.audits.replay_node import node_for

NODES, DROPOUTS, COLLUDERS = 5, 1, 2
"""Two honest nodes are left: a share that is missing, or sized for all five, is missed the most."""
MOST_RECORDS = 8  # of a patient that join a step


def sum_specimen(specimen: Specimen, unit: str = "record") -> Specimen:
    """The same head and records under a plan with sums over nodes."""
    offer = specimen.offer
    terms = replace(
        offer.terms,
        unit=unit,
        trust="secagg",
        steps_per_round=1,
        records_per_unit=1 if unit == "record" else MOST_RECORDS,
        nodes=NODES,
        dropouts=DROPOUTS,
        colluders=COLLUDERS,
        largest_node=1000,
    )
    return replace(specimen, name=f"sum, unit {unit}", offer=replace(offer, terms=terms))


def shares_of(specimen: Specimen) -> NoiseShares:
    """What node and server work out from the public constants."""
    return noise_shares(specimen.offer.terms, sum(value.numel() for value in head_arrays(specimen.head).values()))


def masked_by(
    practice: Practice,
    specimen: Specimen,
    place: Company,
    sampling: Randomness,
    noise: WordSource,
    name: str = "node-0",
) -> NDArray[np.int64]:
    """The integers that a node with these records would mask in a round, shape (d,), residues modulo 2^b."""
    sent = head_arrays(specimen.head)
    task = SumTask(specimen.offer, 1, Stage.VECTOR, b"", sent)
    drawing = (sampling, sampling)
    node = replace(node_for(specimen, place, Path(), lambda _: drawing, name), share_of_noise=lambda _: noise)
    found = practice.share(specimen.head, task, node, specimen.plan)
    load_arrays(specimen.head, sent)
    return found

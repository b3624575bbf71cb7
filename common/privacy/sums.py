"""What the terms of a plan under trust ``"secagg"`` mean for its sums: the node's shares of noise, and what is masked.

Node and server work it out for themselves, from public constants.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from functools import lru_cache
from typing import Any

from common.errors import PrivacyError
from common.messages import ModelSpec
from common.plan_file import plan_digest
from common.privacy.accountant import epsilon_after
from common.privacy.hospitals import worth_in_parts
from common.privacy.plan import PrivacyTerms
from common.privacy.shares import Cohort, NoiseShares, largest_batch_of, server_event, share_out
from common.secagg.session import SumRun, SumTerms

LEAST_BITS = 8  # that secure aggregation takes


@lru_cache(maxsize=64)
def noise_shares(terms: PrivacyTerms, numbers: int) -> NoiseShares:
    """Scale, range and noise of the sums of a plan.

    Args:
        terms: of the plan.
        numbers: d, trained parameters of the head.

    Returns:
        Shares of which the honest survivors' are worth the plan's own noise multiplier.

    Raises:
        PrivacyError: the plan has no sums, or they cannot be made.
    """
    if terms.trust != "secagg":
        raise PrivacyError(f'sums over nodes need a plan with trust "secagg", got {terms.trust!r}; refuse it')
    cohort = Cohort(terms.nodes, terms.dropouts, terms.colluders)
    batch = largest_batch_of(terms.largest_node, terms.sampling_rate, terms.rounds)
    shares = _worth_its_parts(terms, cohort, numbers, batch)
    shares = replace(shares, modulus_bits=max(LEAST_BITS, shares.modulus_bits))
    server_event(shares, terms.sampling_rate, terms.rounds)  # makes sure of what the ledger charges
    return shares


def _worth_its_parts(terms: PrivacyTerms, cohort: Cohort, numbers: int, batch: int) -> NoiseShares:
    """Shares whose honest sum is worth the plan's noise, and worth it in m parts where a patient visits m hospitals."""
    noise, hospitals = terms.noise_multiplier, terms.hospitals_per_unit
    shares = share_out(cohort, noise, terms.clipping_norm, numbers, batch, sums=terms.rounds)
    if not _is_worth(shares, terms):  # m - 1 more of variance, which is as good as nothing
        noise = math.sqrt(noise**2 + hospitals / shares.sensitivity**2)
        shares = share_out(cohort, noise, terms.clipping_norm, numbers, batch, sums=terms.rounds)
    if not _is_worth(shares, terms):
        raise PrivacyError(
            f"honest shares must be worth a noise multiplier of {terms.noise_multiplier:g} in {hospitals} parts, they "
            "are not; choose a larger noise"
        )
    return shares


def _is_worth(shares: NoiseShares, terms: PrivacyTerms) -> bool:
    honest = shares.share_variance * shares.cohort.honest
    return worth_in_parts(honest, shares.sensitivity, terms.noise_multiplier, terms.hospitals_per_unit)


def epsilon_against_model(terms: PrivacyTerms, rounds: int) -> float:
    """Epsilon after so many rounds against whoever sees the model, or the sums, and knows no node's noise.

    The other figure, which ledgers hold and caps are for, is against the server and the colluders allowed for.

    Args:
        terms: of the plan; under local trust the two figures are one.
        rounds: that a node was charged for; more than ``terms.rounds`` where some were begun again.
    """
    return epsilon_after(terms.as_readers_see, rounds)


def both_figures(terms: PrivacyTerms, rounds: Mapping[str, int]) -> dict[str, Any]:
    """What a result says of sums beside ``epsilon_per_node``, which is against the server with the colluders.

    Args:
        terms: of the plan, under secagg trust.
        rounds: that each node may have been charged for.
    """
    against_model = {name: epsilon_against_model(terms, count) for name, count in rounds.items()}
    return {
        "nodes": terms.nodes,
        "dropouts": terms.dropouts,
        "colluders": terms.colluders,
        "epsilon_against_model_per_node": against_model,
    }


def against_whom(privacy: Mapping[str, Any]) -> str:
    """What a model card says of the two figures of a result; nothing under local trust, where there is one."""
    if privacy["trust"] != "secagg":
        return ""
    model = max(privacy["epsilon_against_model_per_node"].values())
    least = privacy["nodes"] - privacy["dropouts"]
    return f"""That epsilon is against the server together with up to {privacy["colluders"]} of the nodes, who see sums
over at least {least} nodes. Against whoever sees this model and knows no node's noise it is {model:.3f}, at the same
delta and unit.

"""


def sum_terms(terms: PrivacyTerms, numbers: int) -> SumTerms:
    """What secure aggregation is told of a plan; errors as in ``noise_shares``."""
    bits = noise_shares(terms, numbers).modulus_bits
    return SumTerms(
        nodes=terms.nodes, dropouts=terms.dropouts, colluders=terms.colluders, modulus_bits=bits, length=numbers
    )


def sum_run(run_id: str, model: ModelSpec, terms: PrivacyTerms, numbers: int) -> SumRun:
    """What all sessions of a run are bound to; errors as in ``noise_shares``."""
    return SumRun(run_id=run_id, plan_digest=plan_digest(model, terms), terms=sum_terms(terms, numbers))

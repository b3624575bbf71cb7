"""The hospital's policy: what a server may ask of this node, decided by the node's operator alone."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from common.errors import PrivacyError
from common.messages import Offer
from common.plan_file import plan_digest, plan_in_words
from common.privacy.plan import PrivacyPlan


@dataclass(frozen=True)
class Policy:
    """Caps on what is released from one data set; a server can only be stricter.

    Attributes:
        max_epsilon: cap on everything ever released from the data set, at ``delta``.
        delta: fixed for the data set.
        unit: privacy unit that the caps speak of.
        metrics: whether exact metrics may leave; ``"exact"`` is for simulations only.
        min_noise_multiplier: plans with less noise are refused.
        max_clipping_norm: plans with a larger clipping norm are refused.
        backbones: SHA-256 digests of the backbones that may be used; None allows all.
        partial: whether a plan that passes ``max_epsilon`` is joined, until the last round that fits.
        plans: digests of the plans that may be joined (``common.plan_file``); None joins all that keep to the caps.
    """

    max_epsilon: float
    delta: float
    unit: str
    metrics: Literal["none", "exact"] = "none"
    min_noise_multiplier: float = 0.0
    max_clipping_norm: float = math.inf
    backbones: frozenset[str] | None = None
    partial: bool = False
    plans: frozenset[str] | None = None

    def accept(self, offer: Offer, declared_size: int) -> PrivacyPlan:
        """Check an offer against the policy and make this node's plan of it, before any record is read.

        Raises:
            PrivacyError: the offer is weaker than the policy allows, or is no promise for a data set of this size.
        """
        terms = offer.terms
        if terms.unit != self.unit:
            raise PrivacyError(f"this node protects one {self.unit}, the server offers unit {terms.unit!r}; refuse it")
        if terms.delta != self.delta:
            raise PrivacyError(
                f"this node accounts at delta {self.delta:g}, the server offers {terms.delta:g}; offer the node's own"
            )
        if terms.noise_multiplier < self.min_noise_multiplier:
            raise PrivacyError(
                f"this node wants a noise multiplier of at least {self.min_noise_multiplier:g}, the server offers "
                f"{terms.noise_multiplier:g}; ask for more noise"
            )
        if terms.clipping_norm > self.max_clipping_norm:
            raise PrivacyError(
                f"this node wants a clipping norm of at most {self.max_clipping_norm:g}, the server offers "
                f"{terms.clipping_norm:g}; ask for a smaller one"
            )
        if self.backbones is not None and offer.model.backbone_digest not in self.backbones:
            raise PrivacyError(
                f"the backbone {offer.model.backbone} with digest {offer.model.backbone_digest} is not approved on "
                "this node; approve it first"
            )
        if self.plans is not None and (digest := plan_digest(offer.model, terms)) not in self.plans:
            raise PrivacyError(
                f"this node joins approved plans only, and nobody approved the plan {digest} "
                f"({plan_in_words(offer.model, terms)}); to join it, run `fedgraft node approve plan {digest}`"
            )
        return terms.for_node(declared_size)

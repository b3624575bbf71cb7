"""The privacy plan: the public constants that drive the sampler, the mechanism and the ledger alike."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from functools import cached_property, lru_cache
from typing import Any

from common.errors import PrivacyError, ProtocolError
from common.privacy.canonical import canonical_json, sha256_hex
from common.secagg.roster import MOST_NODES
from common.secagg.session import LEAST_NODES, SumTerms

RELATION = "add-or-remove-one"
UNITS = ("record", "patient")
TRUSTS = ("local", "secagg")
MAX_RECORDS = 10_000
MOST_HOSPITALS = 200
MAX_STEPS = 1_000_000
LARGEST_NODE = 2**40
SMALLEST_RATE = 1e-6
NOISE_RANGE = (0.01, 100_000.0)


@dataclass(frozen=True)
class PrivacyTerms:
    """What a server offers, the same for every node; public constants, agreed before the first round.

    Attributes:
        unit: what is protected as a whole: one ``"record"``, or one ``"patient"`` with all of its records.
        trust: against whom; ``"local"`` means against everybody outside the node, by its own noise; ``"secagg"``
            against all who see sums over nodes only, by the noise in those: the server, with colluders, included.
        sampling_rate: q, probability with which each unit joins a step's batch, independently (Poisson), 0 < q <= 1.
        rounds: number of rounds.
        steps_per_round: noised gradient steps within a round.
        clipping_norm: C, L2 bound of one unit's gradient.
        noise_multiplier: sigma, standard deviation of the noise divided by C; under ``"secagg"`` of that noise in a sum
            which server and colluders do not know.
        delta: probability of the guarantee failing, 0 < delta < 1.
        relation: neighbouring relation; ``"add-or-remove-one"`` unit.
        records_per_unit: most records of a unit that join a step, drawn anew each time; 1 for the unit ``"record"``.
        nodes: n, the fewest that a sum is begun with; this and what follows under ``"secagg"`` only, else 0.
        dropouts: most of n that may be missing from a sum.
        colluders: most nodes that may tell the server what they know.
        largest_node: most units that a node may declare, for which the range of the sums is made.
        hospitals_per_unit: m, the most nodes that hold records of one unit, as declared; for the unit ``"patient"``.

    Raises:
        PrivacyError: a value outside its range, or terms under which a sum would protect too little.
    """

    unit: str
    trust: str
    sampling_rate: float
    rounds: int
    steps_per_round: int
    clipping_norm: float
    noise_multiplier: float
    delta: float
    relation: str = RELATION
    records_per_unit: int = 1
    nodes: int = 0
    dropouts: int = 0
    colluders: int = 0
    largest_node: int = 0
    hospitals_per_unit: int = 1

    def __post_init__(self) -> None:
        """Refuse nonsense before anything is computed from it."""
        _require_choice("unit", self.unit, *UNITS)
        _require_choice("trust", self.trust, *TRUSTS)
        _require_choice("relation", self.relation, RELATION)
        _require_between("records_per_unit", self.records_per_unit, 1, MAX_RECORDS if self.unit == "patient" else 1)
        most_hospitals = MOST_HOSPITALS if self.unit == "patient" else 1
        _require_between("hospitals_per_unit", self.hospitals_per_unit, 1, most_hospitals)
        _require_between("sampling_rate", self.sampling_rate, SMALLEST_RATE, 1.0)
        _require_between("noise_multiplier", self.noise_multiplier, *NOISE_RANGE)
        _require_between("clipping_norm", self.clipping_norm, 1e-12, 1e12)
        _require_between("delta", self.delta, 1e-12, 0.5)
        _require_between("federation.rounds", self.rounds, 1, MAX_STEPS)
        _require_between("steps_per_round", self.steps_per_round, 1, MAX_STEPS)
        _require_between("federation.rounds x training.local_steps", self.steps, 1, MAX_STEPS)
        self._check_sums()

    def _check_sums(self) -> None:
        if self.trust != "secagg":
            for name in _OF_SUMS:
                _require_between(name, getattr(self, name), 0, 0)
            return
        _require_between("steps_per_round", self.steps_per_round, 1, 1)
        _require_between("federation.nodes", self.nodes, LEAST_NODES, MOST_NODES)
        _require_between("dropouts", self.dropouts, 0, self.nodes)
        _require_between("colluders", self.colluders, 0, self.nodes)
        _require_between("largest_node", self.largest_node, 1, LARGEST_NODE)
        SumTerms(nodes=self.nodes, dropouts=self.dropouts, colluders=self.colluders, modulus_bits=8, length=1)

    @property
    def steps(self) -> int:
        """T, noised gradient steps in the whole plan."""
        return self.rounds * self.steps_per_round

    @property
    def model_noise_multiplier(self) -> float:
        """Of the noise against whoever sees the model, or the sums, and knows no node's noise; at least so much.

        Under ``"secagg"`` all survivors' shares count, of which those of the honest are worth sigma. As the honest
        shares' variance is (sigma D)^2 + 1 or more, s of h shares are worth sqrt(s / h) sigma.
        """
        if self.trust != "secagg":
            return self.noise_multiplier
        survivors = self.nodes - self.dropouts
        return self.noise_multiplier * math.sqrt(survivors / (survivors - self.colluders)) * (1 - 1e-12)

    @property
    def as_readers_see(self) -> PrivacyTerms:
        """The same terms with the noise that somebody meets who sees the model and knows no node's noise."""
        return replace(self, noise_multiplier=min(NOISE_RANGE[1], self.model_noise_multiplier))

    @cached_property
    def digest(self) -> str:
        """SHA-256, in hex, over the canonical JSON of the terms."""
        return sha256_hex("fedgraft privacy terms 1", canonical_json(self.to_dict()))

    def to_dict(self) -> dict[str, str | int | float]:
        """Plain values, numbers in their canonical type; ``from_dict`` reads them back."""
        types = _types(self.unit, self.trust, self.hospitals_per_unit)
        return {name: kind(getattr(self, name)) for name, kind in types.items()}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> PrivacyTerms:
        """Read terms that came from elsewhere.

        Raises:
            ProtocolError: a key is missing, unknown, or of another type.
            PrivacyError: the values promise nothing sensible.
        """
        types = _types(values.get("unit"), values.get("trust"), values.get("hospitals_per_unit", 1))
        _require_keys(values, set(types), "privacy terms")
        return cls(**{name: _typed(name, values[name], kind) for name, kind in types.items()})

    def for_node(self, declared_size: int) -> PrivacyPlan:
        """Make the plan of a node that declares ``declared_size`` units (a public constant, never a live count).

        Raises:
            PrivacyError: delta is above 1 / declared_size, where "publish one record at random" would satisfy it.
        """
        return _plan(self, declared_size)


@lru_cache(maxsize=4096)
def _plan(terms: PrivacyTerms, declared_size: int) -> PrivacyPlan:
    return PrivacyPlan(terms, declared_size)  # one object a node, whose digest is computed once


@dataclass(frozen=True)
class PrivacyPlan:
    """The terms as one node accepts them, with the size that it declares."""

    terms: PrivacyTerms
    declared_size: int

    def __post_init__(self) -> None:
        """Refuse a delta that protects nobody."""
        if self.declared_size < 1:
            raise PrivacyError(f"the declared size must be at least 1, got {self.declared_size}; declare the real size")
        if self.terms.delta * self.declared_size > 1 + 1e-9:
            raise PrivacyError(
                f"privacy.delta must be at most 1/{self.declared_size} = {1 / self.declared_size:.3g} (one over the "
                f"declared size), got {self.terms.delta:.3g}; choose a smaller delta"
            )
        if self.terms.trust == "secagg" and self.declared_size > self.terms.largest_node:
            raise PrivacyError(
                f"privacy.largest_node must be at least the declared size of every node, {self.declared_size} here, "
                f"got {self.terms.largest_node}; raise it"
            )

    @property
    def expected_batch(self) -> float:
        """The divisor of every noised sum: q times the declared size, never the size of a batch that was drawn."""
        return self.terms.sampling_rate * self.declared_size

    @cached_property
    def digest(self) -> str:
        """SHA-256, in hex, over terms and declared size."""
        return sha256_hex("fedgraft privacy plan 1", canonical_json(self.to_dict()))

    def to_dict(self) -> dict[str, Any]:
        """Plain values; ``from_dict`` reads them back."""
        return {"terms": self.terms.to_dict(), "declared_size": self.declared_size}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> PrivacyPlan:
        """Read a plan back; errors as for ``PrivacyTerms.from_dict``."""
        _require_keys(values, {"terms", "declared_size"}, "privacy plan")
        if not isinstance(values["terms"], Mapping):
            raise ProtocolError("a privacy plan holds its terms as a table, got something else; refuse the message")
        return cls(PrivacyTerms.from_dict(values["terms"]), _typed("declared_size", values["declared_size"], int))


_TYPES: dict[str, type] = {
    "unit": str,
    "trust": str,
    "sampling_rate": float,
    "rounds": int,
    "steps_per_round": int,
    "clipping_norm": float,
    "noise_multiplier": float,
    "delta": float,
    "relation": str,
    "records_per_unit": int,
    "nodes": int,
    "dropouts": int,
    "colluders": int,
    "largest_node": int,
    "hospitals_per_unit": int,
}
_OF_SUMS = ("nodes", "dropouts", "colluders", "largest_node")
assert set(_TYPES) == {field.name for field in fields(PrivacyTerms)}


def _types(unit: object, trust: object, hospitals: object) -> dict[str, type]:
    """The keys of terms; ledgers of records are as old as the project, and have none that came later."""
    without = set() if unit == "patient" else {"records_per_unit"}
    if hospitals == 1:
        without.add("hospitals_per_unit")
    if trust != "secagg":
        without.update(_OF_SUMS)
    return {name: kind for name, kind in _TYPES.items() if name not in without}


def _require_choice(name: str, value: str, *allowed: str) -> None:
    if value not in allowed:
        choices = " or ".join(map(repr, allowed))
        raise PrivacyError(f"privacy.{name} must be {choices}, got {value!r}; choose one")


def _require_between(name: str, value: float, low: float, high: float) -> None:
    if not (math.isfinite(value) and low <= value <= high):
        key = name if "." in name else f"privacy.{name}"
        raise PrivacyError(f"{key} must be between {low:g} and {high:g}, got {value!r}; choose another value")


def _require_keys(values: Mapping[str, Any], expected: set[str], what: str) -> None:
    if set(values) != expected:
        wrong = sorted(expected.symmetric_difference(map(str, values)))
        raise ProtocolError(f"{what} must have exactly their keys, wrong are {', '.join(wrong)}; use matching versions")


def _typed(name: str, value: Any, kind: type) -> Any:
    number = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    if kind is float and number:
        return float(value)
    if kind is int and number and value == int(value):
        return int(value)
    if kind is str and isinstance(value, str):
        return value
    raise ProtocolError(f"privacy {name} must be of type {kind.__name__}, got {value!r}; use matching versions")

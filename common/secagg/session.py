"""What a round of secure aggregation is about: public constants, whose digest every message of it is bound to."""

from __future__ import annotations

from functools import cached_property
from typing import Annotated

from pydantic import Field, StringConstraints, model_validator

from common.errors import PrivacyError
from common.privacy.canonical import canonical_json, sha256_hex
from common.secagg.roster import MOST_NODES, NAME, Roster
from common.strict import Strict

LEAST_NODES, MOST_LENGTH, MOST_ATTEMPTS, MOST_ROUNDS = 3, 2**26, 1000, 1_000_000

Digest = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]
NodeName = Annotated[str, StringConstraints(pattern=NAME)]


class SumTerms(Strict):
    """What is summed, and against whom it is protected.

    Attributes:
        nodes: n, the least number of nodes in a cohort.
        dropouts: how many of n may be missing from a sum; with more, the round is discarded.
        colluders: how many nodes may work together with the server, or for it.
        modulus_bits: b; sums are taken modulo 2^b, and an overflow wraps without a word.
        length: of the summed vectors.

    Raises:
        PrivacyError: with so many drop-outs or colluders a server could show the nodes two sets of survivors, or a sum
            of a single hospital's.
    """

    nodes: int = Field(ge=LEAST_NODES, le=MOST_NODES)
    dropouts: int = Field(ge=0)
    colluders: int = Field(ge=0)
    modulus_bits: int = Field(ge=8, le=64)
    length: int = Field(ge=1, le=MOST_LENGTH)

    @model_validator(mode="after")
    def _safe(self) -> SumTerms:
        if self.nodes - self.colluders < 2:
            raise PrivacyError(
                f"at least two of {self.nodes} nodes must not collude, got {self.colluders} colluders; allow for fewer"
            )
        if self.threshold_of(self.nodes) > self.survivors:
            most = self.nodes - self.threshold_of(self.nodes)
            raise PrivacyError(
                f"with {self.nodes} nodes and {self.colluders} colluders at most {most} drop-outs are safe, got "
                f"{self.dropouts}: a server could show two halves of the nodes different survivors; allow for fewer"
            )
        return self

    @property
    def survivors(self) -> int:
        """The least number of survivors, n - dropouts: with fewer, colluders included, a round is discarded."""
        return self.nodes - self.dropouts

    def threshold_of(self, members: int) -> int:
        """The least t with 2t > members + colluders: of two sets of t, one honest node is in both.

        Source: Bonawitz et al. 2017, doi:10.1145/3133956.3133982, section 6 (active adversaries).
        """
        return (members + self.colluders) // 2 + 1


class SumRun(Strict):
    """What stays the same in all rounds of a run, as a node accepted it.

    Attributes:
        run_id: ours, not Flower's.
        plan_digest: of the plan that the run keeps to.
        terms: what is summed.
    """

    run_id: str = Field(pattern=r"^[0-9A-Za-z._-]{1,64}$")
    plan_digest: Digest
    terms: SumTerms


class Member(Strict):
    """A node of a cohort.

    Attributes:
        name: of the node.
        fingerprint: of its key.
    """

    name: NodeName
    fingerprint: str = Field(pattern=r"^SHA256:[0-9A-Za-z+/]{43}$")


class Session(Strict):
    """One try to sum one round over one cohort.

    Attributes:
        run: what the run is about.
        round: 1-based.
        attempt: 1-based; another one of the same round is possible until a node has sent its masked vector.
        cohort: who is asked, in the order of their names; a node's place in it, from 1, is its point in secret sharing.

    Raises:
        PrivacyError: there are fewer nodes than the run's terms ask for, or a name or key is there twice.
    """

    run: SumRun
    round: int = Field(ge=1, le=MOST_ROUNDS)
    attempt: int = Field(ge=1, le=MOST_ATTEMPTS)
    cohort: tuple[Member, ...] = Field(max_length=MOST_NODES)

    @model_validator(mode="after")
    def _enough(self) -> Session:
        names = [member.name for member in self.cohort]
        if len(names) < self.run.terms.nodes:
            raise PrivacyError(
                f"a cohort must have at least {self.run.terms.nodes} nodes, got {len(names)}; take no part in it"
            )
        if names != sorted(set(names)) or len({member.fingerprint for member in self.cohort}) != len(names):
            raise PrivacyError("a cohort must name each node and key once, in order, this one does not; refuse it")
        return self

    @classmethod
    def of(cls, run: SumRun, round: int, roster: Roster, *, attempt: int = 1) -> Session:
        """A session of all nodes of a roster."""
        cohort = tuple(Member(name=name, fingerprint=print_) for name, print_ in roster.fingerprints.items())
        return cls(run=run, round=round, attempt=attempt, cohort=cohort)

    @cached_property
    def digest(self) -> str:
        """SHA-256, in hex; signatures, keys and sealed shares are bound to it."""
        return sha256_hex("fedgraft secagg session 1", canonical_json(self.model_dump(mode="json")))

    @cached_property
    def points(self) -> dict[str, int]:
        """Each node's point in secret sharing."""
        return {member.name: place for place, member in enumerate(self.cohort, start=1)}

    @property
    def terms(self) -> SumTerms:
        """The run's."""
        return self.run.terms

    @property
    def threshold(self) -> int:
        """t: so many shares give a secret back, and so many nodes must have signed the survivors."""
        return self.terms.threshold_of(len(self.cohort))

    @property
    def needed(self) -> int:
        """How many nodes must be left at every stage up to the masked vectors."""
        return max(self.terms.survivors, self.threshold)

    def check_keys(self, roster: Roster) -> None:
        """Make sure that every member has the key that the operators exchanged.

        Raises:
            PrivacyError: a node is unknown, or has another key.
        """
        for member in self.cohort:
            known = roster.fingerprints.get(member.name)
            if known is None:
                raise PrivacyError(
                    f"every node of a cohort must be among the approved peers, {member.name} is not; ask that hospital "
                    "for its key, then run `fedgraft node approve peers FILE`"
                )
            if known != member.fingerprint:
                raise PrivacyError(
                    f"the server names another key for {member.name} ({member.fingerprint}) than the approved peers "
                    f"({known}); telephone that hospital, and approve its new key only if it has one"
                )

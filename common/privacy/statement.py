"""What a chain of ledger entries amounts to: its balance, and the statement that reports and auditors read."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from common.errors import FederationError
from common.privacy.accountant import Accountant, Event, Spent, epsilon_after, epsilon_pld, epsilon_spent
from common.privacy.entries import GENESIS, LedgerEntry, broken_chain, verify_chain
from common.privacy.plan import PrivacyPlan, PrivacyTerms


class Spend(NamedTuple):
    """What is charged once: one round of one run, answered by one node from one head.

    Attributes:
        run_id: our own id of the run (Flower's changes on resume).
        round: number of the round.
        head_digest: SHA-256, in hex, of the head that the server sent.
        node: name of the node that answers; several nodes may share a ledger, and each one's answer is a release.
        session: digest of the session of secure aggregation that the answer is summed in, empty where it is not
            summed. One ledger answers in a session once: two answers in one sum would move it by twice the clipping
            norm.
    """

    run_id: str
    round: int
    head_digest: str
    node: str = ""
    session: str = ""


class Instance(NamedTuple):
    """A plan as used by one run; the parameters within it are fixed before its first round."""

    digest: str
    run_id: str


class Charge(NamedTuple):
    """The key of a reservation."""

    digest: str
    spend: Spend


@dataclass(frozen=True)
class Statement:
    """What was spent on a data set so far.

    Attributes:
        dataset_id: as the operator declares it.
        unit: whom one unit of protection covers, ``"record"``; None before the first plan.
        epsilon: spent; open reservations included.
        delta: of this data set.
        epsilon_cap: a round that would pass it is refused.
        accountant: ``"PLD"`` for one plan, ``"RDP (adaptive)"`` for several.
        epsilon_pld_non_adaptive: what PLD would say of all plans, had they been fixed beforehand; for information.
        steps: noised steps charged.
        committed: (run id, round) of replies that may have left, in order.
        open_reservations: (run id, round) charged whose reply was never made: spent for ever.
        chain_head: hash of the last entry; keep it outside the file.
        entries: how many there are.
        charged: the terms of each plan that was charged, and for how many rounds.
    """

    dataset_id: str
    unit: str | None
    epsilon: float
    delta: float
    epsilon_cap: float
    accountant: Accountant
    epsilon_pld_non_adaptive: float
    steps: int
    committed: tuple[tuple[str, int], ...]
    open_reservations: tuple[tuple[str, int], ...]
    chain_head: str
    entries: int
    charged: tuple[tuple[PrivacyTerms, int], ...] = ()

    @property
    def trusts(self) -> tuple[str, ...]:
        """Trust models of what was charged, in the order of their names."""
        return tuple(sorted({terms.trust for terms, _ in self.charged}))

    @property
    def epsilon_against_model(self) -> float:
        """Epsilon against whoever sees the models only; ``epsilon`` is against the server with the colluders, too.

        The two differ where rounds were sums over nodes.
        """
        if "secagg" not in self.trusts:
            return self.epsilon
        return min(self.epsilon, spent_on([(terms.as_readers_see, rounds) for terms, rounds in self.charged]).epsilon)


@dataclass
class Balance:
    """The running state of a ledger, advanced entry by entry.

    It may let go of what it knows of old rounds: then ``forgotten`` is the newest of them, and whoever asks about a
    round up to that one, or for a statement, reads the chain anew.
    """

    position: int = 0
    head: str = GENESIS
    dataset_id: str = ""
    delta: float = 0.0
    epsilon_cap: float = 0.0
    plans: dict[Instance, PrivacyPlan] = field(default_factory=dict)
    rounds: dict[Instance, int] = field(default_factory=dict)
    reservations: dict[Charge, int] = field(default_factory=dict)
    sessions: dict[str, Charge] = field(default_factory=dict)
    charges: dict[int, Charge] = field(default_factory=dict)
    committed: dict[int, str] = field(default_factory=dict)
    forgotten: int = 0

    def extend(self, entries: Iterable[LedgerEntry]) -> None:
        """Verify entries that follow, and count them.

        Raises:
            PrivacyError: the chain is broken, or an entry makes no sense where it stands.
        """
        for entry in entries:
            verify_chain([entry], position=self.position, previous=self.head)
            self.add(entry)

    def add(self, entry: LedgerEntry) -> None:
        """Count an entry that is known to follow, as it was just made to.

        Raises:
            PrivacyError: it makes no sense where it stands.
        """
        try:
            self._apply(entry.kind, entry.body)
        except (LookupError, TypeError, ValueError, FederationError) as error:
            raise broken_chain(f"entry {self.position} makes no sense where it stands") from error
        self.position, self.head = self.position + 1, entry.hash

    def forget(self, newest: Spend) -> None:
        """Let go of the released rounds of a run but its newest; what they cost stays counted."""
        for position, charge in list(self.charges.items()):
            spend = charge.spend
            if position in self.committed and spend.run_id == newest.run_id and spend.round != newest.round:
                del self.charges[position], self.committed[position], self.reservations[charge]
                self.sessions.pop(spend.session, None)
                self.forgotten = max(self.forgotten, spend.round)

    def with_round(self, plan: PrivacyPlan, run_id: str) -> Spent:
        """Epsilon spent if one more round of ``plan`` were charged."""
        return self._with_rounds(plan, run_id, self.rounds.get(Instance(plan.digest, run_id), 0) + 1)

    def with_plan(self, plan: PrivacyPlan, run_id: str) -> Spent:
        """Epsilon spent if ``plan`` were charged to its last round."""
        return self._with_rounds(
            plan, run_id, max(self.rounds.get(Instance(plan.digest, run_id), 0), plan.terms.rounds)
        )

    def spent(self) -> Spent:
        """Epsilon spent so far."""
        return spent_by(self.plans, self.rounds)

    def statement(self) -> Statement:
        """Sum up for people."""
        assert not self.forgotten
        spent = self.spent()
        done = [self.charges[position].spend for position in self.committed]
        waiting = [charge.spend for position, charge in self.charges.items() if position not in self.committed]
        return Statement(
            dataset_id=self.dataset_id,
            unit=self.unit,
            epsilon=spent.epsilon,
            delta=self.delta,
            epsilon_cap=self.epsilon_cap,
            accountant=spent.accountant,
            epsilon_pld_non_adaptive=self._non_adaptive(spent),
            steps=sum(count * self.plans[key].terms.steps_per_round for key, count in self.rounds.items()),
            committed=tuple((spend.run_id, spend.round) for spend in done),
            open_reservations=tuple((spend.run_id, spend.round) for spend in waiting),
            chain_head=self.head,
            entries=self.position,
            charged=tuple((self.plans[key].terms, count) for key, count in self.rounds.items() if count),
        )

    @property
    def unit(self) -> str | None:
        """The unit of all plans (one ledger never mixes them), None before the first."""
        return next((plan.terms.unit for plan in self.plans.values()), None)

    def _with_rounds(self, plan: PrivacyPlan, run_id: str, rounds: int) -> Spent:
        instance = Instance(plan.digest, run_id)
        return spent_by({**self.plans, instance: plan}, {**self.rounds, instance: rounds})

    def _non_adaptive(self, spent: Spent) -> float:
        if spent.accountant == "PLD":
            return spent.epsilon
        return epsilon_pld([_event(self.plans[key].terms, count) for key, count in self.rounds.items()], self.delta)

    def _apply(self, kind: str, body: dict[str, Any]) -> None:
        if (kind == "opened") != (self.position == 0):
            raise ValueError("a ledger is opened once")
        if kind in ("opened", "cap"):
            self._apply_limits(body)
        elif kind == "plan":
            self._apply_plan(Instance(body["digest"], body["run_id"]), PrivacyPlan.from_dict(body["plan"]))
        elif kind == "reserve":
            self._apply_reserve(body)
        elif kind == "commit":
            self._apply_commit(body["reservation"], body["reply_sha256"])
        else:
            raise ValueError("unknown kind")

    def _apply_limits(self, body: dict[str, Any]) -> None:
        if self.position == 0:
            self.dataset_id, self.delta = str(body["dataset_id"]), float(body["delta"])
        elif {"dataset_id", "delta"} & set(body):
            raise ValueError("fixed when the ledger was opened")
        self.epsilon_cap = float(body["epsilon_cap"])

    def _apply_plan(self, instance: Instance, plan: PrivacyPlan) -> None:
        if instance in self.plans or plan.digest != instance.digest or plan.terms.delta != self.delta:
            raise ValueError("not a new plan of this ledger")
        self.plans[instance] = plan

    def _apply_reserve(self, body: dict[str, Any]) -> None:
        node, session = str(body.get("node", "")), str(body.get("session", ""))
        charge = Charge(body["digest"], Spend(body["run_id"], body["round"], body["head"], node, session))
        instance = Instance(body["digest"], body["run_id"])
        if charge in self.reservations or body["steps"] != self.plans[instance].terms.steps_per_round:
            raise ValueError("not a new charge of its plan")
        if session in self.sessions:
            raise ValueError("a second answer in one sum")
        if session:
            self.sessions[session] = charge
        self.rounds[instance] = self.rounds.get(instance, 0) + 1
        self.reservations[charge] = self.position
        self.charges[self.position] = charge

    def _apply_commit(self, reservation: int, reply_sha256: str) -> None:
        if reservation not in self.charges or reservation in self.committed:
            raise ValueError("not an open reservation")
        self.committed[reservation] = reply_sha256


def statement_of(entries: Iterable[LedgerEntry]) -> Statement:
    """Verify a whole chain and sum it up, for an auditor who has the file only (see ``entries.read_entries``).

    Raises:
        PrivacyError: the chain is broken.
    """
    balance = Balance()
    balance.extend(entries)
    return balance.statement()


def spent_by(plans: dict[Instance, PrivacyPlan], rounds: dict[Instance, int]) -> Spent:
    """Epsilon of so many rounds of each plan; see ``spent_on``."""
    return spent_on([(plans[key].terms, count) for key, count in rounds.items()])


def spent_on(charged: Iterable[tuple[PrivacyTerms, int]]) -> Spent:
    """Epsilon of terms and rounds charged for them: by PLD where there is one plan, by RDP where several."""
    counted = [(terms, count) for terms, count in charged if count > 0]
    if len(counted) == 1 and counted[0][1] <= counted[0][0].rounds:
        return Spent(epsilon_after(*counted[0]), "PLD")
    events = {place: [_event(terms, count)] for place, (terms, count) in enumerate(counted)}
    return epsilon_spent(events, max((terms.delta for terms, _ in counted), default=0.5))


def _event(terms: PrivacyTerms, rounds: int) -> Event:
    return Event(terms.noise_multiplier, terms.sampling_rate, rounds * terms.steps_per_round)

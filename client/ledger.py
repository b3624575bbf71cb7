"""The privacy ledger of one data set: one SQLite file, paid before anything is released, never rewritten.

A round is charged in two transactions: ``reserve`` before training, ``commit`` with the reply's bytes after it. What a
crash leaves between them is an open reservation, which stays spent. Only the newest committed round's replies of each
run are kept, so that the file does not grow with what it protects; entries are kept for ever.
"""

from __future__ import annotations

import hashlib
import math
import sqlite3
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from client.anchor import Anchor, older_ledger, read_anchor
from client.caps import check_session, check_terms, check_whole
from client.ledger_file import connect, create_file, make_schema_once, schema_version, sentences
from common.errors import BudgetSpentError, ConfigError, PrivacyError, ReleasedOnceError
from common.privacy.entries import SCHEMA_VERSION, broken_chain, check_triggers, fetch_entries, make_entry
from common.privacy.plan import PrivacyPlan
from common.privacy.statement import Balance, Charge, Instance, Spend, Statement

__all__ = ["Ledger", "Reservation", "Spend", "Statement", "StoredReply"]

REMEMBERED_LEDGERS = 32_768  # a few kilobytes each
MOST_WORDS = 500  # characters of a name or a reason in the chain

_verified: OrderedDict[str, Balance] = OrderedDict()  # path -> balance of a chain verified by this process


@dataclass(frozen=True)
class Reservation:
    """A round that is paid for and not released yet.

    Attributes:
        position: of its entry in the chain.
        charge: plan digest and spend.
        retried: whether it had been reserved before, by a try that never committed.
    """

    position: int
    charge: Charge
    retried: bool


@dataclass(frozen=True)
class StoredReply:
    """The bytes that a committed round was answered with: send them again, and train nothing."""

    reply: bytes


class Ledger:
    """One data set's ledger, open. Use it as a context manager; two processes may hold the same file."""

    def __init__(
        self,
        path: Path,
        connection: sqlite3.Connection,
        balance: Balance,
        durable: bool,
        alone: bool = False,
        anchor: Path | None = None,
    ) -> None:
        self._path, self._anchor = path, anchor
        self._cap_wanted: float | None = None
        self._connection = connection
        self._balance = balance
        self._durable = durable
        self._alone = alone
        self._current = False  # nobody else can have written since the balance was brought up to date

    @classmethod
    def open(
        cls,
        path: Path,
        dataset_id: str,
        *,
        delta: float,
        epsilon_cap: float,
        durable: bool = True,
        alone: bool = False,
        anchor: Path | None = None,
    ) -> Ledger:
        """Open the ledger of a data set, making it where there is none.

        Args:
            path: the file; its folder must exist.
            dataset_id: declared by the operator; the same for overlapping data, never derived from path or content.
            delta: fixed for this data set for ever.
            epsilon_cap: the operator's cap; a lower one than before is recorded as an entry, under a higher one nothing
                is charged before ``raise_cap``.
            durable: survive a power cut (``synchronous=FULL``); False, for simulations, survives a killed process.
            alone: keep every other process from the file until it is closed, and only the newest round in memory; a
                transaction takes a third of the time.
            anchor: file outside the ledger's folder, in which it is kept how far the ledger has grown; None keeps
                nothing.

        Returns:
            The ledger, its chain verified: all of it the first time this process opens the file, then what is new.

        Raises:
            PrivacyError: the chain is broken, the file is no ledger or went back in time, or it belongs to another
                data set or delta; or it lacks what the anchor has seen.
            ConfigError: the file cannot be read or written, or the cap is not positive.
        """
        if not (0 < epsilon_cap < math.inf and 0 < delta < 1):
            raise ConfigError(
                f"a ledger needs an epsilon cap above 0 and a delta between 0 and 1, got {epsilon_cap!r} and "
                f"{delta!r}; choose finite ones"
            )
        key = str(path.absolute())
        seen = None if anchor is None else read_anchor(anchor)
        if anchor is not None and seen is not None and not path.exists():
            raise older_ledger(path, anchor, seen)
        created = create_file(path, durable)
        balance = Balance() if created else _verified.pop(key, Balance())
        with sentences(path):
            ledger = cls(path, connect(path, durable, alone), balance, durable, alone, anchor)
            try:
                ledger._prepare(dataset_id, delta, epsilon_cap, seen)
            except BaseException:
                ledger.close()
                raise
        return ledger

    def reserve(self, spend: Spend, plan: PrivacyPlan, *, whole: bool = False) -> Reservation | StoredReply:
        """Pay for one round before it is trained.

        Args:
            spend: run, round, head, node and session. The same spend again is a retry and costs nothing more; another
                head for the same round is another release, and is charged, and so is another node's answer.
            plan: the terms accepted for this run; it gives the cost.
            whole: refuse the round unless the plan fits to its last one.

        Returns:
            A reservation, to be committed with the reply; or the reply itself where the round was committed before.

        Raises:
            PrivacyError: the cap would be passed, or delta or unit are not the ledger's, or the reply that was sent is
                no longer kept, or something else was charged for this session. Nothing is charged then.
            ConfigError: the disk is full, or another process holds the file too long. Nothing is charged then.
        """
        charge = Charge(plan.digest, spend)
        with self._transaction():
            if spend.round <= self._balance.forgotten:
                self._recall()
            position = self._balance.reservations.get(charge)
            if position is None:
                if whole:
                    check_whole(self._balance, plan, spend.run_id, self._cap_wanted)
                self._charge(charge, plan)
                return Reservation(self._balance.position - 1, charge, retried=False)
            if position in self._balance.committed:
                return self._stored_reply(position, spend)
            return Reservation(position, charge, retried=True)

    def commit(self, reservation: Reservation, reply: bytes) -> None:
        """Record the reply, before it leaves: hash in the chain and bytes beside it, in one transaction.

        Raises:
            PrivacyError: the reservation is not this ledger's, or was committed with other bytes (by another process,
                say): send nothing, and reserve again to get the stored reply.
            ConfigError: the disk is full, or another process holds the file too long; the reservation stays spent.
        """
        digest = hashlib.sha256(reply).hexdigest()
        with self._transaction():
            if self._balance.charges.get(reservation.position) != reservation.charge:
                raise PrivacyError("a reply must belong to a reservation of this ledger, got another; reserve first")
            before = self._balance.committed.get(reservation.position)
            if before is None:
                self._append("commit", {"reservation": reservation.position, "reply_sha256": digest})
                self._store(reservation, reply)
                if self._alone:
                    self._balance.forget(reservation.charge.spend)
            elif before != digest:
                raise ReleasedOnceError(
                    f"round {reservation.charge.spend.round} must be released once, but another reply was committed "
                    "already; send nothing and reserve again to get the stored one"
                )

    def settle(self, reservation: Reservation, reply: bytes) -> bytes:
        """Commit a reply, and return the one that may leave: this one, unless another process was quicker.

        A message that is repeated while the first is still being worked on, after a restart say, makes two of them.
        Errors as in ``commit``, and as in ``reserve`` where the other reply is no longer kept.
        """
        try:
            self.commit(reservation, reply)
        except ReleasedOnceError:
            with self._transaction():
                return self._stored_reply(reservation.position, reservation.charge.spend).reply
        return reply

    def raise_cap(self, by: str, reason: str = "") -> None:
        """Put the operator's sign-off for the cap that the ledger was opened with into the chain, where it is higher.

        Args:
            by: who decided.
            reason: why, if they say.

        Raises:
            ConfigError: nobody is named, or a text is too long or has characters that cannot be shown; or the disk is
                full.
        """
        if not by.strip() or max(len(by), len(reason)) > MOST_WORDS or not (by + reason).isprintable():
            raise ConfigError(
                f"a sign-off needs a name, and texts of one line and at most {MOST_WORDS} characters; give --by and "
                "--reason anew"
            )
        if self._cap_wanted is None:
            return
        with self._transaction():
            if self._cap_wanted > self._balance.epsilon_cap:
                said = {"signed_off_by": by.strip()} | ({"reason": reason.strip()} if reason.strip() else {})
                self._append("cap", {"epsilon_cap": self._cap_wanted, **said})
        self._cap_wanted = None

    def check_plan(self, plan: PrivacyPlan, run_id: str, *, whole: bool = True) -> None:
        """Make sure that a plan fits, without charging anything.

        Args:
            plan: the terms that are offered.
            run_id: of the run.
            whole: it must fit to its last round.

        Raises:
            PrivacyError: the cap would be passed or was not signed off, or delta or unit are not the ledger's.
        """
        with sentences(self._path):
            self._balance.extend(fetch_entries(self._connection, self._balance.position))
        check_terms(self._balance, plan, self._cap_wanted)
        if whole:
            check_whole(self._balance, plan, run_id, self._cap_wanted)

    def statement(self) -> Statement:
        """Say what was spent, other processes' charges included."""
        with sentences(self._path):
            if self._balance.forgotten:
                self._recall()
            self._balance.extend(fetch_entries(self._connection, self._balance.position))
        return self._balance.statement()

    def contains(self, chain_head: str) -> bool:
        """Say whether the chain passed through this hash: an exported head that it lacks means a restored backup."""
        with sentences(self._path):
            return bool(self._connection.execute("SELECT 1 FROM entries WHERE hash = ?", (chain_head,)).fetchone())

    def verify(self) -> None:
        """Check everything from the file alone: SQLite's structure, the triggers, the whole chain, the kept replies.

        Raises:
            PrivacyError: something is not as it was written.
        """
        with sentences(self._path):
            if self._connection.execute("PRAGMA quick_check(1)").fetchone() != ("ok",):
                raise broken_chain("the file is damaged")
            check_triggers(self._connection)
            fresh = Balance()
            fresh.extend(fetch_entries(self._connection))
            self._verify_replies(fresh)

    def close(self) -> None:
        """Close the file; what was verified of it is remembered by this process."""
        self._connection.close()
        _remember(str(self._path.absolute()), self._balance)

    def __enter__(self) -> Self:
        """Return itself."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Close."""
        self.close()

    def _prepare(self, dataset_id: str, delta: float, epsilon_cap: float, seen: Anchor | None) -> None:
        """Bring the balance up to date, writing only where there is something to write."""
        if self._balance.position > 0:
            self._catch_up()
        elif schema_version(self._connection) == SCHEMA_VERSION:
            self._balance.extend(fetch_entries(self._connection))
        self._check_grown(seen)
        if self._balance.position == 0:
            self._found(dataset_id, delta, epsilon_cap)
        self._check_owner(dataset_id, delta)
        if epsilon_cap > self._balance.epsilon_cap:
            self._cap_wanted = epsilon_cap
        elif epsilon_cap < self._balance.epsilon_cap:
            with self._transaction():
                if epsilon_cap < self._balance.epsilon_cap:  # unless another process lowered it just now
                    self._append("cap", {"epsilon_cap": epsilon_cap})

    def _found(self, dataset_id: str, delta: float, epsilon_cap: float) -> None:
        """Make the tables and the first entry, unless another process was quicker."""
        with self._transaction():
            if self._balance.position == 0:
                self._append("opened", {"dataset_id": dataset_id, "delta": delta, "epsilon_cap": epsilon_cap})

    def _catch_up(self) -> None:
        """Read what is new since this process saw the file, which must still hold what it saw then."""
        entries = fetch_entries(self._connection, self._balance.position - 1)
        if not entries or entries[0].hash != self._balance.head:
            raise broken_chain("it lost entries that this process has seen (an older copy was put in its place)")
        if entries[1:] and self._balance.forgotten:
            self._recall()
        else:
            self._balance.extend(entries[1:])

    def _check_grown(self, seen: Anchor | None) -> None:
        """Make sure that the chain holds what was seen of it."""
        if self._anchor is None or seen is None:
            return
        if seen.entries > self._balance.position or not self.contains(seen.head):
            raise older_ledger(self._path, self._anchor, seen)

    def _recall(self) -> None:
        """Read the whole chain anew, rounds that were forgotten too."""
        self._balance = Balance()
        self._balance.extend(fetch_entries(self._connection))

    def _check_owner(self, dataset_id: str, delta: float) -> None:
        mine = self._balance
        if mine.dataset_id != dataset_id:
            raise PrivacyError(
                f"{self._path} must be the ledger of data set {dataset_id!r}, but it is that of {mine.dataset_id!r}; "
                "give each data set id a ledger of its own"
            )
        if mine.delta != delta:
            raise PrivacyError(
                f"delta of data set {dataset_id!r} must stay {mine.delta:g}, got {delta:g}; use the delta that its "
                "ledger was opened with"
            )

    def _charge(self, charge: Charge, plan: PrivacyPlan) -> None:
        check_terms(self._balance, plan, self._cap_wanted)
        check_session(self._balance, charge.spend)
        after = self._balance.with_round(plan, charge.spend.run_id)
        if not after.epsilon <= self._balance.epsilon_cap:
            raise BudgetSpentError(
                f"the privacy budget of data set {self._balance.dataset_id!r} must stay within epsilon "
                f"{self._balance.epsilon_cap:g}, but round {charge.spend.round} would make it {after.epsilon:.4g} "
                f"({after.accountant}); stop here, or have the operator raise the cap"
            )
        if Instance(plan.digest, charge.spend.run_id) not in self._balance.plans:
            self._append("plan", {"run_id": charge.spend.run_id, "digest": plan.digest, "plan": plan.to_dict()})
        self._append("reserve", _reserve_body(charge, plan))

    def _stored_reply(self, position: int, spend: Spend) -> StoredReply:
        row = self._connection.execute("SELECT reply FROM replies WHERE reservation = ?", (position,)).fetchone()
        if row is None:
            raise PrivacyError(
                f"round {spend.round} of run {spend.run_id!r} must not be released twice, and its reply is no longer "
                "kept as a later round was released; resume from the newest checkpoint"
            )
        if hashlib.sha256(row[0]).hexdigest() != self._balance.committed[position]:
            raise broken_chain(f"the reply kept for entry {position} is not the one that was committed")
        return StoredReply(row[0])

    def _store(self, reservation: Reservation, reply: bytes) -> None:
        spend = reservation.charge.spend
        kept = (spend.run_id, spend.round)
        self._connection.execute("DELETE FROM replies WHERE run_id = ? AND round < ?", kept)
        self._connection.execute("INSERT INTO replies VALUES (?, ?, ?, ?)", (reservation.position, *kept, reply))

    def _append(self, kind: str, body: Mapping[str, Any]) -> None:
        at = {"at": datetime.now(UTC).isoformat(timespec="seconds")} if self._durable else {}
        entry = make_entry(self._balance.position, self._balance.head, kind, {**body, **at})
        row = (entry.position, entry.text, entry.hash)
        self._connection.execute("INSERT INTO entries VALUES (?, ?, ?)", row)
        self._balance.add(entry)

    @contextmanager
    def _transaction(self) -> Iterator[None]:
        """Hold the file alone, with the balance brought up to date; all or nothing, in the file and in memory."""
        before = -1
        with sentences(self._path):
            self._connection.execute("BEGIN IMMEDIATE")
            try:
                if self._balance.position == 0:
                    make_schema_once(self._connection)
                if not self._current:
                    self._balance.extend(fetch_entries(self._connection, self._balance.position))
                    self._current = self._alone
                before = self._balance.position
                yield
                self._connection.execute("COMMIT")
            except BaseException:
                self._roll_back(before)
                raise
            if self._anchor is not None and self._balance.position != before:
                Anchor(self._balance.position, self._balance.head).write(self._anchor)

    def _roll_back(self, position: int) -> None:
        if self._balance.position != position:
            self._balance = Balance()  # it counted what is undone now; the next transaction reads the file anew
            self._current = False
        if self._connection.in_transaction:
            self._connection.execute("ROLLBACK")

    def _verify_replies(self, balance: Balance) -> None:
        for position, reply in self._connection.execute("SELECT reservation, reply FROM replies"):
            if balance.committed.get(position) != hashlib.sha256(reply).hexdigest():
                raise broken_chain(f"the reply kept for entry {position} is not the one that was committed")


def _reserve_body(charge: Charge, plan: PrivacyPlan) -> dict[str, Any]:
    run_id, round, head, node, session = charge.spend
    steps = plan.terms.steps_per_round
    said = {"run_id": run_id, "digest": charge.digest, "round": round, "head": head, "steps": steps}
    return said | ({"node": node} if node else {}) | ({"session": session} if session else {})


def _remember(key: str, balance: Balance) -> None:
    _verified[key] = balance
    _verified.move_to_end(key)
    while len(_verified) > REMEMBERED_LEDGERS:
        _verified.popitem(last=False)

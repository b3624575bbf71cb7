"""Any order of reserving, committing, retrying and re-heading: what the ledger says is what its entries add up to."""

from __future__ import annotations

import json
import sqlite3
import tempfile
from collections import Counter
from contextlib import closing
from pathlib import Path

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from client.ledger import Ledger, Reservation, Spend, StoredReply
from common.errors import PrivacyError
from common.privacy.accountant import Event, epsilon_pld, epsilon_rdp
from common.privacy.plan import PrivacyTerms

DELTA, CAP = 1e-5, 4.0
PLANS = [
    PrivacyTerms("record", "local", 1.0, 8, 1, 1.0, 4.0, DELTA).for_node(100),
    PrivacyTerms("record", "local", 0.3, 6, 2, 1.0, 2.0, DELTA).for_node(100),
]


def recomputed_epsilon(path: Path) -> float:
    """From the raw rows, by none of the ledger's code."""
    with closing(sqlite3.connect(path)) as connection:
        bodies = [json.loads(text) for (text,) in connection.execute("SELECT text FROM entries ORDER BY position")]
    terms = {body["digest"]: body["plan"]["terms"] for body in bodies if body["kind"] == "plan"}
    steps: Counter[tuple[str, str]] = Counter()
    for body in bodies:
        if body["kind"] == "reserve":
            steps[body["digest"], body["run_id"]] += body["steps"]
    events = [Event(terms[d]["noise_multiplier"], terms[d]["sampling_rate"], n) for (d, _), n in steps.items()]
    return epsilon_pld(events, DELTA) if len(steps) <= 1 else epsilon_rdp(events, DELTA)


class LedgerMachine(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.folder = tempfile.TemporaryDirectory()
        self.path = Path(self.folder.name) / "ledger.db"
        self.waiting: dict[tuple[int, Spend], Reservation] = {}
        self.done: dict[tuple[int, Spend], Reservation] = {}
        self.released: dict[tuple[int, Spend], bytes] = {}
        self.epsilon = 0.0

    @initialize()
    def open(self) -> None:
        self.ledger = Ledger.open(self.path, "data", delta=DELTA, epsilon_cap=CAP, durable=False)

    @rule()
    def reopen(self) -> None:
        self.ledger.close()
        self.open()

    @rule(
        plan=st.sampled_from([0, 0, 0, 1]),
        run=st.sampled_from(["a", "a", "a", "b"]),
        round=st.integers(1, 8),
        head=st.sampled_from(["x", "x", "x", "y"]),
    )
    def reserve(self, plan: int, run: str, round: int, head: str) -> None:
        key = (plan, Spend(run, round, head))
        outcome = self.outcome(key)
        if isinstance(outcome, StoredReply):
            assert outcome.reply == self.released[key]
        elif isinstance(outcome, Reservation):
            assert outcome.retried == (key in self.waiting)
            assert key not in self.released
            self.waiting[key] = outcome
        else:
            assert key not in self.waiting
            assert ("no longer kept" in outcome) == (key in self.released)

    def outcome(self, key: tuple[int, Spend]) -> Reservation | StoredReply | str:
        try:
            return self.ledger.reserve(key[1], PLANS[key[0]])
        except PrivacyError as error:
            return str(error)

    @rule(data=st.data())
    def commit(self, data: st.DataObject) -> None:
        if self.waiting:
            key = data.draw(st.sampled_from(sorted(self.waiting)))
            reply = json.dumps(key).encode()
            self.done[key] = self.waiting.pop(key)
            self.ledger.commit(self.done[key], reply)
            self.released[key] = reply

    @rule(data=st.data())
    def commit_again(self, data: st.DataObject) -> None:
        if self.released:
            key = data.draw(st.sampled_from(sorted(self.released)))
            self.ledger.commit(self.done[key], self.released[key])
            with pytest.raises(PrivacyError, match="send nothing"):
                self.ledger.commit(self.done[key], b"another reply")

    @invariant()
    def says_what_was_spent(self) -> None:
        if not hasattr(self, "ledger"):
            return
        said = self.ledger.statement()
        assert self.epsilon <= said.epsilon <= CAP
        assert said.epsilon == pytest.approx(recomputed_epsilon(self.path), rel=1e-9)
        assert sorted(said.open_reservations) == sorted((s.run_id, s.round) for _, s in self.waiting)
        assert sorted(said.committed) == sorted((s.run_id, s.round) for _, s in self.released)
        self.epsilon = said.epsilon

    def teardown(self) -> None:
        if hasattr(self, "ledger"):
            self.ledger.verify()
            self.ledger.close()
        self.folder.cleanup()


TestLedgerMachine = LedgerMachine.TestCase
TestLedgerMachine.settings = settings(max_examples=25, stateful_step_count=25, deadline=None)

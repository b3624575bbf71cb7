"""Ledgers that tests open, spend from and play rounds with."""

from __future__ import annotations

from pathlib import Path

from client.ledger import Ledger, Reservation, Spend
from common.privacy.accountant import noise_multiplier_for
from common.privacy.plan import PrivacyPlan, PrivacyTerms

DELTA = 1e-5
SIGMA = noise_multiplier_for(3.0, DELTA, 1.0, 10)
PLAN = PrivacyTerms("record", "local", 1.0, 10, 1, 1.0, SIGMA, DELTA).for_node(100)


def open_ledger(path: Path, *, cap: float = 3.0, durable: bool = False, dataset: str = "x-rays") -> Ledger:
    return Ledger.open(path, dataset, delta=DELTA, epsilon_cap=cap, durable=durable)


def spend(round: int, head: str = "h", run: str = "run") -> Spend:
    return Spend(run, round, head)


def play(ledger: Ledger, rounds: int, plan: PrivacyPlan = PLAN, run: str = "run") -> None:
    for round in range(1, rounds + 1):
        reservation = ledger.reserve(spend(round, run=run), plan)
        assert isinstance(reservation, Reservation)
        ledger.commit(reservation, b"reply %d" % round)

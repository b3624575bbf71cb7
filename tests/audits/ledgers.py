"""Ledgers to audit: charged by the node's own code, or crafted."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from client.ledger import Ledger, Reservation, Spend
from common.privacy.entries import GENESIS, LedgerEntry, make_entry, read_entries
from common.privacy.export import export_ledger
from common.privacy.plan import PrivacyTerms
from simulations.audits.ledger_audit import LedgerAudit, LedgerFinding, audit_ledgers
from simulations.audits.ledger_files import LedgerFile, read_ledger_file
from tests.common.test_privacy_export import key_pair

ROOT = Path(__file__).parents[2]
DIGITS = ROOT / "simulations" / "configs" / "digits.toml"
FULL = PrivacyTerms("record", "local", 1.0, 30, 1, 1.6, 7.617, 1e-5)
SAMPLED = PrivacyTerms("record", "local", 0.1, 20, 2, 1.0, 2.0, 1e-5)


def spend(path: Path, terms: PrivacyTerms, rounds: int, *, run: str = "run", leave_open: int = 0, **given: Any) -> Path:
    """Charge rounds to a ledger, through the node's own code."""
    settings: dict[str, Any] = {"dataset_id": path.stem, "epsilon_cap": 8.0, "durable": False, **given}
    plan = terms.for_node(100)
    with Ledger.open(path, delta=terms.delta, **settings) as ledger:
        for round in range(1, rounds + 1):
            reservation = ledger.reserve(Spend(run, round, f"head {round}"), plan)
            assert isinstance(reservation, Reservation)
            if round <= rounds - leave_open:
                ledger.commit(reservation, b"reply %d" % round)
    return path


def audited(*paths: Path, **given: Any) -> LedgerAudit:
    return audit_ledgers([read_ledger_file(path) for path in paths], **given)


def one(*paths: Path, **given: Any) -> LedgerFinding:
    (finding,) = audited(*paths, **given).ledgers
    return finding


def crafted(*bodies: tuple[str, dict[str, object]]) -> LedgerFile:
    """A chain whose hashes hold, whatever it says."""
    found: list[LedgerEntry] = []
    for position, (kind, body) in enumerate(bodies):
        found.append(make_entry(position, found[-1].hash if found else GENESIS, kind, body))
    return LedgerFile(Path("crafted"), "ledger", tuple(found))


def opened(terms: PrivacyTerms, cap: float = 8.0) -> tuple[str, dict[str, object]]:
    return "opened", {"dataset_id": "crafted", "delta": terms.delta, "epsilon_cap": cap}


def accepted(terms: PrivacyTerms, run: str = "run") -> tuple[str, dict[str, object]]:
    plan = terms.for_node(1)
    return "plan", {"run_id": run, "digest": plan.digest, "plan": plan.to_dict()}


def charged(terms: PrivacyTerms, rounds: Sequence[int], run: str = "run") -> list[tuple[str, dict[str, object]]]:
    body = {"run_id": run, "digest": terms.for_node(1).digest, "head": "h", "steps": terms.steps_per_round}
    return [("reserve", {**body, "round": round}) for round in rounds]


def ledgers_of_two(place: Path) -> Path:
    """Two ledgers, a copy of each for auditors, and keys, in a folder that tests only read."""
    spend(place / "north.sqlite", FULL, 30, dataset_id="north")
    spend(place / "south.sqlite", SAMPLED, 10, dataset_id="south", leave_open=2, durable=True)
    key_pair(place, "node")
    key_pair(place, "other")
    export_ledger(read_entries(place / "north.sqlite"), place / "north.json", private_key=place / "node")
    export_ledger(read_entries(place / "south.sqlite"), place / "south.json")
    return place

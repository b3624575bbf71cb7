"""What must hold after every fault, and the row that the table gets."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from server.run_folder import run_identity
from tests.faults.federation import Federation
from tests.faults.replay import cohorts, excesses, same, uncovered
from tests.faults.steps import armed


@dataclass(frozen=True)
class Row:
    """A line of the table.

    Attributes:
        fault: what was done.
        sees: the words of a command or a log, and whose.
        outcome: what became of run and model.
        excess: what ledgers hold beyond what the server has, by node; "none" where nothing.
    """

    fault: str
    sees: str
    outcome: str
    excess: str = "none"


Rows = list[Row]


def settled(federation: Federation, run: Path, *, rounds: int, excess: Mapping[str, int] | None = None) -> str:
    """Check a run that has come to its end, and say what its nodes paid in excess.

    Args:
        federation: it was played in.
        run: its folder.
        rounds: that it must have.
        excess: how many rounds a node may have paid for in vain; nodes that are not named, none.
    """
    assert len(cohorts(run)) == rounds, f"{run.name} has {len(cohorts(run))} rounds, expected {rounds}"
    assert same(run, federation.homes), f"{run.name}: the head is not the documented cohorts'"
    assert not uncovered(run, federation.homes), f"{run.name}: {uncovered(run, federation.homes)} is in no ledger"
    found, run_id = excesses(run, federation.homes), run_identity(run)
    for one in found:
        allowed = (excess or {}).get(one.node, 0)
        assert len(one.open) + len(one.unused) <= allowed, f"{run.name}: {one}, at most {allowed} expected"
    for name, home in federation.homes.items():
        assert not armed(home), f"{name} never reached {armed(home)}"
        listed = [list(one.open) for one in found if one.node == name] or [[]]
        assert federation.open_rounds(name, run_id) == listed[0], f"{name} status lists other reservations"
        federation.type_here("node", "ledger", "verify", home=home)
    return "; ".join(map(str, found)) or "none"


def sentence(text: str) -> str:
    """The last sentence that a command said, without the bar before it; names of folders left out."""
    said = re.split(r"(?:^|\n)(?:error|refused): ", text)[-1]
    return re.sub(r"\s+", " ", re.sub(r"/\S+/", "…/", said)).strip()

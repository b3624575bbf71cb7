"""An audit of ledgers as tables for the terminal, and as plain values for scripts."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from rich.box import SIMPLE
from rich.console import Console
from rich.markup import escape
from rich.table import Table

if TYPE_CHECKING:
    from common.privacy.plan import PrivacyTerms
    from simulations.audits.ledger_audit import LedgerAudit, LedgerFinding
    from simulations.audits.ledger_files import LedgerFile
    from simulations.audits.ledger_history import AcceptedPlan, Charge


def show_ledgers(audit: LedgerAudit, console: Console) -> None:
    """Print what was spent, what was released, how the numbers hang together, and what no ledger shows."""
    console.print(_spent(audit.ledgers))
    console.print(_released(audit.ledgers))
    for line in _lines(audit):
        console.print(_plain(line), highlight=False, markup=False, soft_wrap=True)


def _spent(ledgers: Iterable[LedgerFinding]) -> Table:
    table = Table(title="ε, as the ledger says and computed anew", title_justify="left", box=SIMPLE)
    table.add_column("data set", overflow="fold")
    for name in ("ledger", "anew", "PLD", "RDP", "PRV", "cap", "at δ"):
        table.add_column(name, justify="right", no_wrap=True)
    for one in ledgers:
        by, history = one.epsilons, one.history
        values = (one.statement.epsilon, one.recomputed, by.pld, by.rdp, by.prv)
        shown = ["–" if value is None else _digits(value) for value in values]
        table.add_row(_cell(history.dataset_id), *shown, f"{history.caps[-1].epsilon:g}", f"{history.delta:g}")
    return table


def _released(ledgers: Sequence[LedgerFinding]) -> Table:
    table = Table(title="Rounds, by run", title_justify="left", box=SIMPLE)
    table.add_column("data set", overflow="fold")
    table.add_column("run", overflow="fold")
    for name in ("plan", "charged", "released", "open"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("when, UTC")
    numbers = _plan_numbers(ledgers)
    for one in ledgers:
        for plan in one.history.plans:
            done = sum(charge.committed is not None for charge in plan.charges)
            charged = f"{len(plan.charges)} of {plan.plan.terms.rounds}"
            counts = (str(numbers[plan.plan.terms]), charged, str(done), str(len(plan.charges) - done))
            table.add_row(_cell(one.history.dataset_id), _cell(plan.run_id), *counts, _cell(_when(plan)))
    return table


def _plan_numbers(ledgers: Sequence[LedgerFinding]) -> dict[PrivacyTerms, int]:
    """Number the different terms from 1."""
    terms = dict.fromkeys(plan.plan.terms for one in ledgers for plan in one.history.plans)
    return {one: number for number, one in enumerate(terms, start=1)}


def _plan_lines(ledgers: Sequence[LedgerFinding]) -> Iterator[str]:
    whole = {
        plan.plan.terms: epsilon for one in ledgers for plan, epsilon in zip(one.history.plans, one.whole, strict=True)
    }
    for terms, number in _plan_numbers(ledgers).items():
        yield (
            f"  plan {number}: σ = {terms.noise_multiplier:g}, q = {terms.sampling_rate:g}, C = "
            f"{terms.clipping_norm:.4g}, rounds × steps = {terms.rounds} × {terms.steps_per_round}; one {terms.unit}, "
            f"{terms.trust} trust; all of it, by itself, costs ε = {_digits(whole[terms])} at δ = {terms.delta:g}"
        )


def _when(plan: AcceptedPlan) -> str:
    times = [charge.at for charge in plan.charges if charge.at is not None]
    return "–" if not times else times[0] if len(times) == 1 else f"{times[0]} to {times[-1]}"


def _cell(text: str) -> str:
    return escape(_plain(text))


def _plain(text: str) -> str:
    """Names come from elsewhere, and may hold what moves a terminal's cursor."""
    return "".join(char if char.isprintable() else "?" for char in text)


def _digits(value: float) -> str:
    return f"{value:#.4g}"


def _lines(audit: LedgerAudit) -> Iterator[str]:
    yield from _plan_lines(audit.ledgers)
    yield from ("", "How the numbers hang together")
    for note, names in _by_text(_notes(audit.ledgers)):
        yield f"  {'' if len(names) == len(audit.ledgers) else ', '.join(names) + ': '}{note}"
    if len(audit.ledgers) > 1:
        yield (
            f"  A person with records in all {len(audit.ledgers)} data sets: at most ε = "
            f"{_digits(audit.epsilon_of_all)} at δ = {audit.delta_of_all:.3g} (the sums)."
        )
    yield from ("", "Chains, all whole")
    for one in audit.ledgers:
        yield from _chain_lines(one)
    yield from ("", "Not covered")
    for sentence in audit.not_covered:
        yield f"  {sentence}"


def _notes(ledgers: Sequence[LedgerFinding]) -> Iterator[tuple[str, str]]:
    for one in ledgers:
        yield from ((note, one.history.dataset_id) for note in one.notes)


def _chain_lines(one: LedgerFinding) -> Iterator[str]:
    first, *copies = one.files
    anchors = ", ".join(f"entry {position}" for position in one.anchors)
    yield f"  {one.history.dataset_id}: {one.history.entries} entries, head {one.history.chain_head}"
    yield f"    {first.path}: {_signed(first)}; {f'holds the head noted ({anchors})' if anchors else 'not anchored'}"
    for copy in copies:
        same = len(copy.entries) == len(first.entries)
        what = "the same entries" if same else f"an older copy, the first {len(copy.entries)} entries"
        yield f"    {copy.path}: {_signed(copy)}; {what}"


def _signed(file: LedgerFile) -> str:
    if file.kind == "ledger":
        return "the node's own file"
    if file.signer is None:
        return f"export of {file.exported_at}, unsigned"
    if file.known_key is None:
        return f"export of {file.exported_at}, signed by {file.signer}, a key that nobody vouched for: give --key"
    rotated = f", after {file.key_changes} changes of keys, each signed by both keys" if file.key_changes else ""
    return f"export of {file.exported_at}, signed by {file.known_key} ({file.signer}{rotated})"


def _by_text(pairs: Iterable[tuple[str, str]]) -> list[tuple[str, list[str]]]:
    """Bring equal notes together, with the data sets that they are about."""
    found: dict[str, list[str]] = {}
    for note, name in pairs:
        found.setdefault(note, []).append(name)
    return list(found.items())


def to_dict(audit: LedgerAudit) -> dict[str, Any]:
    """Plain values: every charge and every cap, beside what the tables show."""
    return {
        "ledgers": [_ledger(one) for one in audit.ledgers],
        "epsilon_of_all": audit.epsilon_of_all,
        "delta_of_all": audit.delta_of_all,
        "not_covered": list(audit.not_covered),
    }


def _ledger(one: LedgerFinding) -> dict[str, Any]:
    by, history = one.epsilons, one.history
    return {
        "dataset_id": history.dataset_id,
        "delta": history.delta,
        "unit": one.statement.unit,
        "epsilon": one.statement.epsilon,
        "accountant": one.statement.accountant,
        "epsilon_recomputed": one.recomputed,
        "epsilon_by": {"exact": by.exact, "pld": by.pld, "rdp": by.rdp, "prv": by.prv, "rdp_formula": one.by_formula},
        "steps": one.statement.steps,
        "entries": history.entries,
        "chain_head": history.chain_head,
        "anchored_at": list(one.anchors),
        "files": [
            {
                "path": str(file.path),
                "kind": file.kind,
                "entries": len(file.entries),
                "exported_at": file.exported_at,
                "signer": file.signer,
                "key_changes": file.key_changes,
                "signature_checked_by": None if file.known_key is None else str(file.known_key),
            }
            for file in one.files
        ],
        "plans": [_plan(plan, whole) for plan, whole in zip(history.plans, one.whole, strict=True)],
        "caps": [asdict(cap) for cap in history.caps],
        "runs_of_the_configuration": None if one.runs is None else list(one.runs),
        "notes": list(one.notes),
        "seconds": one.seconds,
    }


def _plan(plan: AcceptedPlan, whole: float) -> dict[str, Any]:
    return {
        "run_id": plan.run_id,
        "digest": plan.plan.digest,
        "at": plan.at,
        **plan.plan.to_dict(),
        "epsilon_of_whole_plan": whole,
        "charges": [_charge(charge) for charge in plan.charges],
    }


def _charge(charge: Charge) -> dict[str, Any]:
    return {
        "position": charge.position,
        "round": charge.round,
        "steps": charge.steps,
        "head": charge.head,
        "at": charge.at,
        "released": charge.committed is not None,
        "released_at": charge.committed_at,
        "reply_sha256": charge.reply_sha256,
    }

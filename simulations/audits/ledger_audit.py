"""What ledgers amount to: their own statement, held against the same events computed by other accountants."""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from common.config import RunConfig
from common.errors import BrokenChainError, PrivacyError
from common.privacy.entries import broken_chain
from common.privacy.statement import Statement, statement_of
from simulations.audits.config_match import ConfigMatch, match_config
from simulations.audits.ledger_checks import compare, oddities, over_caps, second_opinion
from simulations.audits.ledger_files import LedgerFile
from simulations.audits.ledger_history import History, history_of
from simulations.audits.recompute import Epsilons, epsilons, tight_and_rdp


@dataclass(frozen=True)
class LedgerFinding:
    """One data set's ledger, audited.

    Attributes:
        files: that hold it, the longest first; others are older copies of it.
        history: what happened, from the raw entries.
        statement: what the ledger says of itself.
        epsilons: what the same events cost by other accountants.
        by_formula: and by Renyi DP at integer orders, from a formula of our own.
        whole: what each plan costs by itself after its last round, in the order of ``history.plans``.
        anchors: positions of the chain heads that were noted earlier.
        runs: run ids whose plans fit the configuration; None where none was given.
        notes: how the numbers hang together, a sentence each.
        problems: what is wrong, a sentence each.
        seconds: what it took.
    """

    files: tuple[LedgerFile, ...]
    history: History
    statement: Statement
    epsilons: Epsilons
    by_formula: float
    whole: tuple[float, ...]
    anchors: tuple[int, ...]
    runs: tuple[str, ...] | None
    notes: tuple[str, ...]
    problems: tuple[str, ...]
    seconds: float

    @property
    def recomputed(self) -> float:
        """Epsilon by the rule of the ledger's claim: Renyi DP where plans may have been chosen after results."""
        return self.epsilons.rdp if self.history.adaptive else self.epsilons.tight


@dataclass(frozen=True)
class LedgerAudit:
    """All ledgers that were given, one finding for each data set.

    Attributes:
        ledgers: in the order in which they were given.
        not_covered: what these files cannot show, a sentence each.
    """

    ledgers: tuple[LedgerFinding, ...]
    not_covered: tuple[str, ...]

    @property
    def epsilon_of_all(self) -> float:
        """For a person with records in all of the data sets: the sum."""
        return sum(max(one.statement.epsilon, one.recomputed) for one in self.ledgers)

    @property
    def delta_of_all(self) -> float:
        """The delta that goes with it."""
        return sum(one.history.delta for one in self.ledgers)

    @property
    def problems(self) -> tuple[str, ...]:
        """Of all ledgers."""
        return tuple(problem for one in self.ledgers for problem in one.problems)


def audit_ledgers(
    files: Sequence[LedgerFile], *, heads: Sequence[str] = (), config: RunConfig | None = None
) -> LedgerAudit:
    """Audit ledgers whose chains were verified (see ``ledger_files.read_ledger_file``).

    Args:
        files: at least one; files of one data set must be copies of one chain, some perhaps shorter.
        heads: chain heads noted earlier, each of which a ledger must contain.
        config: of a run whose privacy section one of the plans in each ledger must fit.

    Returns:
        The findings. Whether the ledger and the other accountants disagree is in ``problems``.

    Raises:
        PrivacyError: an entry makes no sense, two files of one data set differ, or a head is contained nowhere.
    """
    groups = _by_data_set(files)
    _check_heads(heads, groups)
    ledgers = tuple(_audit(group, heads, config) for group in groups)
    return LedgerAudit(ledgers, _not_covered(ledgers))


def _by_data_set(files: Sequence[LedgerFile]) -> list[tuple[LedgerFile, ...]]:
    """Bring files of one data set together, the longest first."""
    groups: dict[str, list[LedgerFile]] = {}
    for file in files:
        groups.setdefault(_data_set(file), []).append(file)
    ordered = [sorted(group, key=lambda file: -len(file.entries)) for group in groups.values()]
    for longest, *others in ordered:
        for other in others:
            _check_copy(longest, other)
    return [tuple(group) for group in ordered]


def _data_set(file: LedgerFile) -> str:
    first = file.entries[0]
    name = first.body.get("dataset_id")
    if first.kind != "opened" or not isinstance(name, str):
        raise broken_chain(f"{file.path.name} does not begin with the entry that opens a ledger")
    return name


def _check_copy(longest: LedgerFile, other: LedgerFile) -> None:
    """Refuse a chain that is not the beginning of the other: whatever it holds would go uncounted."""
    both = zip(longest.entries, other.entries, strict=False)
    part = next((mine.position for mine, its in both if mine.hash != its.hash), None)
    if part is not None:
        raise PrivacyError(
            f"{longest.path} and {other.path} must be one ledger, as both are of data set "
            f"{longest.entries[0].body.get('dataset_id')!r}, but they part at entry {part}, so that one was begun anew "
            "or two data sets share an id; find out which the node wrote, and audit it alone"
        )


def _check_heads(heads: Iterable[str], groups: Sequence[tuple[LedgerFile, ...]]) -> None:
    known = {entry.hash for group in groups for entry in group[0].entries}
    for head in heads:
        if head not in known:
            raise PrivacyError(
                f"the chain head {head[:12]}… noted earlier must be part of a ledger given, but none contains it, so "
                "that an older copy or another ledger was put in its place; ask the node for the ledger that goes on "
                "from it"
            )


def _audit(files: tuple[LedgerFile, ...], heads: Sequence[str], config: RunConfig | None) -> LedgerFinding:
    began = time.perf_counter()
    entries = files[0].entries
    try:
        history = history_of(entries)  # first, as it checks types
        statement = statement_of(entries)
    except BrokenChainError as error:
        raise BrokenChainError(f"{files[0].path.name}: {error}") from error
    computed = epsilons((plan.charged for plan in history.plans), history.delta)
    notes, problems = compare(history, statement, computed)
    by_formula, unchecked, differs = second_opinion(history, computed)
    recomputed = computed.rdp if history.adaptive else computed.tight
    match = None if config is None else match_config(config, history, max(statement.epsilon, recomputed))
    said = match or ConfigMatch((), (), ())
    where = f"data set {history.dataset_id!r}: "
    return LedgerFinding(
        files=files,
        history=history,
        statement=statement,
        epsilons=computed,
        by_formula=by_formula,
        whole=tuple(tight_and_rdp([plan.steps(plan.plan.terms.steps)], history.delta)[0] for plan in history.plans),
        anchors=tuple(entry.position for entry in entries if entry.hash in heads),
        runs=None if match is None else match.runs,
        notes=(*notes, *unchecked, *oddities(history), *said.notes),
        problems=tuple(where + problem for problem in (*problems, *differs, *over_caps(history), *said.problems)),
        seconds=time.perf_counter() - began,
    )


def _not_covered(ledgers: Sequence[LedgerFinding]) -> tuple[str, ...]:
    """What no ledger can show, or these do not."""
    said = [
        "Whether the code did what the plan says: a ledger counts what was announced.",
        "Which server it was: an entry names a run and a head by its digest, and a run's id is the server's word.",
        "The backbone and what it was trained on; the class list, names, declared sizes and who took part in which "
        "round, which are public; how long a node takes to answer.",
        "Records of one person in several data sets: their ε add up. Overlapping data sets under different ids, and "
        "whatever is released past the node (metrics of a simulation, say).",
    ]
    if any(not one.anchors for one in ledgers):
        said.insert(
            0,
            "A file that was replaced by an older copy, or begun anew, where no chain head noted elsewhere was given: "
            "note the heads above, and give them with --head next time.",
        )
    if any(file.known_key is not None for one in ledgers for file in one.files):
        said.append(
            "Whose data set it is: any key that was given may sign any data set, so that one hospital could sign "
            "another's. Check one hospital at a time, with its key alone, and look at the name of its data set."
        )
    if any(one.history.charges and not one.history.timed for one in ledgers):
        said.append(
            "Whether noise was seeded: entries without times come from a simulation, and where it had a seed its ε is "
            "nominal (epsilon_is_guarantee in its result.json says so)."
        )
    return tuple(said)

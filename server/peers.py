"""Whose keys a run of sums is about: the registered nodes', as hospitals approved them, too, in their peers files.

The coordinator's list makes nothing true: a node sums with those whose keys its own operator approved, and refuses a
cohort that names another. Here it says which signatures are a node's, so that a wrong one costs that node alone.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path

from common import durable
from common.config import RunConfig
from common.errors import ConfigError
from common.privacy.keys import fingerprint
from common.secagg.roster import MOST_NODES, Roster, read_roster
from common.secagg.session import LEAST_NODES, SumTerms
from server.coordinator_folder import Place

PEERS = "peers.pub"


def registered_peers(place: Place, names: Iterable[str]) -> Roster:
    """The keys of registered nodes.

    Args:
        place: the coordinator's folder.
        names: of registered nodes.

    Raises:
        ConfigError: the key of one was not kept, or there are too many.
    """
    nodes = place.nodes()
    chosen = {name: nodes[name] for name in names}
    if lost := [name for name, entry in chosen.items() if not entry.key or fingerprint(entry.key) != entry.fingerprint]:
        raise ConfigError(
            f"expected the public key of {lost[0]}, which was let in by an older release, found its fingerprint alone; "
            f"give it again: `fedgraft server add-node {lost[0]} --key FILE --replace`"
        )
    return Roster({name: entry.key for name, entry in chosen.items()})


def check_sums(config: RunConfig, reached: Iterable[str]) -> None:
    """Make sure, before anything is made, that the nodes that a run may reach suffice for its sums.

    Raises:
        ConfigError: there are fewer than the plan wants, or the plan wants too few or too many.
        PrivacyError: so many drop-outs or colluders leave too little.
    """
    if config.privacy.trust != "secagg":
        return
    key = "federation.cohort" if config.federation.cohort else "federation.nodes"
    wanted, there = config.federation.cohort or config.federation.nodes, sorted(reached)
    if not LEAST_NODES <= wanted <= MOST_NODES:
        raise ConfigError(f"{key}: expected {LEAST_NODES} to {MOST_NODES} nodes for a sum, came {wanted}")
    if len(there) < wanted:
        raise ConfigError(
            f"{key}: sums are over at least {wanted} nodes, and the run may reach {len(there)} ({', '.join(there)}); "
            f"let more in by `fedgraft server add-node`, or lower {key}"
        )
    SumTerms(
        nodes=wanted,
        dropouts=config.privacy.most_dropouts,
        colluders=config.privacy.most_colluders,
        modulus_bits=64,
        length=1,
    )


def keep_peers(place: Place, folder: Path, config: RunConfig, names: Iterable[str]) -> None:
    """Put the keys that nodes have now into the folder of a run of sums; errors as above."""
    if config.privacy.trust == "secagg":
        reached = list(names)
        check_sums(config, reached)
        durable.write_bytes(folder / PEERS, registered_peers(place, reached).to_text().encode())


def peers_of(folder: Path) -> Callable[[Iterable[str]], Roster]:
    """The keys of the nodes of a run, by their names.

    Raises:
        ConfigError: they are not in the run's folder.
    """
    roster = read_roster(folder / PEERS)
    return lambda names: Roster({name: roster.keys[name] for name in names})

"""Which hospitals' keys a node's operator has approved: the file as it was approved, or none."""

from __future__ import annotations

from pathlib import Path

from client.approvals import keep_approvals, read_approvals
from client.keys import KEY
from common import durable
from common.errors import ConfigError, PrivacyError
from common.privacy.keys import load_private, openssh
from common.secagg.roster import Roster, read_roster

PEERS = "peers.pub"


def approved_peers(folder: Path) -> Roster:
    """The hospitals that a node sums with.

    Args:
        folder: of the node.

    Raises:
        PrivacyError: nobody approved any, or the file is not the one that was approved.
        ConfigError: the file is damaged.
    """
    if not (folder / PEERS).exists():
        raise PrivacyError(
            "secure aggregation needs the other hospitals' keys, none are approved on this node; run `fedgraft node "
            "approve peers FILE`"
        )
    roster = read_roster(folder / PEERS)
    if roster.digest not in read_approvals(folder).peers:
        raise PrivacyError(
            f"the keys in {PEERS} must be those that the operator approved, they are others; run `fedgraft node "
            "approve peers FILE` again"
        )
    return roster


def keep_peers(folder: Path, roster: Roster) -> None:
    """Put a peers file in the place of the one before, durably; hold ``changing_approvals`` meanwhile.

    A crash in between leaves a file that nobody approved, and the command can be typed again.

    Raises:
        ConfigError: it cannot be written.
    """
    durable.write_bytes(folder / PEERS, roster.to_text().encode(), mode=0o600)
    words = ", ".join(sorted(roster.keys))
    keep_approvals(folder, read_approvals(folder).with_peers(roster.digest, words))


def check_own(folder: Path, name: str, roster: Roster) -> None:
    """Make sure that a peers file names this node's own key: another's in its place would be noticed by nobody else.

    Raises:
        ConfigError: it names another, or none.
    """
    own = openssh(load_private(folder / KEY).public_key())
    if roster.keys.get(name) != own:
        raise ConfigError(
            f"expected this node's own key for {name} in the peers file, got another or none; put its newest "
            "node.key.pub into the file, and ask who made it"
        )


def changes(before: Roster | None, after: Roster) -> list[str]:
    """What a new peers file changes, a line each."""
    old, new = before.keys if before else {}, after.keys
    return [
        *(f"new: {name}" for name in sorted(new.keys() - old.keys()) if before),
        *(f"another key: {name}" for name in sorted(new.keys() & old.keys()) if new[name] != old[name]),
        *(f"gone: {name}" for name in sorted(old.keys() - new.keys())),
    ]

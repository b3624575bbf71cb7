"""How far a node has seen its ledger grow, kept apart from it: an older copy, or none, in its place is refused.

A node answers each message in a process of its own, which remembers nothing of the ledger; a disk that was not mounted,
or a backup that was put back, would otherwise begin the count anew.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path

from common import durable
from common.errors import ConfigError, PrivacyError

ANCHORS = "anchor"  # folder of them in a node's


@dataclass(frozen=True)
class Anchor:
    """Where a ledger stood.

    Attributes:
        entries: how many it had.
        head: hash of the last of them.
    """

    entries: int
    head: str

    def write(self, path: Path) -> None:
        """Keep it, durably.

        Raises:
            ConfigError: the disk is full or the folder cannot be written.
        """
        with durable.told(path):
            path.parent.mkdir(mode=0o700, exist_ok=True)
        durable.write_json(path, asdict(self), mode=0o600)


def read_anchor(path: Path) -> Anchor | None:
    """What was kept; None where no ledger was ever seen.

    Raises:
        ConfigError: the file cannot be read, or is not an anchor's.
    """
    try:
        found = json.loads(path.read_bytes())
        anchor = Anchor(int(found["entries"]), str(found["head"]))
    except FileNotFoundError:
        return None
    except (OSError, ValueError, LookupError, TypeError) as error:
        raise ConfigError(
            f"expected in {path} how far this node has seen its ledger, got something else ({type(error).__name__}); "
            "put the file back from the newest backup"
        ) from error
    return anchor


def older_ledger(path: Path, anchor: Path, seen: Anchor) -> PrivacyError:
    """The one sentence for a ledger that lacks what the node has seen of it."""
    return PrivacyError(
        f"the ledger {path} must hold the {seen.entries} entries that this node has seen, up to {seen.head[:16]}…, but "
        "it is missing, or an older or another one is in its place; mount its disk, or put the newest back. If it is "
        "lost, nobody knows what these records have paid: release nothing more from them "
        f"(only where nothing was ever released, remove {anchor})"
    )

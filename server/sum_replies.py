"""What nodes replied in the stages of one sum, kept until its round is over, so that a run that was killed can go on.

Nodes answer each request once; a server that lost their replies after the last stage could not make the sum again.
The replies are masked, sealed or signed: the server may see all of them.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping
from pathlib import Path

from common import durable
from common.errors import ConfigError
from common.secagg.messages import Stage

FOLDER = "sums"


class KeptReplies:
    """Those of one round, in the run's folder."""

    def __init__(self, folder: Path, round_: int, cohort: Mapping[str, str]) -> None:
        """Open what is kept of a round, or begin to keep it; what was kept of other rounds is removed.

        Args:
            folder: of the run.
            round_: 1-based.
            cohort: name to fingerprint of the nodes; with others than before, another attempt begins.

        Raises:
            ConfigError: it cannot be read or written.
        """
        self._folder = folder / FOLDER
        self._round = round_
        try:
            self._folder.mkdir(exist_ok=True)
            for old in self._folder.glob("round-*"):
                if not old.name.startswith(self._stem):
                    old.unlink()
            attempts = json.loads(self._attempts.read_bytes()) if self._attempts.exists() else []
        except (OSError, ValueError) as error:
            raise self._damaged() from error
        if attempts[-1:] != [dict(cohort)]:
            attempts.append(dict(cohort))
            durable.write_bytes(self._attempts, json.dumps(attempts).encode())
        self.attempt = len(attempts)
        self.before: list[list[str]] = [list(names) for names in attempts[:-1]]
        """Who was asked in earlier attempts, and may have paid for each."""

    def read(self, stage: Stage) -> tuple[dict[str, bytes], dict[str, str]] | None:
        """Replies and failures of a stage; None where it was not over.

        Raises:
            ConfigError: they cannot be read.
        """
        path = self._path(stage)
        try:
            if not path.exists():
                return None
            kept = json.loads(path.read_bytes())
            replies = {name: base64.b64decode(text, validate=True) for name, text in kept["replies"].items()}
            return replies, dict(kept["failed"])
        except (OSError, ValueError, LookupError, AttributeError, TypeError) as error:
            raise self._damaged() from error

    def keep(self, stage: Stage, replies: Mapping[str, bytes], failed: Mapping[str, str]) -> None:
        """Write a stage's down; it survives a killed process, as losing it costs a round and nothing else.

        Raises:
            ConfigError: the disk is full.
        """
        encoded = {name: base64.b64encode(data).decode() for name, data in replies.items()}
        text = json.dumps({"replies": encoded, "failed": dict(failed)})
        durable.write_bytes(self._path(stage), text.encode(), synced=False)

    @property
    def _stem(self) -> str:
        return f"round-{self._round:06d}"

    @property
    def _attempts(self) -> Path:
        return self._folder / f"{self._stem}.json"

    def _path(self, stage: Stage) -> Path:
        return self._folder / f"{self._stem}-{self.attempt}-{stage.value}.json"

    def _damaged(self) -> ConfigError:
        return ConfigError(
            f"expected the replies of round {self._round} in {self._folder}, they cannot be read or kept; remove what "
            "is there of this round, which discards it, and resume"
        )

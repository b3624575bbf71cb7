"""What a node remembers of secure aggregation: one file for each run, written before what it speaks of is sent.

Only the newest session is kept: its secrets until shares were revealed, its replies until the next one begins. So a
repeated request is answered with the same bytes, also after a crash; another request in its place is refused; and no
session is taken up again, as two sums over different survivors would differ by one hospital's numbers.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

from pydantic import ConfigDict, Field, ValidationError

from common import durable
from common.errors import ConfigError, PrivacyError
from common.locks import alone
from common.secagg.keys import Secrets
from common.secagg.messages import NodeKeys, Stage
from common.secagg.session import Digest, Session
from common.secagg.shamir import SHARE_BYTES
from common.strict import Strict

SECAGG_RECORDS = "secagg"  # folder of them in a node's

_STAGES = list(Stage)


class _Written(Strict):
    model_config = ConfigDict(ser_json_bytes="base64", val_json_bytes="base64")


class Answer(_Written):
    """What one request was answered with.

    Attributes:
        request_sha256: of the request.
        reply: the reply's bytes; of a masked vector, whose bytes lie in a file beside this one, their SHA-256.
    """

    request_sha256: Digest
    reply: bytes


class KeptSecrets(_Written):
    """A session's secrets, as they are written down."""

    channel: bytes
    mask_seed: Annotated[bytes, Field(min_length=SHARE_BYTES, max_length=SHARE_BYTES)]
    self_seed: Annotated[bytes, Field(min_length=SHARE_BYTES, max_length=SHARE_BYTES)]

    @classmethod
    def of(cls, secrets: Secrets) -> KeptSecrets:
        """Write secrets down."""
        seeds = [seed.to_bytes(SHARE_BYTES, "big") for seed in (secrets.mask_seed, secrets.self_seed)]
        return cls(channel=secrets.channel, mask_seed=seeds[0], self_seed=seeds[1])

    def secrets(self) -> Secrets:
        """Read them back."""
        return Secrets(self.channel, int.from_bytes(self.mask_seed, "big"), int.from_bytes(self.self_seed, "big"))


class Kept(_Written):
    """What is known of a run's newest session.

    Attributes:
        session: which.
        answers: by stage.
        secrets: this node's; None once shares were revealed.
        own_shares: this node's shares of its own secrets.
        members: the group's keys, once shares were sealed to them.
        held: sharer to its two shares, this node's own among them; nothing once shares were revealed.
        survivors: whom this node agreed to unmask.
        closed: whether the secrets were removed before the session was over, so that it is answered no further.
    """

    session: Session
    answers: dict[Stage, Answer] = Field(default_factory=dict)
    secrets: KeptSecrets | None = None
    own_shares: bytes = b""
    members: tuple[NodeKeys, ...] = ()
    held: dict[str, bytes] = Field(default_factory=dict)
    survivors: tuple[str, ...] = ()
    closed: bool = False

    @property
    def holds_secrets(self) -> bool:
        """Whether a secret of a session lies here."""
        return self.secrets is not None or bool(self.held) or bool(self.own_shares)

    def without_secrets(self) -> Kept:
        """This session, answered no further; what was answered stays, so that nothing is answered in another way."""
        return self.model_copy(update={"secrets": None, "held": {}, "own_shares": b"", "closed": True})

    def answered(self, stage: Stage, request: bytes, reply: bytes) -> Kept:
        """This, and one more answer."""
        answer = Answer(request_sha256=hashlib.sha256(request).hexdigest(), reply=reply)
        return self.model_copy(update={"answers": {**self.answers, stage: answer}})

    def answer(self, stage: Stage, request: bytes) -> bytes | None:
        """What this request was answered with; None if nothing was, and it is this stage's turn.

        Raises:
            PrivacyError: another request of this stage was answered, or an earlier stage was not.
        """
        found = self.answers.get(stage)
        if found is not None and found.request_sha256 == hashlib.sha256(request).hexdigest():
            return found.reply
        if found is not None:
            raise PrivacyError(
                f"one request for {stage} is answered in round {self.session.round}, and another one came; refuse it, "
                "and take the next round"
            )
        if self.closed:
            raise PrivacyError(
                f"the secrets of round {self.session.round} were removed here, and it is answered no further; take the "
                "next round"
            )
        missing = [one for one in _STAGES[: _STAGES.index(stage)] if one not in self.answers]
        if missing:
            raise PrivacyError(
                f"a request for {stage} must follow one for {missing[0]} in round {self.session.round}, but came "
                "before it; begin the round anew"
            )
        return None


class SumRecord:
    """One run's file. Two processes may use it."""

    def __init__(self, folder: Path, run_id: str, *, durable: bool = True, stem: str | None = None) -> None:
        stem = stem or hashlib.sha256(run_id.encode()).hexdigest()[:32]
        self._folder, self._durable = folder, durable
        self._path, self._vector, self._lock = (folder / f"{stem}.{end}" for end in ("json", "vector", "lock"))

    @contextmanager
    def alone(self) -> Iterator[None]:
        """Hold the record between reading and keeping it.

        Raises:
            ConfigError: another process holds it too long, or its folder cannot be made.
        """
        try:
            self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        except OSError as error:
            raise ConfigError(f"could not make {self._folder} ({error.strerror}); check its owner and mode") from error
        with alone(self._lock):
            yield

    def read(self) -> Kept | None:
        """What is kept; None where nothing is.

        Raises:
            PrivacyError: it cannot be read, so that what was revealed is unknown.
        """
        try:
            return Kept.model_validate_json(self._path.read_bytes())
        except FileNotFoundError:
            return None
        except (OSError, ValidationError) as error:
            raise PrivacyError(
                f"expected what was revealed in {self._path}, got a file that cannot be read; take part in another run"
            ) from error

    def keep(self, kept: Kept) -> None:
        """Write it down, durably; only then may a reply leave.

        Raises:
            ConfigError: it cannot be written; send nothing.
        """
        durable.write_bytes(self._path, kept.model_dump_json().encode(), mode=0o600, synced=self._durable)

    def keep_vector(self, data: bytes) -> bytes:
        """Write a masked vector beside the record, durably; what the record keeps of it."""
        durable.write_bytes(self._vector, data, mode=0o600, synced=self._durable)
        return hashlib.sha256(data).digest()

    def vector(self, kept: bytes) -> bytes:
        """Read the masked vector back.

        Raises:
            PrivacyError: it is not there any longer, or not as it was sent.
        """
        try:
            data = self._vector.read_bytes()
        except OSError:
            data = b""
        if hashlib.sha256(data).digest() != kept:
            raise PrivacyError(
                "a masked vector is sent again with the same bytes or not at all, and they are gone; go on without"
            )
        return data

    def forget_vector(self) -> None:
        """Remove the masked vector, which nobody needs once shares were revealed."""
        self._vector.unlink(missing_ok=True)


def forget_secrets(folder: Path) -> int:
    """Remove the secrets of all sessions that are not over; how many there were.

    A session that is under way goes on without this node. What was answered stays known: nothing is answered twice.

    Raises:
        PrivacyError: a record cannot be read.
        ConfigError: one cannot be written, or is in use for long.
    """
    count = 0
    for path in sorted(folder.glob("[0-9a-f]*.json")):
        record = SumRecord(folder, "", stem=path.stem)
        with record.alone():
            for left in folder.glob(f".{path.stem}.*"):  # a crash came before the rename
                left.unlink()
            kept = record.read()
            if kept is not None and kept.holds_secrets:
                record.keep(kept.without_secrets())
                count += 1
            record.forget_vector()
    return count


def count_secrets(folder: Path, older_s: float) -> int:
    """Sessions whose secrets lie here, and to which nothing was written for so many seconds. Errors as above."""
    before = time.time() - older_s
    old = [path for path in folder.glob("[0-9a-f]*.json") if path.stat().st_mtime <= before]
    kept = [SumRecord(folder, "", stem=path.stem).read() for path in old]
    return sum(one is not None and one.holds_secrets for one in kept)

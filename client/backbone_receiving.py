"""Receives a backbone whose digest the operator approved in advance, piece by piece, and keeps it if it is the one.

What has come lies in a folder of its own, ``backbones/.<digest>``, and is never loaded from there. It goes on where it
stopped, whichever side was interrupted: bytes are synced, then the note that counts them. Only when every byte is what
the digest says is the folder renamed. A server that sends anything else is refused, and what it sent is deleted.
"""

from __future__ import annotations

import json
import logging
import os
import shutil
from dataclasses import dataclass
from pathlib import Path

from client import egress
from client.approvals import read_approvals
from client.last_look import Speaker
from client.node_config import load_node_config
from client.node_folder import check_awake
from client.sent_backbones import (
    BACKBONES,
    LOCK,
    LOCK_TIMEOUT_S,
    box_of,
    check_kind,
    discard,
    forget_note,
    note_of,
    place_of,
)
from common import durable, paths
from common.backbones.package_facts import FACTS, check_bytes, read_facts
from common.backbones.parcel import Contents, Part
from common.errors import ConfigError, PrivacyError, ProtocolError
from common.locks import alone
from common.messages import Holding

log = logging.getLogger("fedgraft.node")
ROOM_BYTES = 256 << 20  # that stay free on the disk: the ledger needs some


@dataclass(frozen=True)
class Receiver:
    """What of a node takes a backbone; it opens no record.

    Attributes:
        folder: of the node.
        speaker: who answers.
    """

    folder: Path
    speaker: Speaker

    def receive(self, part: Part) -> Holding:
        """Take a piece; see ``receive``."""
        return receive(part, self.folder)


def open_receiver() -> Receiver:
    """The node whose operator set it up here, as far as backbones go.

    Raises:
        ConfigError: its configuration cannot be used.
        PrivacyError: its operator has paused it.
        ProtocolError: this is a simulated node.
    """
    folder = paths.node_folder()
    if folder is None:
        raise ProtocolError("expected no backbone, a simulated node has the server's own; do not send one")
    check_awake(folder)
    config = load_node_config(folder)
    return Receiver(folder, Speaker(config.node.name, config.data.declared_size))


def receive(part: Part, folder: Path) -> Holding:
    """Take a piece of a backbone, if it is the next one; any other changes nothing.

    Args:
        part: as the server sent it.
        folder: of the node.

    Returns:
        How many bytes, from the first, this node has now.

    Raises:
        PrivacyError: nobody approved that digest here, it is larger than the operator allowed, or of another kind.
        ProtocolError: the bytes are not what the digest says; nothing is kept.
        ConfigError: the disk is full.
    """
    contents = part.contents
    if not part.is_one():
        raise ProtocolError("expected a piece of the backbone that was announced, got more or less; refuse that server")
    if not _is_wanted(contents, folder):
        return egress.release_holding(contents.total, contents)
    (folder / BACKBONES).mkdir(mode=0o700, exist_ok=True)
    try:
        with alone(folder / BACKBONES / LOCK, LOCK_TIMEOUT_S):
            held = contents.total if _is_whole(folder, contents.digest) else _taken(folder, part)
    except OSError as error:
        raise ConfigError(f"could not write {folder / BACKBONES}: {error.strerror}; free some space") from error
    return egress.release_holding(held, contents)


def _is_wanted(contents: Contents, folder: Path) -> bool:
    """Whether a backbone may come; False where the operator has a copy of their own."""
    approvals = read_approvals(folder)
    limit = approvals.sent.get(contents.digest)
    if contents.digest in approvals.backbones:
        return False
    if limit is None:
        raise PrivacyError(
            f"the server sends a backbone with digest {contents.digest}, which nobody approved on this node; look at "
            "where it comes from, then run `fedgraft node approve backbone --digest`"
        )
    if contents.total > limit:
        raise PrivacyError(
            f"the server sends a backbone of {contents.total} bytes, the operator allowed {limit}; approve its digest "
            "anew with a larger --size-limit"
        )
    return True


def _is_whole(folder: Path, digest: str) -> bool:
    """Whether a backbone is there; one that was changed since is deleted, and so is the note that a crash left."""
    place = place_of(folder, digest)
    if not place.is_dir():
        return False
    try:
        whole = check_bytes(place).digest == digest
    except ConfigError:
        whole = False
    if not whole:
        shutil.rmtree(place)
    forget_note(folder, digest)
    return whole


def _taken(folder: Path, part: Part) -> int:
    """Take a piece, and the whole if it was the last; how many bytes there are now."""
    contents = part.contents
    held = _held(folder, contents)
    try:
        if part.data and part.offset == held:
            held = _with(folder, part, held)
        if held == contents.total:
            _finish(folder, contents)
    except (ProtocolError, PrivacyError):
        discard(folder, contents.digest)
        raise
    return held


def _held(folder: Path, contents: Contents) -> int:
    """How many bytes are safe, by the note beside them; what was written after it is cut off."""
    box, files = box_of(folder, contents.digest), [list(one) for one in contents.files]
    try:
        note = json.loads(note_of(folder, contents.digest).read_bytes())
        held = int(note["held"])
        known = note["files"] == files and contents.may_be_held(held)
    except (OSError, ValueError, KeyError, TypeError):
        known, held = False, 0
    start = 0
    for name, size in contents.files if known else ():
        have, path = max(0, min(size, held - start)), box / name
        known = known and path.is_file() and path.stat().st_size >= have
        if known:
            os.truncate(path, have)
        start += size
    if not known:
        discard(folder, contents.digest)
        return 0
    return held


def _with(folder: Path, part: Part, held: int) -> int:
    """Write the next piece; how many bytes there are with it."""
    contents, box = part.contents, box_of(folder, part.contents.digest)
    free, needed = shutil.disk_usage(folder / BACKBONES).free, contents.total - held + ROOM_BYTES
    if free < needed:
        words = f"expected {needed} bytes of free disk for a backbone, got {free}; free some space"
        log.warning("%s", words)  # of a ConfigError, which may name records, a node's log says less
        raise ConfigError(words)
    if held == 0:
        box.mkdir(mode=0o700, exist_ok=True)
        for name, _ in contents.files:  # one may be empty
            (box / name).touch(mode=0o600)
    taken = 0
    for name, start, length in contents.cut(part.offset, len(part.data)):
        _append(box / name, start, part.data[taken : taken + length])
        taken += length
    after, first = held + taken, contents.files[0][1]
    if held < first <= after:
        _check_facts(box, contents)
    durable.write_json(note_of(folder, contents.digest), {"files": contents.files, "held": after}, mode=0o600)
    return after


def _append(path: Path, start: int, data: bytes) -> None:
    with path.open("r+b") as file:
        file.seek(start)
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def _check_facts(box: Path, contents: Contents) -> None:
    """The first file says what the others must be: it is checked as soon as it is there."""
    try:
        facts = read_facts(box)
    except ConfigError as error:
        raise ProtocolError("expected the facts of a package first, got something else; refuse that server") from error
    if facts.digest != contents.digest or {FACTS, *facts.files} != {name for name, _ in contents.files}:
        raise _another()
    check_kind(facts)


def _finish(folder: Path, contents: Contents) -> None:
    """Check every byte, and give the folder its name."""
    box, place = box_of(folder, contents.digest), place_of(folder, contents.digest)
    try:
        facts = check_bytes(box)
    except ConfigError as error:
        raise _another() from error
    if facts.digest != contents.digest:
        raise _another()
    durable.sync_folder(box)
    box.rename(place)
    durable.sync_folder(place.parent)
    forget_note(folder, contents.digest)
    log.warning("the backbone %s has come, %d bytes, each as its digest says", contents.digest, contents.total)


def _another() -> ProtocolError:
    return ProtocolError("expected the backbone whose digest was approved, got other bytes; nothing of them was kept")

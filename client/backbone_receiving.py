"""Receives a backbone whose digest the operator approved in advance, piece by piece, and keeps it if it is the one.

What has come lies in a folder of its own, ``backbones/.<digest>``, and is never loaded from there. It goes on where it
stopped, whichever side was interrupted. Only when every byte is what the digest says is the folder renamed, and the
backbone approved in that copy. A server that sends anything else is refused, and what it sent is deleted.
"""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

from client import egress
from client.approvals import keep_approvals, read_approvals
from common import durable
from common.backbones.package import FACTS, check_bytes, read_facts
from common.backbones.parcel import MOST_CHUNK_BYTES, PACKAGE, Contents, Part
from common.errors import ConfigError, PrivacyError, ProtocolError
from common.messages import Holding

BACKBONES, PROGRESS = "backbones", ".progress.json"
ROOM_BYTES = 64 << 20  # that stay free on the disk


def receive(part: Part, folder: Path) -> Holding:
    """Take a piece of a backbone.

    Args:
        part: as the server sent it.
        folder: of the node.

    Returns:
        How many bytes, from the first, this node has now.

    Raises:
        PrivacyError: nobody approved that digest here, or it is larger than the operator allowed.
        ProtocolError: the piece is not the next one, or the bytes are not what the digest says; nothing is kept.
        ConfigError: the disk is full.
    """
    contents = part.contents
    approvals = read_approvals(folder)
    if contents.digest in approvals.backbones:
        return egress.release_holding(contents.digest, contents.total, contents.total)
    limit = approvals.awaited.get(contents.digest)
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
    box, place = folder / BACKBONES / f".{contents.digest}", folder / BACKBONES / contents.digest
    try:
        held = contents.total if _is_whole(place, contents.digest) else _taken(box, place, part)
    except ProtocolError:
        shutil.rmtree(box, ignore_errors=True)
        raise
    except OSError as error:
        raise ConfigError(f"could not write {box}: {error.strerror}; free some space") from error
    if held == contents.total:
        reference = f"{PACKAGE}{place}"
        keep_approvals(folder, read_approvals(folder).with_backbone(contents.digest, reference))
    return egress.release_holding(contents.digest, held, contents.total)


def _is_whole(place: Path, digest: str) -> bool:
    """Whether a backbone is there, unapproved because of a crash just then."""
    try:
        return place.is_dir() and check_bytes(place).digest == digest
    except ConfigError:
        return False


def _taken(box: Path, place: Path, part: Part) -> int:
    """Take a piece, and the whole if it was the last; how many bytes there are now."""
    held = _held(box, part.contents)
    if part.data:
        held = _with(box, part, held)
    if held == part.contents.total:
        _finish(box, place, part.contents)
    return held


def _held(box: Path, contents: Contents) -> int:
    """How many bytes are safe, by the note beside them; what was written after it is cut off."""
    files = [list(one) for one in contents.files]
    try:
        note = json.loads((box / PROGRESS).read_bytes())
        held = int(note["held"])
        known = note["files"] == files and 0 <= held <= contents.total
    except (OSError, ValueError, KeyError, TypeError):
        known = False
    if not known:
        shutil.rmtree(box, ignore_errors=True)
        _begin(box, contents)
        return 0
    start = 0
    for name, size in contents.files:
        have, path = max(0, min(size, held - start)), box / name
        if (path.stat().st_size if path.exists() else 0) < have:  # somebody else was here
            shutil.rmtree(box, ignore_errors=True)
            _begin(box, contents)
            return 0
        if path.exists():
            os.truncate(path, have)
        start += size
    return held


def _begin(box: Path, contents: Contents) -> None:
    box.mkdir(mode=0o700, parents=True)
    free = shutil.disk_usage(box).free
    if free < contents.total + ROOM_BYTES:
        raise ConfigError(
            f"expected {contents.total + ROOM_BYTES} bytes of free disk for a backbone, got {free}; free some space"
        )
    for name, _ in contents.files:  # one may be empty
        (box / name).touch(mode=0o600)
    _note(box, contents, 0)


def _note(box: Path, contents: Contents, held: int) -> None:
    durable.write_json(box / PROGRESS, {"files": contents.files, "held": held}, mode=0o600)


def _with(box: Path, part: Part, held: int) -> int:
    """Write a piece behind what is there; one that is there already changes nothing."""
    contents, size = part.contents, len(part.data)
    if size > MOST_CHUNK_BYTES or part.offset + size > contents.total:
        raise ProtocolError(
            f"expected at most the {contents.total} bytes of the backbone, got more; refuse that server"
        )
    if part.offset + size <= held:
        return held
    if part.offset != held:
        raise ProtocolError(
            f"expected the bytes of the backbone from {held} on, got some from {part.offset}; start anew"
        )
    taken = 0
    for name, start, length in contents.cut(part.offset, size):
        descriptor = os.open(box / name, os.O_WRONLY | os.O_CREAT | os.O_NOFOLLOW, 0o600)
        with os.fdopen(descriptor, "wb") as file:
            file.seek(start)
            file.write(part.data[taken : taken + length])
            file.flush()
            os.fsync(file.fileno())
        taken += length
    first = contents.files[0][1]
    if held < first <= held + size:
        _check_facts(box, contents)
    _note(box, contents, held + size)
    return held + size


def _check_facts(box: Path, contents: Contents) -> None:
    """The first file says what the others must be: it is checked as soon as it is there."""
    try:
        facts = read_facts(box)
    except ConfigError as error:
        raise ProtocolError("expected the facts of a package first, got something else; refuse that server") from error
    if facts.digest != contents.digest or {FACTS, *facts.files} != {name for name, _ in contents.files}:
        raise _another()


def _finish(box: Path, place: Path, contents: Contents) -> None:
    """Check every byte, and give the folder its name."""
    try:
        facts = check_bytes(box)
    except ConfigError as error:
        raise _another() from error
    if facts.digest != contents.digest:
        raise _another()
    (box / PROGRESS).unlink()
    shutil.rmtree(place, ignore_errors=True)  # not approved, and not whole
    box.rename(place)
    durable.sync_folder(place.parent)


def _another() -> ProtocolError:
    return ProtocolError("expected the backbone whose digest was approved, got other bytes; nothing of them was kept")

"""Backbones that the coordinator sends, where they lie in a node's folder; what else is there is not used.

An app writes them, so that nothing about them is believed: a copy counts by the digest alone that the operator
approved, which covers every byte, and ``common.backbones.package`` reads each of them against it whenever it is loaded.
"""

from __future__ import annotations

import shutil
from pathlib import Path

from common.backbones.package_facts import PackageFacts, read_facts
from common.errors import BackboneMismatchError, ConfigError, PrivacyError
from common.locks import alone

BACKBONES, PACKAGE, LOCK = "backbones", "package/", ".lock"
FAMILIES = ("torchvision", "hf", "vectors")  # what those build is in the package, or in libraries; "module" calls code
LOCK_TIMEOUT_S = 600.0


def place_of(folder: Path, digest: str) -> Path:
    """Where a whole package lies."""
    return folder / BACKBONES / digest


def box_of(folder: Path, digest: str) -> Path:
    """Where one lies that is coming."""
    return folder / BACKBONES / f".{digest}"


def note_of(folder: Path, digest: str) -> Path:
    """How far that one is."""
    return folder / BACKBONES / f".{digest}.json"


def sent_reference(folder: Path, digest: str) -> str:
    """The reference of a package that was sent, by which it is loaded, every byte checked.

    Raises:
        BackboneMismatchError: it has not come yet.
        PrivacyError: it is of a kind that may not be sent.
        ConfigError: it was changed since it came; withdrawing the approval deletes it.
    """
    place = place_of(folder, digest)
    if not place.is_dir():
        raise BackboneMismatchError(
            f"the backbone with digest {digest} is approved and not here yet; the coordinator sends it, or approve a "
            "copy of your own"
        )
    try:
        facts = read_facts(place)
    except ConfigError as error:
        raise _changed(place) from error
    if facts.digest != digest:
        raise _changed(place)
    check_kind(facts)
    return f"{PACKAGE}{place}"


def check_kind(facts: PackageFacts) -> None:
    """Make sure that building a package's network calls nothing but libraries' own networks.

    Raises:
        PrivacyError: it names code to be called, or is of an unknown family.
    """
    family = facts.builder.get("family")
    if family not in FAMILIES:
        raise PrivacyError(
            f"expected a package of the kinds {', '.join(FAMILIES)}, got {str(family)[:32]!r}; those alone can be "
            "sent, carry another here and approve your own copy of it"
        )


def delete_sent(folder: Path, digest: str) -> bool:
    """Delete what was sent of a backbone, whole or in part; whether there was something.

    Raises:
        ConfigError: a piece of it is being written for too long, or the folder cannot be written.
    """
    if not (folder / BACKBONES).is_dir():
        return False
    with alone(folder / BACKBONES / LOCK, LOCK_TIMEOUT_S):
        there = place_of(folder, digest).exists() or box_of(folder, digest).exists()
        discard(folder, digest)
        shutil.rmtree(place_of(folder, digest), ignore_errors=True)
    return there


def discard(folder: Path, digest: str) -> None:
    """Delete what has come of a package that is not whole."""
    forget_note(folder, digest)
    shutil.rmtree(box_of(folder, digest), ignore_errors=True)


def forget_note(folder: Path, digest: str) -> None:
    """Delete the note of how far a package is, and what a process left that was killed while it wrote one."""
    note = note_of(folder, digest)
    note.unlink(missing_ok=True)
    for left in note.parent.glob(f".{note.name}.*"):
        left.unlink(missing_ok=True)


def _changed(place: Path) -> ConfigError:
    return ConfigError(
        f"the backbone in {place} was changed since it came; withdraw its approval, which deletes it, then approve it "
        "anew"
    )

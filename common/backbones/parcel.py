"""A package on its way: one row of bytes in pieces of one size, its files one after the other, ``backbone.json`` first.

That file goes first because its SHA-256 is the digest that a node's operator approved, and it holds the SHA-256 of
every other file: each byte is checked by what came before it.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from common.backbones.package_facts import FACTS, WEIGHTS, read_facts
from common.errors import ConfigError

PIECE_BYTES = 4 << 20  # of every piece but the last
MOST_FACTS_BYTES = 16 << 20
PACKAGE = "package/"


@dataclass(frozen=True)
class Contents:
    """Which files a package has.

    Attributes:
        digest: of the package.
        files: name and size of each, in the order in which they are sent.
    """

    digest: str
    files: tuple[tuple[str, int], ...]

    @property
    def total(self) -> int:
        """Size of everything."""
        return sum(size for _, size in self.files)

    def may_be_held(self, received: int) -> bool:
        """Whether a node can have so many bytes: whole pieces, or everything."""
        return received == self.total or (0 <= received < self.total and received % PIECE_BYTES == 0)

    def piece_bytes(self, offset: int) -> int:
        """Size of the piece that begins there."""
        return min(PIECE_BYTES, self.total - offset)

    def cut(self, offset: int, size: int) -> list[tuple[str, int, int]]:
        """Which bytes of which files a piece of the row is: name, offset in the file, size."""
        pieces, start = [], 0
        for name, length in self.files:
            first, last = max(offset, start), min(offset + size, start + length)
            if first < last:
                pieces.append((name, first - start, last - first))
            start += length
        return pieces


@dataclass(frozen=True)
class Part:
    """A piece of a package, as the server sends it.

    Attributes:
        contents: of the whole package, the same in every part.
        offset: of the piece in the row.
        data: the piece; empty asks how far the node is.
    """

    contents: Contents
    offset: int
    data: bytes

    def is_one(self) -> bool:
        """Whether this is a piece of that package, or asks how far the node is: nothing longer, shorter or between."""
        if not self.data:
            return self.offset == 0
        whole = len(self.data) == self.contents.piece_bytes(self.offset)
        return whole and self.offset < self.contents.total and self.contents.may_be_held(self.offset)


@dataclass(frozen=True)
class Parcel:
    """A package that can be sent.

    Attributes:
        folder: of the package.
        contents: of it.
    """

    folder: Path
    contents: Contents

    def part(self, offset: int) -> Part:
        """The piece that begins there; of what changed on disk since, the node's checks find out.

        Raises:
            ConfigError: a file of the package cannot be read.
        """
        data = b""
        for name, start, size in self.contents.cut(offset, PIECE_BYTES):
            try:
                with (self.folder / name).open("rb") as file:
                    file.seek(start)
                    data += file.read(size)
            except OSError as error:
                raise ConfigError(
                    f"expected the package {self.folder} to stay where it is, {name} cannot be read "
                    f"({error.strerror}); put it back, then resume"
                ) from error
        return Part(self.contents, offset, data)


def parcel_of(reference: str, digest: str) -> Parcel | None:
    """The package that a reference names, ready to be sent; None where it names something else.

    Args:
        reference: of a backbone.
        digest: that it was loaded with.

    Raises:
        ConfigError: the package cannot be read, or has another digest by now.
    """
    folder = Path(reference.removeprefix(PACKAGE)).expanduser()
    if not reference.startswith(PACKAGE) or not (folder / FACTS).is_file():
        return None
    facts = read_facts(folder)
    if facts.digest != digest:
        raise ConfigError(f"the package {folder} was changed while the run began; put back what was there, then resume")
    names = [FACTS, *sorted(facts.files, key=lambda name: (name == WEIGHTS, name))]
    try:
        sizes = tuple((name, (folder / name).stat().st_size) for name in names)
    except OSError as error:
        raise ConfigError(f"expected all files of the package {folder} ({error.strerror}); copy it again") from error
    return Parcel(folder, Contents(digest, sizes))

"""The app's sources, compiled and imported once in the process that forks instead of in each fork.

Unpacking a bundle of some hundred files, and importing them, takes longer than a round. A bundle that holds the
installed sources, byte for byte, is not unpacked: they are imported already, from the very bytes that the bundle is
compared with, and nothing of them is read from a disk again. Any other bundle is unpacked and imported as ever; those
of its files that are the installed ones are found by the SHA-256 of their text and not compiled again.
"""

from __future__ import annotations

import hashlib
import importlib
import io
import sys
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.abc import InspectLoader, MetaPathFinder
from importlib.machinery import ModuleSpec, SourceFileLoader
from importlib.util import find_spec
from pathlib import Path
from types import CodeType, ModuleType
from typing import Any

ABOUT = {"LICENSE", "pyproject.toml", ".info/CONTENT"}
"""What is in a bundle beside sources."""
INIT = "__init__.py"


@dataclass(frozen=True)
class Source:
    """One file, read once.

    Attributes:
        path: where it was.
        digest: SHA-256 of its text.
        code: that it was compiled to.
    """

    path: Path
    digest: bytes
    code: CodeType


class Precompiled(MetaPathFinder, InspectLoader):
    """Some packages as they were installed when this was made.

    Args:
        packages: their names.
        sources: each file, by its place in a bundle, such as ``common/wire.py``.
    """

    def __init__(self, packages: Sequence[str], sources: Mapping[str, Source]) -> None:
        self._packages = frozenset(packages)
        self._sources = sources
        self._loaded = False

    @classmethod
    def installed(cls, packages: Sequence[str]) -> Precompiled:
        """Compile what is installed of some packages; one that is not there is left out."""
        sources = {}
        for package in packages:
            found = find_spec(package)
            for folder in (found.submodule_search_locations or []) if found else []:
                for path in sorted(Path(folder).rglob("*.py")):
                    text = path.read_bytes()
                    code = compile(text, str(path), "exec", dont_inherit=True)
                    place = f"{package}/{path.relative_to(folder).as_posix()}"
                    sources[place] = Source(path, hashlib.sha256(text).digest(), code)
        return cls(packages, sources)

    def load(self, module: str) -> None:
        """Import a module and what it needs of the packages anew, from what was compiled here."""
        self._drop()
        sys.meta_path.insert(0, self)
        importlib.import_module(module)
        self._loaded = True

    def is_all_of(self, bundle: bytes) -> bool:
        """Whether what was loaded is what a bundle holds: every file of the packages, byte for byte, and no other."""
        if not self._loaded:
            return False
        with zipfile.ZipFile(io.BytesIO(bundle)) as archive:
            names = [name for name in archive.namelist() if name not in ABOUT]
            digests = {name: hashlib.sha256(archive.read(name)).digest() for name in names}
        same = digests == {place: source.digest for place, source in self._sources.items()}
        return same and len(names) == len(digests)

    def use(self) -> None:
        """From now on, in this process, import what lies elsewhere; equal sources are not compiled, nothing is written.

        What was loaded here is forgotten.
        """
        if self in sys.meta_path:
            sys.meta_path.remove(self)
        self._loaded = False
        self._drop()
        compiled = SourceFileLoader.source_to_code
        codes = {source.digest: source.code for source in self._sources.values()}

        def source_to_code(loader: SourceFileLoader, data: Any, path: Any, **options: Any) -> CodeType:
            known = codes.get(hashlib.sha256(data).digest())
            return compiled(loader, data, path, **options) if known is None else known

        SourceFileLoader.source_to_code = source_to_code  # type: ignore[method-assign, assignment]
        sys.dont_write_bytecode = True

    def find_spec(
        self, fullname: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """Where a module of the packages is: here; Python's import system asks."""
        source = self._source(fullname)
        if source is None:
            return None
        spec = ModuleSpec(fullname, self, origin=str(source.path), is_package=source.path.name == INIT)
        spec.has_location = True
        if spec.submodule_search_locations is not None:
            spec.submodule_search_locations.append(str(source.path.parent))
        return spec

    def get_code(self, fullname: str) -> CodeType | None:
        """What a module was compiled to; Python's import system asks."""
        source = self._source(fullname)
        return None if source is None else source.code

    def get_source(self, fullname: str) -> str | None:
        """Of a module, its text is not kept."""
        return None

    def _source(self, fullname: str) -> Source | None:
        place = fullname.replace(".", "/")
        return self._sources.get(f"{place}.py") or self._sources.get(f"{place}/{INIT}")

    def _drop(self) -> None:
        for name in [name for name in sys.modules if name.partition(".")[0] in self._packages]:
            del sys.modules[name]

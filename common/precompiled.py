"""The app's sources, compiled once in the process that forks instead of in each fork.

A bundle is unpacked from its bytes for every message, so that Python would compile a hundred files each time. Those
that are the installed ones, byte for byte, are compiled here, and found again by the SHA-256 of their text; others
are compiled where they are imported, as ever. Nothing of a bundle is read or run to that end.
"""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Mapping, Sequence
from importlib.machinery import SourceFileLoader
from importlib.util import find_spec
from pathlib import Path
from types import CodeType
from typing import Any


class Precompiled:
    """Code by the SHA-256 of its source."""

    def __init__(self, codes: Mapping[bytes, CodeType]) -> None:
        self._codes = codes

    @classmethod
    def installed(cls, packages: Sequence[str]) -> Precompiled:
        """Compile what is installed of some packages; one that is not there is left out."""
        codes = {}
        for package in packages:
            found = find_spec(package)
            for folder in (found.submodule_search_locations or []) if found else []:
                for path in sorted(Path(folder).rglob("*.py")):
                    source = path.read_bytes()
                    codes[hashlib.sha256(source).digest()] = compile(source, str(path), "exec", dont_inherit=True)
        return cls(codes)

    def use(self) -> None:
        """From now on, in this process, import equal sources without compiling or writing anything."""
        compiled, codes = SourceFileLoader.source_to_code, self._codes

        def source_to_code(loader: SourceFileLoader, data: Any, path: Any, **options: Any) -> CodeType:
            known = codes.get(hashlib.sha256(data).digest())
            return compiled(loader, data, path, **options) if known is None else known

        SourceFileLoader.source_to_code = source_to_code  # type: ignore[method-assign, assignment]
        sys.dont_write_bytecode = True

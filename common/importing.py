"""Importing what takes long: without looking for garbage in it, or not before it is used."""

from __future__ import annotations

import gc
import importlib.util
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType


@contextmanager
def without_collecting() -> Iterator[None]:
    """Import within this: Python looks for garbage time and again, in modules that stay, a fifth of the time.

    What was imported is not looked through later, either.
    """
    known, collects = len(sys.modules), gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if len(sys.modules) > known:
            gc.freeze()
        if collects:
            gc.enable()


def import_when_used(name: str) -> None:
    """Whoever imports a module first only names it: it is imported when somebody looks into it, or imports it again."""
    if name not in sys.modules:
        sys.meta_path.insert(0, _Later(name))


class _Later(MetaPathFinder):
    """Finds one module, once."""

    def __init__(self, name: str) -> None:
        self._name = name

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname != self._name:
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(fullname)
        if spec is not None and spec.loader is not None:
            spec.loader = importlib.util.LazyLoader(spec.loader)
        return spec

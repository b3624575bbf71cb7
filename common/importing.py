"""Importing what takes long: without looking for garbage in it, or all modules through, or not before it is used."""

from __future__ import annotations

import gc
import importlib.util
import inspect
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


@contextmanager
def frames_by_name() -> Iterator[None]:
    """Say of a frame which module it is in, without looking all modules and their files through as Python does.

    PyTorch and torchvision ask for it where they define operators in Python, to note where that was.
    """
    looked_up = inspect.getmodule

    def module_of(thing: object, _filename: str | None = None) -> ModuleType | None:
        named = sys.modules.get(thing.f_globals.get("__name__", "")) if inspect.isframe(thing) else None
        return looked_up(thing, _filename) if named is None else named

    inspect.getmodule = module_of  # type: ignore[assignment]  # it is called by position
    try:
        yield
    finally:
        inspect.getmodule = looked_up


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

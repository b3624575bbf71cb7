"""PyTorch, imported without what it knows of tensors that have no values.

For some thousand operators ``torch._meta_registrations`` says which shape comes out of them. Compilers ask for it, and
exporters; nothing that computes does. It is a quarter of the import, and here it is imported when one of these is. Who
computes on the device "meta" without them asks for it by ``complete_torch``, there is nothing to notice that by; or has
another way where an operator says that it is missing.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Sequence
from contextlib import suppress
from importlib import metadata
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType

from common.importing import frames_by_name

REGISTRATIONS = "torch._meta_registrations"
PARTS = frozenset({"torch._decomp", "torch._prims", "torch._refs"})  # come with it, and can only be imported by it
TRIED = "2.15."
ASKING = frozenset({"torch._dynamo", "torch._inductor", "transformers", "opacus"})


def import_torch() -> None:
    """Import PyTorch, where nobody has; all of it, where another PyTorch comes with more or needs more."""
    if "torch" in sys.modules or not _known():
        return
    sys.modules[REGISTRATIONS] = ModuleType(REGISTRATIONS)
    try:
        with frames_by_name():
            torch = importlib.import_module("torch")
    finally:
        del sys.modules[REGISTRATIONS]
    with suppress(AttributeError):
        del torch._meta_registrations
    # what comes with it does so on its way, and until then there are no generators
    torch._C._set_generator_metaclass(importlib.import_module("torch._custom_class_base").CustomClassBaseMeta)
    sys.meta_path.insert(0, _Completing())


def _known() -> bool:
    """Whether it is the PyTorch that this was tried with: another one may ask for it while it is imported."""
    try:
        return metadata.version("torch").startswith(TRIED)
    except metadata.PackageNotFoundError:  # installed in a way of its own
        return False


def complete_torch() -> None:
    """Import what was left out, for networks that may be laid out without values."""
    if "torch" in sys.modules:
        importlib.import_module(REGISTRATIONS)


class _Completing(MetaPathFinder, Loader):
    """Sees who is imported, and completes PyTorch before; it stays where it is, for others may be looking, too."""

    def __init__(self) -> None:
        self._done = False

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """Find nothing but what comes with the rest."""
        if self._done:
            return None
        if fullname in PARTS:
            return ModuleSpec(fullname, self)
        if fullname == REGISTRATIONS or fullname in ASKING:
            self._done = True
            if fullname in ASKING:
                complete_torch()
        return None

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        """Import all of it; this part is there then."""
        complete_torch()
        return sys.modules[spec.name]

    def exec_module(self, module: ModuleType) -> None:
        """It is executed already."""

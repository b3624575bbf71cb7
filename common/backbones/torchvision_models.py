"""torchvision's ``models``, imported without PyTorch's compiler.

One operator of torchvision's, which no classification network has, asks ``torch._dynamo`` at its first call whether it
can be compiled; for that question all of the compiler is imported with torchvision, which takes ten times as long as
torchvision itself. Here the question is put when it is asked.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from types import ModuleType
from typing import Any

from common.importing import frames_by_name, without_collecting

MODELS = "torchvision.models"
COMPILER, ASKED = "torch._dynamo", "torch._dynamo.utils"


def models() -> Any:
    """The module ``torchvision.models``."""
    if MODELS in sys.modules:
        return sys.modules[MODELS]
    with without_collecting(), frames_by_name():
        if "torchvision" not in sys.modules and COMPILER not in sys.modules:
            # a torchvision that asks for more gets it below
            with _asked_later(), suppress(ImportError, AttributeError):
                importlib.import_module("torchvision")
        return importlib.import_module(MODELS)


@contextmanager
def _asked_later() -> Iterator[None]:
    """Stand in for the compiler while torchvision is imported."""
    package, asked = ModuleType(COMPILER), ModuleType(ASKED)
    package.__path__ = []
    asked.is_compile_supported = _is_compile_supported  # type: ignore[attr-defined]
    sys.modules |= {COMPILER: package, ASKED: asked}
    try:
        yield
    finally:
        for name in (COMPILER, ASKED):
            del sys.modules[name]


def _is_compile_supported(device_type: str) -> Any:
    from torch._dynamo.utils import is_compile_supported

    return is_compile_supported(device_type)

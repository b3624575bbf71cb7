"""Imports without the collector, and torchvision without PyTorch's compiler."""

from __future__ import annotations

import gc
import subprocess
import sys

import pytest

from common.importing import without_collecting

LATER = """
import sys
from common.backbones import torchvision_models
CHANGE
models = torchvision_models.models()
loaded = [name for name in ("torch._dynamo", "torch._dynamo.utils") if name in sys.modules]
print("imported", loaded, len(models.list_models()) > 80, end="; ")
import torch, torchvision
boxes = [torch.tensor([[0.0, 0.0, 8.0, 8.0]])]
print("asked", sys.modules["torchvision.ops.roi_align"].is_compile_supported("meta"), end="; ")
print("works", tuple(torchvision.ops.roi_align(torch.ones(1, 3, 16, 16), boxes, 2).shape), end="; ")
print("compiler", bool(sys.modules["torch._dynamo"].__file__))
"""


def test_nothing_is_collected_while_importing_and_the_collector_is_as_it_was():
    with without_collecting():
        assert not gc.isenabled()
    assert gc.isenabled()
    gc.disable()
    try:
        with without_collecting():
            pass
        assert not gc.isenabled()
    finally:
        gc.enable()


def test_what_was_imported_is_not_looked_through_again(monkeypatch):
    before = gc.get_freeze_count()
    with without_collecting():
        pass
    assert gc.get_freeze_count() == before
    with without_collecting():
        monkeypatch.setitem(sys.modules, "one_more", sys)
    assert gc.get_freeze_count() > before
    gc.unfreeze()


@pytest.mark.parametrize(
    ("change", "loaded"),
    [
        ("", "[]"),
        ("torchvision_models.ASKED = 'torch._dynamo.other'", "['torch._dynamo', 'torch._dynamo.utils']"),
    ],
    ids=["ours", "a torchvision that asks for more"],
)
def test_torchvision_works_whether_or_not_its_import_brings_the_compiler(change, loaded):
    code = LATER.replace("CHANGE", change)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    supported = "asked False" if "asked False" in done.stdout else "asked True"
    assert done.stdout == f"imported {loaded} True; {supported}; works (1, 3, 2, 2); compiler True\n"


def test_a_module_is_imported_by_whoever_looks_into_it():
    code = """
import sys
from common.importing import import_when_used
import_when_used("xml.dom.minidom")
import_when_used("there_is_no_such_module")
from xml.dom import minidom
print("xml.dom.xmlbuilder" in sys.modules, minidom.parseString("<a/>").documentElement.tagName, end=" ")
print("xml.dom.xmlbuilder" in sys.modules, sys.modules["xml.dom.minidom"] is minidom)
import xml.dom.minidom
try:
    import there_is_no_such_module
except ModuleNotFoundError:
    print(xml.dom.minidom is minidom)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.stdout == "False a True True\nTrue\n", done.stderr

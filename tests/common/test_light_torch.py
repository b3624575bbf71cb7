"""PyTorch without what it knows of tensors that have no values: who asks for that gets it, whoever it is."""

from __future__ import annotations

import subprocess
import sys

import pytest

BEGIN = """
import sys
from common.light_torch import REGISTRATIONS, complete_torch, import_torch
"""
LIGHT = f"""{BEGIN}
import_torch()
import torch
light = REGISTRATIONS not in sys.modules
"""
SHAPES = """
conv = torch.nn.Conv2d(3, 4, 3, device="meta")
print(light, REGISTRATIONS in sys.modules, tuple(conv(torch.empty(2, 3, 8, 8, device="meta")).shape))
"""
WITHOUT = """
try:
    torch.nn.Conv2d(3, 4, 3, device="meta")(torch.empty(2, 3, 8, 8, device="meta"))
except NotImplementedError:
    print(light, "refused")
"""


def said_by(code: str) -> str:
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


@pytest.mark.parametrize(
    "asks",
    [
        "complete_torch()",
        "import torch._dynamo",
        "import torch._decomp.decompositions",
        "import torch._refs.linalg",
        "import torch._prims",
        "import torch._meta_registrations",
        "import opacus",
        "import transformers",
        "torch.func.vmap(torch.sum)(torch.ones(3, 2))",
        "torch.compile(torch.relu, backend='eager')(torch.ones(2))",
    ],
)
def test_who_asks_for_shapes_without_values_gets_them(asks):
    assert said_by(f"{LIGHT}\n{asks}\n{SHAPES}") == "True True (2, 4, 6, 6)"


def test_the_control_that_nobody_asks_for_has_none():
    assert said_by(LIGHT + WITHOUT) == "True refused"


def test_a_torch_that_is_there_stays_as_it_is():
    code = f"{BEGIN}\nimport torch\nimport_torch()\nlight = REGISTRATIONS not in sys.modules\n{SHAPES}"
    assert said_by(code) == "False True (2, 4, 6, 6)"


def test_gradients_of_each_record_are_what_they_are_with_all_of_it():
    code = """
grad = torch.func.grad(lambda weight, record: (weight * record).sin().sum())
print(torch.func.vmap(grad, in_dims=(None, 0))(torch.ones(2), torch.arange(6.0).view(3, 2)).tolist())
"""
    assert said_by(LIGHT + code) == said_by(f"import torch\n{code}")


def test_generators_are_there_before_and_after_it_is_completed():
    draw = "print(torch.rand(2, generator=torch.Generator().manual_seed(0)).tolist())"
    once = said_by(f"import torch\n{draw}")
    assert said_by(f"{LIGHT}\n{draw}\ncomplete_torch()\n{draw}\nprint(light)") == f"{once}\n{once}\nTrue"


def test_another_torch_is_imported_as_a_whole_by_whoever_imports_it():
    code = f"{BEGIN}\nimport common.light_torch\ncommon.light_torch.TRIED = '1.'\nimport_torch()\nimport torch"
    assert said_by(f"{code}\nprint(REGISTRATIONS in sys.modules)") == "True"


def test_a_network_of_the_users_own_may_be_laid_out_without_values(tmp_path):
    (tmp_path / "mine.py").write_text(
        "import torch\nfrom common.backbones.module_family import UserBackbone\n"
        "shape = torch.nn.Conv2d(3, 4, 3, device='meta')(torch.empty(2, 3, 8, 8, device='meta')).shape\n"
        "print(tuple(shape))\ndef net():\n    raise SystemExit(0)\n"
    )
    code = f"""
import sys
sys.path.insert(0, {str(tmp_path)!r})
from common.light_torch import import_torch
import_torch()
from common.backbones.module_family import load
load("module/mine:net")
"""
    assert said_by(code) == "(2, 4, 6, 6)"


def test_where_an_operator_was_defined_is_noted_as_ever():
    code = """
import inspect
from torch._library.simple_registry import singleton
entries = {name: entry.fake_impl.kernel for name, entry in singleton._data.items() if "prims::" not in name}
print(inspect.getmodule.__module__, sorted((name, kernel.source) for name, kernel in entries.items() if kernel))
"""
    noted = said_by(LIGHT + code)
    assert noted == said_by(f"import torch\n{code}")
    assert ".py:" in noted

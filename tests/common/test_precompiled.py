"""Sources compiled once: the same modules come of them, and changed sources are compiled as ever."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from flwr.supercore.inflatable import inflatable_utils

from common import short_waits

CHILD = """
import sys
from pathlib import Path
from common.precompiled import Precompiled
folder, other = Path(sys.argv[1]), Path(sys.argv[2])
sys.path.insert(0, str(folder))
compiled = Precompiled.installed(["parcel", "missing"])
compiled.use()
import builtins
real, seen = builtins.compile, []
def counting(source, path, *arguments, **options):
    seen.append(Path(path).name)
    return real(source, path, *arguments, **options)
builtins.compile = counting
import importlib._bootstrap_external as outer
outer.compile = counting
sys.path[0] = str(other)
import parcel.same, parcel.changed
print(parcel.same.VALUE, parcel.changed.VALUE, Path(parcel.same.__file__).parent.parent == other, *sorted(seen))
print(any(other.rglob("*.pyc")))
"""


def packed(folder: Path, changed: str) -> Path:
    (folder / "parcel").mkdir(parents=True)
    for name, text in (("__init__", ""), ("same", "VALUE = 1\n"), ("changed", changed)):
        (folder / "parcel" / f"{name}.py").write_text(text)
    return folder


def test_what_is_equal_is_not_compiled_again_and_what_is_not_is_itself(tmp_path: Path) -> None:
    one, other = packed(tmp_path / "one", "VALUE = 2\n"), packed(tmp_path / "other", "VALUE = 3\n")
    done = subprocess.run([sys.executable, "-c", CHILD, one, other], capture_output=True, text=True, check=False)
    assert done.stdout.split() == ["1", "3", "True", "changed.py", "False"], done.stderr


def test_flower_waits_less_for_the_parts_of_a_message() -> None:
    functions = [getattr(inflatable_utils, name) for name in short_waits.PULLS]
    before = [function.__kwdefaults__["initial_backoff"] for function in functions]
    try:
        short_waits.wait_less()
        assert {function.__kwdefaults__["initial_backoff"] for function in functions} == {short_waits.FIRST_WAIT_S}
    finally:
        for function, seconds in zip(functions, before, strict=True):
            function.__kwdefaults__["initial_backoff"] = seconds

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


LOADED = """
import io, sys, zipfile
from pathlib import Path
from common.precompiled import Precompiled
folder = Path(sys.argv[1])
sys.path.insert(0, str(folder))
import parcel.changed as before
compiled = Precompiled.installed(["parcel"])

def bundle(**others):
    files = {f"parcel/{path.name}": path.read_text() for path in sorted((folder / "parcel").glob("*.py"))}
    with zipfile.ZipFile(into := io.BytesIO(), "w") as archive:
        for name, text in {"pyproject.toml": "", "LICENSE": "", ".info/CONTENT": "", **files, **others}.items():
            archive.writestr(name, text)
    return into.getvalue()

usual = bundle()
assert not compiled.is_all_of(usual), "nothing is loaded yet"
compiled.load("parcel.changed")
import parcel.changed as after
assert after is not before and after.VALUE == 2
assert compiled.is_all_of(usual)
assert not compiled.is_all_of(bundle(**{"parcel/same.py": "VALUE = 10"}))
assert not compiled.is_all_of(bundle(**{"parcel/more.py": ""}))
assert not compiled.is_all_of(bundle(**{"other/more.py": ""}))
(folder / "parcel" / "same.py").write_text("VALUE = 9")
assert not compiled.is_all_of(bundle()), "it is what was there at first"
import parcel.same
assert parcel.same.VALUE == 1, "and so is what is imported later"
(folder / "parcel" / "same.py").unlink()
assert not compiled.is_all_of(bundle())
compiled.use()
assert not any(name.startswith("parcel") for name in sys.modules)
assert not compiled.is_all_of(usual), "nothing is loaded any more"
import parcel.changed
assert parcel.changed.VALUE == 2 and parcel.changed is not after
"""


def test_a_bundle_is_what_was_loaded_only_to_the_last_byte(tmp_path: Path) -> None:
    folder = packed(tmp_path / "one", "VALUE = 2\n")
    done = subprocess.run([sys.executable, "-c", LOADED, folder], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr

"""What is built, installed and called: wheel, Flower app bundle, pinned environment, make targets, CI."""

from __future__ import annotations

import ast
import hashlib
import json
import os
import re
import stat
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import numpy as np
import pytest
from flwr.cli.build import build_fab_from_disk
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from PIL import Image

from common.bundle import assemble, up_to_date, update_pyproject
from common.config import default_flat, dump_toml
from common.data import load_source
from common.errors import ConfigError
from common.paths import CACHE
from tests.federations import small_config

ROOT = Path(__file__).parents[1]
PYPROJECT = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
MAKE_FILES = ("Makefile", "pyproject.toml", "constraints.txt")


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """Build the wheel of this checkout and unpack it."""
    folder = tmp_path_factory.mktemp("wheel")
    build = [
        sys.executable,
        "-m",
        "pip",
        "wheel",
        str(ROOT),
        "--no-deps",
        "--no-build-isolation",
        "-q",
        "-w",
        str(folder),
    ]
    subprocess.run(build, check=True, capture_output=True, cwd=folder)
    (path,) = folder.glob("*.whl")
    with zipfile.ZipFile(path) as archive:
        archive.extractall(folder / "unpacked")
    return folder / "unpacked"


def file_digests(folder: Path) -> dict[str, str]:
    """Return the SHA-256 of every file of a folder."""
    paths = [path for path in sorted(folder.rglob("*")) if path.is_file()]
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in paths}


def test_the_wheel_holds_the_packages_with_their_assets_and_nothing_else(wheel):
    top = {path.name for path in wheel.iterdir() if not path.name.endswith(".dist-info")}
    assert top == {"common", "client", "server", "simulations", "fedgraft.py"}
    for needed in ("common/backbones/assets", "simulations/configs/digits.toml", "common/backbones/__init__.py"):
        assert (wheel / needed).exists(), needed
    assert not list(wheel.rglob("__pycache__"))
    tracked = subprocess.run(["git", "ls-files", "*.safetensors"], cwd=ROOT, capture_output=True, text=True, check=True)
    for weights in tracked.stdout.split():
        assert (wheel / weights).exists(), weights
    kinds = {path.suffix for path in wheel.rglob("*") if path.is_file() and ".dist-info" not in str(path)}
    assert kinds <= {".py", ".toml", ".safetensors", ".json", ".md", ".html", ".typed"}, kinds
    assert not [path for path in wheel.rglob("*") if "test" in path.name.lower() or "docker" in path.name.lower()]


def test_the_wheel_carries_its_licence(wheel):
    (licence,) = wheel.glob("*.dist-info/licenses/LICENSE")
    assert licence.read_bytes() == (ROOT / "LICENSE").read_bytes()


def test_the_bundle_is_the_same_from_a_checkout_and_from_a_wheel(wheel, tmp_path):
    assemble(tmp_path / "checkout")
    script = "import sys, pathlib, common.bundle as b; b.assemble(pathlib.Path(sys.argv[1])); print(b.__file__)"
    done = subprocess.run(
        [sys.executable, "-c", script, str(tmp_path / "wheel")],
        env={"PYTHONPATH": str(wheel)},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.startswith(str(wheel))
    assert file_digests(tmp_path / "checkout") == file_digests(tmp_path / "wheel")


def test_flower_accepts_the_bundle_and_it_is_the_same_each_time(tmp_path):
    one, other = (build_fab_from_disk(assemble(tmp_path / name)) for name in ("one", "other"))
    assert one == other
    (tmp_path / "app.fab").write_bytes(one)
    with zipfile.ZipFile(tmp_path / "app.fab") as archive:
        names = archive.namelist()
    assert {"LICENSE", "pyproject.toml", "client/app.py", "server/app.py", "common/__init__.py"} <= set(names)
    assert not [name for name in names if name.startswith(("simulations", "tests"))]


def test_the_generated_part_of_pyproject_is_up_to_date():
    assert up_to_date(PYPROJECT) == PYPROJECT, "run: python -m common.bundle --update-pyproject"


def test_flower_knows_every_configuration_key():
    def keys(table: dict, prefix: str = "") -> list[str]:
        return [
            key
            for name, value in table.items()
            for key in (keys(value, f"{prefix}{name}.") if isinstance(value, dict) else [f"{prefix}{name}"])
        ]

    app = tomllib.loads(PYPROJECT)["tool"]["flwr"]["app"]
    assert keys(app["config"]) == list(default_flat())


def test_a_stale_pyproject_is_rewritten_once(tmp_path):
    path = tmp_path / "pyproject.toml"
    path.write_text(PYPROJECT.replace("rounds = 30", "ronuds = 30"))
    assert update_pyproject(path)
    assert path.read_text() == PYPROJECT
    assert not update_pyproject(path)
    path.write_text("[project]\n")
    with pytest.raises(ConfigError, match="put it back"):
        update_pyproject(path)


def test_constraints_pin_everything_that_is_declared():
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    pins = dict(line.split("==") for line in lines if line and not line.startswith("#"))
    pinned = {canonicalize_name(name): version for name, version in pins.items()}
    project = tomllib.loads(PYPROJECT)
    declared = [*project["project"]["dependencies"], *project["project"]["optional-dependencies"]["test"]]
    for requirement in map(Requirement, [*declared, *project["build-system"]["requires"]]):
        version = pinned[canonicalize_name(requirement.name)]
        assert requirement.specifier.contains(version), f"{requirement} but {version} is pinned"


def test_the_front_door_parses_on_old_pythons():
    ast.parse((ROOT / "fedgraft.py").read_text(), feature_version=(3, 7))


def test_ci_runs_the_test_command_of_the_readme():
    script = ROOT / ".ci" / "run"
    assert script.stat().st_mode & stat.S_IXUSR
    last = script.read_text().strip().splitlines()[-1]
    assert last == "make test"
    assert re.search(rf"\b{last}\b", (ROOT / "README.md").read_text())


@pytest.fixture(scope="module")
def installed(wheel, tmp_path_factory):
    """Install the wheel into an environment that takes everything else from this one; return its programs' folder.

    Folders on a path that a .pth file names are searched for packages, but their own .pth files are not read: an
    editable fedgraft does not get in.
    """
    environment = tmp_path_factory.mktemp("installed") / "environment"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(environment)], check=True)
    python = environment / "bin" / "python"
    purelib = "import sysconfig; print(sysconfig.get_path('purelib'))"
    found = subprocess.run([python, "-c", purelib], capture_output=True, text=True, check=True).stdout.strip()
    others = [path for path in sys.path if path.endswith("-packages")]
    (Path(found) / "others.pth").write_text("\n".join(others) + "\n")
    (built,) = wheel.parent.glob("*.whl")
    install = [sys.executable, "-m", "pip", "--python", str(python), "install", "--no-deps", "--no-index", "--quiet"]
    subprocess.run([*install, "--ignore-installed", str(built)], check=True, capture_output=True, cwd=environment)
    for path in Path(sys.executable).parent.glob("fl[ow]*r*"):  # Flower's programs, with this environment's Python
        _, _, rest = path.read_text().partition("\n")
        program(python.with_name(path.name), rest).write_text(f"#!{python}\n{rest}")
    return python.parent


@pytest.mark.slow
def test_an_installed_wheel_simulates_on_both_engines_to_the_same_head_and_predicts(installed, tmp_path):
    """Each run has an empty feature cache of its own, and Ray two workers where there are two cores."""

    def call(*arguments: str, cache: str = "inprocess") -> str:
        environment = {"PATH": os.defpath, "HOME": str(tmp_path), CACHE: str(tmp_path / f"cache-{cache}")}
        command = [installed / "fedgraft", *arguments]
        done = subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        return done.stdout

    whose = subprocess.run(
        [installed / "python", "-c", "import common, simulations; print(common.__file__, simulations.__file__)"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=True,
    )
    assert whose.stdout.count(str(installed.parent)) == 2
    config = tmp_path / "config.toml"
    model, federation = {"backbone": "embedded/glyph"}, {"nodes": 8, "cohort": 3, "rounds": 4}
    config.write_text(dump_toml(small_config(model=model, federation=federation, data={"partition": "dirichlet"})))
    for engine in ("inprocess", "ray"):
        call("simulate", str(config), "--out", engine, "--engine", engine, cache=engine)
    one, other = (json.loads((tmp_path / engine / "result.json").read_text()) for engine in ("inprocess", "ray"))
    head = Path("model") / "head.safetensors"
    assert (tmp_path / "inprocess" / head).read_bytes() == (tmp_path / "ray" / head).read_bytes()
    assert one["privacy"] == other["privacy"]  # epsilon of every ledger among it
    assert one["accuracy"] == other["accuracy"]
    Image.fromarray(np.asarray(load_source("digits").inputs[0])).save(tmp_path / "digit.png")
    assert "digit.png" in call("predict", str(tmp_path / "ray" / "model"), "digit.png")


@pytest.fixture
def project(tmp_path):
    """Copy what make needs, with a `fedgraft` that only notes its arguments, and an installer to be scripted."""
    for name in MAKE_FILES:
        (tmp_path / name).write_bytes((ROOT / name).read_bytes())
    return tmp_path


def program(path: Path, script: str) -> Path:
    """Write a shell script that can be called."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)
    return path


def make(project: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Call make in a copy."""
    command = ["make", "--no-print-directory", f"PYTHON={sys.executable}", *arguments]
    return subprocess.run(command, cwd=project, capture_output=True, text=True, check=False)


def installing_python(project: Path, pip_status: int) -> str:
    """Return a Python whose environments have a pip that ends with a given status, and a silent `fedgraft`."""
    inner = project / "inner"
    program(inner / "python", f'echo "pip $*" >> {project}/installs; exit {pip_status}')
    program(
        inner / "fedgraft",
        f'echo "$*" >> {project}/calls; mkdir -p runs/demo; echo \'source = "digits"\' > runs/demo/config.toml',
    )
    create = f'[ "$2" = venv ] && mkdir -p .venv/bin && cp {inner}/* .venv/bin/ || exit 0'
    return str(program(project / "python", create))


def test_a_second_demo_installs_nothing(project):
    python = installing_python(project, pip_status=0)
    for _ in range(2):
        done = make(project, "demo", f"PYTHON={python}")
        assert done.returncode == 0, done.stderr
    assert len((project / "installs").read_text().splitlines()) == 1
    assert (project / "calls").read_text() == "simulate simulations/configs/digits.toml --out runs/demo\n" * 2


def test_other_pins_are_installed(project):
    python = installing_python(project, pip_status=0)
    make(project, "demo", f"PYTHON={python}")
    with (project / "constraints.txt").open("a") as file:
        file.write("another==1.0\n")
    make(project, "demo", f"PYTHON={python}")
    assert len((project / "installs").read_text().splitlines()) == 2


def test_an_install_that_fails_is_tried_again(project):
    for status, good in ((1, False), (1, False), (0, True)):
        done = make(project, "demo", f"PYTHON={installing_python(project, pip_status=status)}")
        assert (done.returncode == 0) == good
        assert bool(list((project / ".venv").glob(".ready-*"))) == good
    assert len((project / "installs").read_text().splitlines()) == 3


def test_an_install_that_was_interrupted_begins_anew(project):
    python = installing_python(project, pip_status=1)
    make(project, "demo", f"PYTHON={python}")
    done = make(project, "-n", "demo", f"PYTHON={python}")
    assert "-m venv --clear .venv" in done.stdout
    make(project, "demo", f"PYTHON={installing_python(project, pip_status=0)}")
    with (project / "constraints.txt").open("a") as file:
        file.write("another==1.0\n")
    assert "-m venv  .venv" in make(project, "-n", "demo", f"PYTHON={python}").stdout  # other pins: no need to


RUN = dump_toml(small_config())


@pytest.mark.parametrize("left", [{}, {".config.toml.k3v9": "[fede"}, {"config.toml": RUN, "run.json": "{}"}])
def test_a_demo_that_was_killed_is_replaced(project, left):
    python = installing_python(project, pip_status=0)
    for folder in ("demo", ".demo-replaced"):
        (project / "runs" / folder).mkdir(parents=True)
        for name, text in left.items():
            (project / "runs" / folder / name).write_text(text)
    done = make(project, "demo", f"PYTHON={python}")
    assert done.returncode == 0, done.stderr
    assert (project / "calls").exists()
    assert [path.name for path in (project / "runs").iterdir()] == ["demo"]
    assert [path.name for path in (project / "runs" / "demo").iterdir()] == ["config.toml"]


@pytest.mark.parametrize(
    "mine", [{"notes.txt": "mine"}, {"config.toml": RUN.replace('source = "digits"', 'source = "/data"'), "a": ""}]
)
def test_the_demo_replaces_nothing_else(project, mine):
    python = installing_python(project, pip_status=0)
    place = project / "runs" / "demo"
    place.mkdir(parents=True)
    for name, text in mine.items():
        (place / name).write_text(text)
    done = make(project, "demo", f"PYTHON={python}")
    assert done.returncode != 0
    assert "runs/demo is not the demo's own run" in done.stderr
    assert {path.name: path.read_text() for path in place.iterdir()} == mine
    assert not (project / "calls").exists()

"""An environment for each peer, made from the package index and used again while its stamp fits.

PyTorch, torchvision, NumPy and what these need are not installed again: a ``.pth`` file leads to links to those of the
running environment, so that every program has the same build of them. All else a peer needs is its own.
"""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
import venv
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

SHARED = ("torch", "torchvision", "numpy")
STAMP = "peer.json"
LINKS = "shared-packages"


class EnvironmentNotMadeError(Exception):
    """A peer cannot be installed here; the message says why."""


@dataclass(frozen=True)
class Peer:
    """A package to compare with.

    Attributes:
        name: in the table.
        requirements: pinned, as pip takes them.
        package: whose version the table shows.
    """

    name: str
    requirements: tuple[str, ...]
    package: str


FLOWER = Peer("Flower + Opacus", ("flwr[simulation]==1.39.0", "opacus==1.6.0", "safetensors==0.8.0"), "flwr")
PFL = Peer("pfl-research", ("pfl==0.6.0", "dp-accounting==0.5.0", "safetensors==0.8.0"), "pfl")
FLARE = Peer("NVIDIA FLARE", ("nvflare==2.9.0", "opacus==1.6.0", "safetensors==0.8.0"), "nvflare")


@dataclass(frozen=True)
class Ready:
    """A peer's environment.

    Attributes:
        python: its interpreter.
        versions: of every package in it, by name; the shared ones too.
    """

    python: Path
    versions: Mapping[str, str]


def make(peer: Peer, folder: Path) -> Ready:
    """Make a peer's environment in this folder, or take the one that is there.

    Raises:
        EnvironmentNotMadeError: pip, the network or the disk did not allow it.
    """
    shared = shared_packages(SHARED)
    wanted = {"requirements": list(peer.requirements), "shared": shared, "python": sys.version, "home": sys.prefix}
    stamp = folder / STAMP
    python = folder / ("Scripts" if sys.platform == "win32" else "bin") / "python"
    if not (stamp.is_file() and json.loads(stamp.read_text(encoding="utf-8")) == wanted and python.exists()):
        shutil.rmtree(folder, ignore_errors=True)
        try:
            venv.create(folder, with_pip=True)
            _share(folder, shared)
            _install(python, peer, folder / "constraints.txt", shared)
        except OSError as error:
            raise EnvironmentNotMadeError(f"{folder} cannot be written: {error.strerror or error}") from None
        except subprocess.CalledProcessError as error:
            raise EnvironmentNotMadeError(_last_line(error.stderr or str(error))) from None
        stamp.write_text(json.dumps(wanted), encoding="utf-8")
    return Ready(python, _versions(python))


def shared_packages(names: tuple[str, ...]) -> dict[str, str]:
    """Versions of these distributions of the running environment and of all that they need, by name."""
    found: dict[str, str] = {}
    open_names = list(names)
    while open_names:
        try:
            distribution = metadata.distribution(open_names.pop())
        except metadata.PackageNotFoundError:
            continue  # an extra, or for another system
        name = distribution.metadata["Name"]
        if name not in found:
            found[name] = distribution.version
            needs = [need for need in distribution.requires or () if "extra ==" not in need]
            open_names += [match[0] for need in needs if (match := re.match(r"[\w.-]+", need))]
    return dict(sorted(found.items()))


def _share(folder: Path, shared: Mapping[str, str]) -> None:
    """Link the shared distributions into one folder and lead the environment there, after its own packages."""
    links = folder / LINKS
    links.mkdir()
    for name in shared:
        distribution = metadata.distribution(name)
        tops = {Path(file).parts[0] for file in distribution.files or () if Path(file).parts[0] not in ("..", "/")}
        for top in tops - {"__pycache__"}:
            target, link = Path(str(distribution.locate_file(top))), links / top
            if target.exists() and not link.exists():
                link.symlink_to(target.resolve())
    (packages,) = folder.glob("lib/python*/site-packages")
    (packages / "shared.pth").write_text(f"{links.resolve()}\n", encoding="utf-8")


def _install(python: Path, peer: Peer, constraints: Path, shared: Mapping[str, str]) -> None:
    constraints.write_text("".join(f"{name}=={version}\n" for name, version in shared.items()), encoding="utf-8")
    command = [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    command += ["--constraint", str(constraints), *peer.requirements]
    subprocess.run(command, check=True, capture_output=True, text=True)


def _versions(python: Path) -> dict[str, str]:
    program = (
        "import json; from importlib.metadata import distributions as found;"
        "print(json.dumps({d.metadata['Name'].lower(): d.version for d in reversed(list(found()))}))"
    )
    done = subprocess.run([str(python), "-c", program], check=True, capture_output=True, text=True)
    return dict(json.loads(done.stdout))


def _last_line(text: str) -> str:
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    errors = [line for line in lines if line.lower().startswith("error")] or lines or ["pip failed"]
    return errors[-1]

"""The images and compose files keep what docs/docker.md promises; nothing is built here."""

from __future__ import annotations

import json
import re
import shlex
import subprocess
import tomllib
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import click
import pytest
import typer
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import fedgraft
from client.keys import PRIVATE_KEYS
from common.config import load_config

ROOT = Path(__file__).parent.parent
DOCKER = ROOT / "docker"
KINDS = ("server", "node")
COMPOSED = ("compose.yml", "compose.node.yml")
LOCKS = ("requirements.txt", "build-requirements.txt")


def dockerfile(kind: str) -> list[tuple[str, str]]:
    """The instructions of an image, and what follows each, on one line."""
    text = (DOCKER / kind / "Dockerfile").read_text()
    lines = re.sub(r"^#.*\n", "", text, flags=re.MULTILINE).replace("\\\n", " ").splitlines()
    return [(line.split()[0], line.partition(" ")[2].strip()) for line in lines if line.strip()]


def services(name: str) -> dict[str, dict[str, Any]]:
    return dict(yaml.safe_load((DOCKER / name).read_text())["services"])


EVERY = [(name, service) for name in COMPOSED for service in services(name)]


def locked(path: Path) -> dict[str, str]:
    return {
        canonicalize_name(name): version
        for name, version in re.findall(r"^([\w.-]+)==(\S+)", path.read_text(), re.MULTILINE)
    }


@pytest.mark.parametrize("name", LOCKS)
def test_every_locked_package_has_a_hash_and_the_version_of_the_constraints(name):
    entries = re.split(r"^(?=[\w.-]+==)", (DOCKER / name).read_text(), flags=re.MULTILINE)[1:]
    assert len(entries) > 30
    assert all(re.search(r"--hash=sha256:[0-9a-f]{64}", entry) for entry in entries)
    constraints = locked(ROOT / "constraints.txt")
    found = locked(DOCKER / name)
    assert {one: found[one] for one in found if one in constraints} == {
        one: constraints[one] for one in found if one in constraints
    }
    assert "://" not in (DOCKER / name).read_text()


def test_the_lock_holds_what_the_package_depends_on():
    found = locked(DOCKER / "requirements.txt")
    assert set(found) <= set(locked(ROOT / "constraints.txt"))
    for text in tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dependencies"]:
        requirement = Requirement(text)
        assert found[canonicalize_name(requirement.name)] in requirement.specifier, text
    builds = locked(DOCKER / "build-requirements.txt")
    for text in tomllib.loads((ROOT / "pyproject.toml").read_text())["build-system"]["requires"]:
        assert builds[canonicalize_name(Requirement(text).name)] in Requirement(text).specifier


@pytest.mark.parametrize("kind", KINDS)
def test_an_image_copies_what_is_there_and_not_ignored(kind):
    ignored = [line for line in (ROOT / ".dockerignore").read_text().split("\n") if line and not line.startswith("#")]
    let_in = [line[1:] for line in ignored if line.startswith("!")]
    for _, rest in (one for one in dockerfile(kind) if one[0] == "COPY" and "--from" not in one[1]):
        *sources, _ = rest.replace("${REQUIREMENTS}", "docker/requirements.txt").split()
        for source in sources:
            assert (ROOT / source).exists(), source
            assert any(fnmatch(source, pattern) for pattern in let_in), source


@pytest.mark.parametrize("kind", KINDS)
def test_an_image_installs_by_hash_makes_its_sbom_and_runs_as_nobody(kind):
    found = dockerfile(kind)
    installs = [
        part for word, rest in found if word == "RUN" for part in rest.split("&&") if "pip" in shlex.split(part)
    ]
    installs = [part for part in installs if " install " in part or " wheel " in part]
    assert len(installs) == 4
    assert all("--require-hashes" in part or "--no-index" in part for part in installs)
    assert any("cyclonedx-py environment /opt/fedgraft/bin/python" in rest for word, rest in found if word == "RUN")
    assert [rest for word, rest in found if word == "FROM"] == ["${BASE} AS build", "${BASE}"]
    assert [rest for word, rest in found if word == "USER"] == ["10001:10001"]
    assert [word for word, _ in found].index("USER") > [word for word, _ in found].index("COPY")
    assert [rest for word, rest in found if word == "EXPOSE"] == (["9092"] if kind == "server" else [])


def test_both_images_are_built_alike():
    def first(kind: str) -> list[tuple[str, str]]:
        found = dockerfile(kind)
        return found[: [one for one, _ in found].index("FROM", 2)]

    assert first("server") == first("node")


def check_command(words: list[str]) -> None:
    """Make sure that the fedgraft command has these words and options."""
    command: click.Command = typer.main.get_command(fedgraft.app)
    while isinstance(command, click.Group):
        child = command.get_command(click.Context(command), words[0])
        assert child is not None, words
        command, words = child, words[1:]
    assert {word for word in words if word.startswith("--")} <= {name for part in command.params for name in part.opts}


@pytest.mark.parametrize("kind", KINDS)
def test_what_an_image_runs_exists(kind):
    said = {word: rest for word, rest in dockerfile(kind) if word in ("ENTRYPOINT", "CMD", "HEALTHCHECK")}
    assert json.loads(said["ENTRYPOINT"]) == ["fedgraft"]
    check_command(json.loads(said["CMD"]))
    health = json.loads(said["HEALTHCHECK"].partition("CMD ")[2])
    assert health == ["python", "-m", "common.health", json.loads(said["CMD"])[-1]]
    assert (ROOT / "common" / "health.py").exists()


@pytest.mark.parametrize(("name", "service"), EVERY)
def test_every_container_is_hardened(name, service):
    said = services(name)[service]
    assert said["read_only"] is True
    assert said["cap_drop"] == ["ALL"]
    assert said["security_opt"] == ["no-new-privileges:true"]
    assert said["user"] == "10001:10001"
    assert said["init"] is True
    assert not {"ports", "privileged", "cap_add", "devices", "pid", "ipc"} & set(said)
    if "entrypoint" not in said:
        check_command(list(said["command"]))
    for word in said.get("entrypoint", []):
        assert not word.startswith("/trial/") or (DOCKER / "trial" / word.rpartition("/")[2]).exists()


@pytest.mark.parametrize("name", COMPOSED)
def test_what_reads_records_has_no_network_and_cannot_change_them(name):
    apps = {key: said for key, said in services(name).items() if "apps" in said.get("command", [])}
    assert len(apps) == (3 if name == "compose.yml" else 1)
    for said in apps.values():
        assert said["network_mode"] == "none"
        assert "networks" not in said
        data = [volume for volume in said["volumes"] if ":/data" in volume]
        assert [volume.rpartition(":")[2] for volume in data] == ["ro"]
        assert [volume.rpartition(":")[2] for volume in said["volumes"] if "-home:" in f"-{volume}"] == ["ro"]
        assert [one for one in said["tmpfs"] if one.startswith(f"/var/lib/fedgraft/{PRIVATE_KEYS}:")]
    nodes = {key: said for key, said in services(name).items() if key in ("supernode", "north", "south", "west")}
    for said in nodes.values():
        assert len(said["networks"]) == 1
        assert not [volume for volume in said["volumes"] if "/data" in volume]


def test_the_nodes_of_the_trial_meet_the_server_alone():
    tree = yaml.safe_load((DOCKER / "compose.yml").read_text())
    assert all(network == {"internal": True} for network in tree["networks"].values())
    for network in tree["networks"]:
        there = {key for key, said in tree["services"].items() if network in said.get("networks", [])}
        assert there == {"server", network}


def test_every_volume_is_declared():
    for name in COMPOSED:
        tree = yaml.safe_load((DOCKER / name).read_text())
        used = {one.partition(":")[0] for said in tree["services"].values() for one in said["volumes"]}
        assert {one for one in used if re.fullmatch(r"[\w-]+", one)} == set(tree["volumes"])


@pytest.mark.parametrize("script", ["server.sh", "node.sh"])
def test_the_scripts_of_the_trial_can_be_read_by_a_shell_and_type_real_commands(script):
    path = DOCKER / "trial" / script
    subprocess.run(["sh", "-n", str(path)], check=True)
    text = path.read_text().replace("\\\n", " ")
    commands = re.findall(r"fedgraft ((?:server|node) [^;&\n]*)", text)
    assert len(commands) == (3 if script == "server.sh" else 4)
    for command in commands:
        check_command(shlex.split(command))


def test_the_run_of_the_trial_is_valid():
    assert load_config(DOCKER / "trial" / "digits.toml").federation.nodes == 3

"""The commands of a hospital's operator; what is heavy is imported inside each."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from client.approve_cli import approve
from client.command_line import AsJson, HealthPort, Home, home_of, node_of
from client.join_cli import join as take_join
from client.keys_cli import rotate_key
from client.ledger_cli import ledger
from client.records_cli import cache_key, forget, purge_cache

node = typer.Typer(rich_markup_mode=None, no_args_is_help=True, add_completion=False)
node.add_typer(approve, name="approve")
node.add_typer(ledger, name="ledger")
node.command("forget", epilog="Example: fedgraft node forget P-0417")(forget)
node.command("purge-cache", epilog="Example: fedgraft node purge-cache")(purge_cache)
node.command("cache-key", epilog="Example: fedgraft node cache-key")(cache_key)
node.command("join", epilog="Example: fedgraft node join federation.join")(take_join)
node.command("rotate-key", epilog="Example: fedgraft node rotate-key")(rotate_key)

MARKS = {"ok": "ok  ", "note": "note", "fail": "FAIL"}


@node.callback()
def run_a_node() -> None:
    """Run a hospital's node: its records stay here, and its budget is its own."""


@node.command("init", epilog="Example: fedgraft node init --join federation.join --name st-mary --data /data/xrays")
def init(
    join: Annotated[Path, typer.Option(help="The file that the coordinator gave you.")],
    name: Annotated[str, typer.Option(help="Of this node, as the coordinator will register it.")],
    data: Annotated[str, typer.Option(help="File or folder with the records.")] = "/path/to/records",
    classes: Annotated[str, typer.Option(help="All class names, with commas between, in the federation's order.")] = "",
    size: Annotated[
        int, typer.Option(help="Number of records, or patients, to declare; by default those that are there.")
    ] = 0,
    epsilon: Annotated[float, typer.Option(help="Cap on all that is ever released.")] = 1.0,
    delta: Annotated[float, typer.Option(help="At most 1 / number of records.")] = 1e-5,
    home: Home = None,
) -> None:
    """Make the node's folder: its key, the coordinator's certificate, and a commented node.toml."""
    from client.keys import PUBLIC_KEY
    from client.node_folder import make_node, read_join
    from common.errors import ConfigError
    from common.privacy.keys import fingerprint

    folder, offered = home_of(home), read_join(join)
    source = str(Path(data).expanduser().resolve()) if Path(data).expanduser().exists() else data
    named = [one.strip() for one in classes.split(",") if one.strip()]
    try:
        found = _looked_at(source) if not (named and size) else ([], 0, "record")
    except ConfigError as error:
        typer.echo(f"note: {error}; correct [data] in node.toml", err=True)
        found = (["class one", "class two"], 1000, "record")
    values: dict[str, object] = {
        "source": source,
        "size": size or found[1],
        "classes": named or found[0],
        "unit": found[2],
    }
    make_node(folder, offered, name, {**values, "epsilon": epsilon, "delta": delta})
    public = (folder / PUBLIC_KEY).read_text()
    typer.echo(f"node        {folder}")
    typer.echo(f"public key  {folder / PUBLIC_KEY}   (give this file to the coordinator)")
    typer.echo(f"            {fingerprint(public)}   (read this to them by telephone)")
    typer.echo("next        read node.toml; fedgraft node approve app; fedgraft node approve backbone REFERENCE;")
    typer.echo("            fedgraft node check; fedgraft node start")


@node.command("check", epilog="Example: fedgraft node check")
def check(home: Home = None, as_json: AsJson = False) -> None:
    """Look at everything that a round needs; exit status 1 where something has to be done."""
    from dataclasses import asdict

    from client.doctor import examine

    findings = []
    for finding in examine(home_of(home)):
        findings.append(finding)
        if not as_json:
            typer.echo(f"{MARKS[finding.state]}  {finding.subject:<12} {finding.words}")
    if as_json:
        typer.echo(json.dumps([asdict(finding) for finding in findings]))
    if any(finding.state == "fail" for finding in findings):
        raise typer.Exit(1)


@node.command("start", epilog="Example: fedgraft node start")
def start(
    home: Home = None,
    isolation: Annotated[
        str | None, typer.Option(help="none, process or container; by default what node.toml says.")
    ] = None,
    health_port: HealthPort = 0,
) -> None:
    """Run the node until it is stopped, starting again what ends; for a terminal or a service manager."""
    from client.isolation import check_possible, with_isolation
    from client.join import own_trust
    from client.keys import KEY
    from client.node_config import load_node_config
    from client.node_folder import programs
    from common.ports import LoopbackPort
    from common.privacy.keys import load_private
    from common.runtime_secret import make_secret
    from common.supervisor import Program, supervise

    folder = node_of(home)
    config = with_isolation(load_node_config(folder), isolation)
    check_possible(folder, config)
    load_private(folder / KEY)  # a program that cannot use key or certificate would end and be started for ever
    own_trust(folder, config)
    make_secret(folder)
    typer.echo(f"node {config.node.name} at {config.server.address}; logs in {folder / 'logs'}")
    port = LoopbackPort()

    def on_usable_port() -> list[Program]:
        return programs(folder, config, port.usable(), health_port)

    supervise(on_usable_port(), folder, typer.echo, again=on_usable_port)


@node.command("apps", epilog="Example: fedgraft node apps   (in a container without a network, beside another's start)")
def apps(home: Home = None, health_port: HealthPort = 0) -> None:
    """Run the apps of a node alone, for a container of their own; the node is started with --isolation container."""
    import os

    from client.isolation import SOCKET, check_alone, relay
    from client.node_folder import environment, executor
    from common.ports import free_port

    folder = node_of(home)
    check_alone()
    address = f"127.0.0.1:{free_port()}"
    health = ["--health-server-address", f"127.0.0.1:{health_port}"] if health_port else []
    os.chdir(folder)
    command = relay(address, SOCKET, [*executor(folder, address), *health])
    os.execve(command[0], command, environment(folder))


@node.command("stop", epilog="Example: fedgraft node stop")
def stop(home: Home = None) -> None:
    """Stop the node; what was paid stays paid."""
    from common.supervisor import stop_supervisor

    typer.echo("stopped" if stop_supervisor(node_of(home)) else "it was not running")


@node.command("pause", epilog="Example: fedgraft node pause")
def pause(home: Home = None) -> None:
    """Refuse every message until resume; the node stays connected."""
    from client.node_folder import PAUSED
    from common import durable

    durable.write_bytes(node_of(home) / PAUSED, b"", mode=0o600)
    typer.echo("paused: every message is refused until `fedgraft node resume`")


@node.command("resume", epilog="Example: fedgraft node resume")
def resume(home: Home = None) -> None:
    """Take part again after a pause."""
    from client.node_folder import PAUSED

    (node_of(home) / PAUSED).unlink(missing_ok=True)
    typer.echo("taking part again")


@node.command("status", epilog="Example: fedgraft node status --json")
def status(home: Home = None, as_json: AsJson = False) -> None:
    """Say what was spent and what is left, in which runs, and whether the node runs."""
    from client.contact import last_contact
    from client.node_config import load_node_config
    from client.node_folder import is_paused
    from client.own_node import spent_so_far
    from common.supervisor import supervisor_of

    folder = node_of(home)
    config = load_node_config(folder)
    said = spent_so_far(folder, config)
    runs: dict[str, int] = {}
    for run, _ in said.committed:
        runs[run] = runs.get(run, 0) + 1
    facts: dict[str, Any] = {
        "node": config.node.name,
        "running": supervisor_of(folder) is not None,
        "paused": is_paused(folder),
        "last_contact": contact.isoformat(timespec="seconds") if (contact := last_contact(folder)) else None,
        "data_set": said.dataset_id,
        "epsilon": said.epsilon,
        "epsilon_cap": said.epsilon_cap,
        "epsilon_cap_to_sign_off": config.privacy.max_epsilon
        if config.privacy.max_epsilon > said.epsilon_cap
        else None,
        "epsilon_left": max(0.0, said.epsilon_cap - said.epsilon),
        "delta": said.delta,
        "unit": said.unit or config.privacy.unit,
        "trusts": list(said.trusts),
        "epsilon_against_model": said.epsilon_against_model,
        "accountant": said.accountant,
        "rounds": len(said.committed),
        "runs": runs,
        "open_reservations": [list(one) for one in said.open_reservations],
        "chain_head": said.chain_head,
    }
    if as_json:
        typer.echo(json.dumps(facts))
        return
    state = "paused" if facts["paused"] else "running" if facts["running"] else "not running"
    typer.echo(f"node        {config.node.name}, {state}")
    typer.echo(f"contact     {facts['last_contact'] or 'none yet'}")
    typer.echo(f"data set    {said.dataset_id}, declared size {config.data.declared_size}")
    typer.echo(
        f"epsilon     {said.epsilon:.4g} spent of {said.epsilon_cap:g}, {facts['epsilon_left']:.4g} left; at delta "
        f"{said.delta:g}, one {facts['unit']}, {' and '.join(said.trusts) or 'no'} trust so far ({said.accountant})"
    )
    if "secagg" in said.trusts:
        typer.echo("            against the coordinator with the colluding nodes that the plans allow for;")
        typer.echo(f"            {said.epsilon_against_model:.4g} against whoever sees the models and no node's noise")
    if config.privacy.max_epsilon > said.epsilon_cap:
        typer.echo(
            f"refusing    {config.privacy.max_epsilon:g} in node.toml: `fedgraft node ledger raise-cap` signs it off"
        )
    for run, rounds in runs.items():
        typer.echo(f"run         {run}, {rounds} rounds released")
    for run, round_ in said.open_reservations:
        typer.echo(f"paid only   {run}, round {round_}: reserved, never released")
    typer.echo(f"chain head  {said.chain_head}")


def _looked_at(source: str) -> tuple[list[str], int, str]:
    """Classes, number of units, and the unit: the patient where the data name patients."""
    from common.data.patients import numbered
    from common.data.sources import read_source

    data = read_source(source, {}, Path())
    patients = numbered(data.patient)
    if patients is None:
        return list(data.classes), len(data), "record"
    return list(data.classes), int(patients.max()) + 1, "patient"

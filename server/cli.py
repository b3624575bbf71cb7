"""The coordinator's commands; what is heavy is imported inside each."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from server.new_ca_cli import new_ca
from server.peers_cli import peers
from server.plan_cli import plan

if TYPE_CHECKING:
    from server.coordinator_folder import Place

server = typer.Typer(rich_markup_mode=None, no_args_is_help=True, add_completion=False)

Home = Annotated[
    Path | None,
    typer.Option("--home", help="The coordinator's folder; by default $FEDGRAFT_SERVER, else ~/fedgraft-server."),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON instead of text.")]

server.command("new-ca", epilog="Example: fedgraft server new-ca")(new_ca)
server.command("peers", epilog="Example: fedgraft server peers --out peers.pub")(peers)
server.command("plan", epilog="Example: fedgraft server plan xrays.toml --out plan.json")(plan)


MARKS = {"ok": "", "note": "NOTE ", "fail": "FAIL "}


@server.callback()
def coordinate() -> None:
    """Coordinate a federation of real hospitals."""


@server.command("init", epilog="Example: fedgraft server init --name fed.example.org")
def init(
    names: Annotated[
        list[str] | None, typer.Option("--name", help="Host name or address that nodes reach; may be repeated.")
    ] = None,
    port: Annotated[int, typer.Option(help="Port for nodes, the only one to open.", min=1, max=65535)] = 9092,
    control_port: Annotated[
        int, typer.Option(help="Port for these commands, on the loopback.", min=1, max=65535)
    ] = 9093,
    bind: Annotated[str, typer.Option(help="Address that the nodes' port listens on.")] = "0.0.0.0",
    renew: Annotated[bool, typer.Option(help="Make a new server certificate under the same CA.")] = False,
    home: Home = None,
) -> None:
    """Make the coordinator's folder: a CA, the server's certificate, and the file that every hospital gets."""
    from common import paths
    from common.bundle import app_digest
    from common.errors import ConfigError
    from server.coordinator_folder import JOIN_FILE, USUAL, ServerConfig, make_place, names_from, open_place
    from server.coordinator_folder import renew as make_new

    folder = paths.home_folder(home, paths.SERVER_FOLDER, USUAL)
    if renew:
        place = open_place(folder)
        make_new(place, app_digest())
        typer.echo("restart the server (fedgraft server stop, then start) to use the new certificate")
    else:
        named = names_from(names or [])
        if not named:
            raise ConfigError("expected at least one name that nodes reach the server by, got none; give --name HOST")
        if port == control_port:
            raise ConfigError(f"expected two ports, got {port} twice; choose another --port or --control-port")
        config = ServerConfig(names=named, port=port, control_port=control_port, bind=bind)
        place = make_place(folder, config, app_digest())
    typer.echo(f"coordinator   {place.folder}")
    typer.echo(f"for nodes     {place.folder / JOIN_FILE}   (give this file to every hospital)")
    typer.echo("next          fedgraft server start")


@server.command("start", epilog="Example: fedgraft server start")
def start(
    home: Home = None,
    health_port: Annotated[
        int, typer.Option(help="Port of the loopback that answers gRPC health checks; 0 for none.", min=0, max=65535)
    ] = 0,
) -> None:
    """Run the server until it is stopped, starting again what ends; for a terminal or a service manager."""
    from common.bundle import app_digest
    from common.ports import check_free, joined
    from common.runtime_secret import make_secret
    from common.supervisor import supervise
    from server.coordinator_folder import SERVER_TOML
    from server.new_ca import certificates_of
    from server.programs import programs

    place = _place(home)
    for address, port in ((place.config.bind, place.config.port), ("127.0.0.1", place.config.control_port)):
        check_free(address, port, f"set another in {place.folder / SERVER_TOML}, then `fedgraft server init --renew`")
    place.approve(app_digest())
    make_secret(place.folder)
    for one in certificates_of(place):
        if one.validity.state != "ok":
            typer.echo(f"certificate of {one.name}: {one.validity.words}")
    typer.echo(f"serving nodes at {joined(place.config.names[0], place.config.port)}; logs in {place.folder / 'logs'}")
    supervise(programs(place, health_port), place.folder, typer.echo)


@server.command("stop", epilog="Example: fedgraft server stop")
def stop(home: Home = None) -> None:
    """Stop the server; runs can be resumed after the next start."""
    from common.supervisor import stop_supervisor

    typer.echo("stopped" if stop_supervisor(_place(home).folder) else "it was not running")


@server.command("add-node", epilog="Example: fedgraft server add-node st-mary --key st-mary.pub")
def add_node(
    name: Annotated[str, typer.Argument(help="As in the hospital's node.toml.")],
    key: Annotated[Path, typer.Option(help="The node's public key, which its operator sent.")],
    replace: Annotated[bool, typer.Option(help="The node is in; this is its new key, and the old one goes.")] = False,
    home: Home = None,
) -> None:
    """Let a hospital's node in, or give it another key."""
    from server.registration import admit

    entry = admit(_place(home), name, key, replace=replace)
    typer.echo(f"{name} may join, with the key {entry.fingerprint}; compare that with its operator by telephone")


@server.command("remove-node", epilog="Example: fedgraft server remove-node st-mary")
def remove_node(name: Annotated[str, typer.Argument(help="Of the node.")], home: Home = None) -> None:
    """Let a node in no longer: its key is refused from its next call on, and for ever."""
    from server.registration import remove

    remove(_place(home), name)
    typer.echo(f"{name} is let in no longer; to come back it needs a new key")


@server.command("nodes", epilog="Example: fedgraft server nodes")
def nodes(home: Home = None, as_json: AsJson = False) -> None:
    """List the registered nodes, and which of them are connected; then the keys that were removed."""
    from server.control import nodes_seen
    from server.registration import removed_nodes

    place = _place(home)
    seen, listed = nodes_seen(place), place.nodes()
    entries = [(name, entry.node_id, entry.fingerprint, "") for name, entry in listed.items()]
    entries += [
        (one.name, one.node_id, one.fingerprint, one.at)
        for one in removed_nodes(place)
        if one.node_id not in {entry.node_id for entry in listed.values()}
    ]
    rows = [
        {
            "name": name,
            "status": seen.get(node_id, "unknown"),
            "node_id": node_id,
            "fingerprint": fingerprint,
            "removed": removed,
        }
        for name, node_id, fingerprint, removed in entries
    ]
    _show(rows, ("name", "status", "fingerprint", "removed"), as_json)


@server.command("run", epilog="Example: fedgraft server run xrays.toml --nodes st-mary,st-john")
def run(
    config: Annotated[Path, typer.Argument(help="Configuration, TOML; its data are the server's own test records.")],
    nodes: Annotated[
        list[str] | None, typer.Option("--nodes", help="Names with commas between; by default all registered.")
    ] = None,
    overrides: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="SECTION.KEY=VALUE", help="Override a key; may be repeated.", show_default=False),
    ] = None,
    name: Annotated[str | None, typer.Option(help="Of the run; by default the configuration's and the time.")] = None,
    home: Home = None,
    as_json: AsJson = False,
) -> None:
    """Train a head with the nodes, and wait for the result; if this command ends, the run goes on."""
    from common.config import load_config
    from server.coordinator_folder import names_from
    from server.submission import begin_run, usual_name

    place = _place(home)
    folder = begin_run(place, load_config(config, overrides or []), name or usual_name(config), names_from(nodes or []))
    _watch(place, folder, as_json)


@server.command("resume", epilog="Example: fedgraft server resume xrays-20260101-120000")
def resume(
    name: Annotated[str, typer.Argument(help="Of the run.")], home: Home = None, as_json: AsJson = False
) -> None:
    """Continue a run from its last checkpoint."""
    from server.submission import start_run

    place = _place(home)
    start_run(place, place.runs / name)
    _watch(place, place.runs / name, as_json)


@server.command("halt", epilog="Example: fedgraft server halt xrays-20260101-120000")
def halt(name: Annotated[str, typer.Argument(help="Of the run.")], home: Home = None) -> None:
    """Stop a run after what it is doing; resume continues it."""
    from server.submission import halt as stop_it

    place = _place(home)
    stop_it(place, place.runs / name)
    typer.echo(f"{name} is stopped; continue it with `fedgraft server resume {name}`")


@server.command("status", epilog="Example: fedgraft server status")
def status(home: Home = None, as_json: AsJson = False) -> None:
    """Say whether the server runs, how long its certificates last, and how far its runs have come."""
    from common.durable import read_lines
    from common.supervisor import supervisor_of
    from server.new_ca import certificates_of
    from server.outcome import RESULT, ROUNDS
    from server.run_folder import FAILURE
    from server.sent_bytes import bytes_sent

    place = _place(home)
    rows = []
    for folder in sorted(path for path in place.runs.iterdir() if path.is_dir()):
        lines = read_lines(folder / ROUNDS)
        ended = "finished" if (folder / RESULT).exists() else "failed" if (folder / FAILURE).exists() else "unfinished"
        sent = round(bytes_sent(folder) / 1e6)
        facts = {"run": folder.name, "rounds": len(lines), "state": ended, "trust": _trust(folder)}
        rows.append({**facts, "backbone_mb": sent or None, **_last(lines)})
    process = supervisor_of(place.folder)
    certificates = certificates_of(place)
    if as_json:
        shown = [one.to_dict() for one in certificates]
        typer.echo(
            json.dumps({"running": process is not None, "process": process, "certificates": shown, "runs": rows})
        )
        return
    typer.echo(f"server   {'running, process ' + str(process) if process else 'not running'}")
    for one in certificates:
        typer.echo(
            f"{one.name:<8} {MARKS[one.validity.state]}{one.validity.words}\n         {one.validity.fingerprint}"
        )
    summed = any(row["trust"] == "secagg" for row in rows)
    against = ["epsilon_against_model"] if summed else []
    _show(rows, ("run", "state", "rounds", "backbone_mb", "accuracy", "trust", "epsilon", *against), False)


def _place(home: Path | None) -> Place:
    from common import paths
    from server.coordinator_folder import USUAL, open_place

    return open_place(paths.home_folder(home, paths.SERVER_FOLDER, USUAL))


def _last(lines: list[dict[str, Any]]) -> dict[str, Any]:
    keys = ("accuracy", "epsilon", "epsilon_against_model")
    return {key: lines[-1].get(key) if lines else None for key in keys}


def _trust(folder: Path) -> str | None:
    """Trust model of a run; None where its configuration cannot be read."""
    from common.config import load_config
    from common.errors import ConfigError
    from server.run_folder import CONFIG

    try:
        return load_config(folder / CONFIG).privacy.trust
    except ConfigError:
        return None


def _watch(place: Place, folder: Path, as_json: bool) -> None:
    """Follow a run with a bar, and show the result."""
    from server.outcome import MODEL, RESULT
    from server.submission import follow

    typer.echo(f"run {folder.name}; it goes on without this command (Ctrl-C)", err=True)
    try:
        with _bar(folder) as advance:
            follow(place, folder, advance)
    except KeyboardInterrupt:
        raise KeyboardInterrupt(
            f"the run goes on; see `fedgraft server status`, or stop it with `fedgraft server halt {folder.name}`"
        ) from None
    result = json.loads((folder / RESULT).read_text())
    if as_json:
        typer.echo(json.dumps(result, allow_nan=False))
        return
    privacy = result["privacy"]
    against_model = privacy.get("epsilon_against_model_per_node", {})
    rows = [
        {"node": name, "epsilon": epsilon, "against readers": against_model.get(name)}
        for name, epsilon in privacy["epsilon_per_node"].items()
    ]
    _show(rows, ("node", "epsilon", *(["against readers"] if against_model else [])), False)
    accuracy = result["accuracy"]["federated"]
    typer.echo(f"accuracy {accuracy:.4f} on the server's own {result['data']['test']} records")
    typer.echo(
        f"epsilon at delta {privacy['delta']:g}, one {privacy['unit']}, {privacy['trust']} trust, this run alone"
    )
    if against_model:
        typer.echo(
            f"         against this server together with up to {privacy['colluders']} of the nodes; the smaller,"
        )
        typer.echo("         against readers of the model who know no node's noise")
    typer.echo(f"model    {folder / MODEL}")


@contextmanager
def _bar(folder: Path) -> Iterator[Callable[[dict[str, Any]], None]]:
    """A bar over the rounds of a run."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    from common.config import load_config
    from server.run_folder import CONFIG

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True)) as bars:
        task = bars.add_task("waiting for the nodes", total=load_config(folder / CONFIG).federation.rounds)

        def advance(line: dict[str, Any]) -> None:
            accuracy = line.get("accuracy")
            shown = "" if accuracy is None else f"accuracy {accuracy:.3f}  "
            words = f"{shown}ε ≤ {line['epsilon']:.2f}  nodes {line['nodes']}"
            bars.update(task, completed=line["round"], description=words)

        yield advance


def _show(rows: list[dict[str, Any]], columns: tuple[str, ...], as_json: bool) -> None:
    if as_json:
        typer.echo(json.dumps(rows))
        return
    from rich.box import SIMPLE
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    table = Table(box=SIMPLE)
    for column in columns:
        table.add_column(column, overflow="fold")  # a fingerprint or a name that is cut short cannot be compared
    for row in rows:
        values = map(row.get, columns)
        table.add_row(*(f"{value:.4f}" if isinstance(value, float) else escape(str(value)) for value in values))
    Console().print(table)

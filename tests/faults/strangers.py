"""Faults of trust: coordinators and nodes that are not who they should be, or ask and answer what they must not."""

from __future__ import annotations

import shutil
import ssl
from datetime import UTC, datetime, timedelta

from common.durable import read_lines
from server.certificates import make_certificates
from tests.deployment.hospitals import PRIVACY
from tests.faults.federation import Federation
from tests.faults.killed import PATIENT_S
from tests.faults.outcome import Row, Rows, sentence, settled
from tests.faults.replay import cohorts, failures
from tests.faults.steps import arm
from tests.processes import wait_until

HOSTILE = {"nan": "NaN in every place", "shape": "a wrong shape", "huge": "10 GB, in pieces of 10 MB"}


def weaker(federation: Federation) -> Rows:
    """The server asks for a plan that no node's policy allows."""
    config = federation.configuration(privacy={**PRIVACY, "clipping_norm": 100.0})
    before = [_spent(federation, name) for name in federation.homes]
    said = federation.run("server", "run", str(config), "--name", "weaker", home=federation.server, status=3)
    assert [_spent(federation, name) for name in federation.homes] == before
    log = (federation.homes["n1"] / "logs" / "apps.log").read_text()
    assert "this node wants a clipping norm of at most" in log
    sees = (
        f"the coordinator: `{sentence(said)}`; the hospital's log: `this node wants a clipping norm of at most 10, …`"
    )
    return [Row("a server that asks for a weaker plan", sees, "no model: refused before a record is read")]


def hostile(federation: Federation) -> Rows:
    """A node sends nonsense in place of its answer, past its own gates."""
    name, rows = "n2", []
    for turn in range(len(HOSTILE)):
        federation.hold(name, 2 * turn + 2)
    rounds = 2 * len(HOSTILE) + 1
    run = federation.play("hostile", rounds=rounds, timeout_s=PATIENT_S)
    for order in HOSTILE:
        federation.reached(name)
        arm(federation.homes[name], "before-send", order)
        federation.go_on(name)
        federation.disarmed(name, "before-send")
    run.finished()
    excess = settled(federation, run.folder, rounds=rounds, excess={name: len(HOSTILE)})
    missed = failures(run.folder)
    assert missed[:2] == [f"{name} protocol"] * 2
    assert set(missed[2:]) <= {f"{name} {reason}" for reason in ("protocol", "absent", "no reply")}  # it may be busy
    lines = [line for line in read_lines(run.folder / "rounds.jsonl") if line["failed"]]
    for kind, line in zip(HOSTILE.values(), lines, strict=True):
        why = line.get("unfit", {}).get(name)
        over = f"`{line['failed'][name]}`, when the round's time is over"  # its parts are waited for so long
        sees = f"the coordinator: {over if why is None else f'`{sentence(why)}`'}"
        rows.append(Row(f"a node that returns {kind}", sees, "the cohort without that node", "1 unused"))
    return [*rows, Row("all of these in one run", "the node is back in its next round", "each round's cohort", excess)]


def late(federation: Federation) -> Rows:
    """A node that trusts none of three coordinators, then the right one, and joins the run at its next round."""
    federation.join(["n6"], start=False)
    home, relay = federation.homes["n6"], federation.relays["n6"]
    relay.mode, rows = "pose", []
    for kind, posing in impostors(federation).items():
        relay.posing = posing
        if kind == "an expired":
            federation.start("node", home)
        seen = relay.served
        assert wait_until(lambda seen=seen: relay.served > seen + 1)  # type: ignore[misc]
        said = federation.type_here("node", "check", home=home, status=1)
        told = next(line for line in said.splitlines() if "FAIL" in line)
        assert "n6" not in federation.connected()
        rows.append(Row(f"a coordinator with {kind} certificate", f"the hospital: `{sentence(told)}`", "no connection"))
    federation.hold("n1", 3)
    run = federation.play("late", rounds=5, timeout_s=PATIENT_S)  # it waits two minutes for all, then goes on without
    federation.reached("n1")
    relay.mode = "pass"
    assert federation.online(["n6"])
    federation.go_on("n1")
    run.finished()
    everybody = len(federation.homes)
    assert [len(names) for names in cohorts(run.folder)] == [everybody - 1] * 3 + [everybody] * 2
    excess = settled(federation, run.folder, rounds=5)
    sees = f"the coordinator: `nodes` {everybody - 1}, then {everybody}"
    return [*rows, Row("a node joins late", sees, "each round's cohort", excess)]


def stranger(federation: Federation) -> Rows:
    """A node whose key the coordinator takes back, and which comes back with a new one."""
    name, home = list(federation.homes.items())[-1]
    log = home / "logs" / "supernode.log"
    federation.run("server", "remove-node", name, home=federation.server)
    told = len(log.read_text())
    assert wait_until(lambda: log.read_text()[told:].count("Starting Flower SuperNode") >= 2)  # and is refused
    assert name not in federation.connected()
    said = next(
        line for line in federation.type_here("node", "check", home=home, status=1).splitlines() if "FAIL" in line
    )
    federation.run("node", "rotate-key", home=home)
    federation.run("server", "add-node", name, "--key", str(home / "node.key.pub"), home=federation.server)
    assert federation.online([name])
    run = federation.play("stranger", rounds=2, timeout_s=PATIENT_S)
    run.finished()
    excess = settled(federation, run.folder, rounds=2)
    assert not failures(run.folder)
    sees = f"the hospital: `{sentence(said)}`; its terminal: `supernode ended with status 1, starts again in …`"
    return [Row("a key that is not registered", sees, "no connection, until a new key is registered", excess)]


def impostors(federation: Federation) -> dict[str, ssl.SSLContext]:
    """Servers that are not the coordinator: an expired certificate of its CA, another CA's, and one self-signed."""
    folder, long_ago = federation.folder / "impostors", datetime.now(UTC) - timedelta(days=4000)
    shutil.copytree(federation.server / "certificates", folder / "an expired")
    made = {"an expired": long_ago, "another CA's": None, "a self-signed": None}
    found = {}
    for kind, now in made.items():
        place = folder / kind
        place.mkdir(exist_ok=True)
        files = make_certificates(place, ["127.0.0.1"], now=now)
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        chain = (files.ca, files.ca_key) if kind == "a self-signed" else (files.server, files.server_key)
        context.load_cert_chain(*chain)
        context.set_alpn_protocols(["h2"])
        found[kind] = context
    return found


def _spent(federation: Federation, name: str) -> object:
    import json

    return json.loads(federation.type_here("node", "status", "--json", home=federation.homes[name]))["epsilon"]

"""The faults: what is done to a running federation, and what must hold then."""

from __future__ import annotations

import shutil
import ssl
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from server.certificates import make_certificates
from tests.deployment.hospitals import PRIVACY
from tests.faults.disk import fill, may_mount, small_disk
from tests.faults.federation import Federation
from tests.faults.outcome import Row, sentence, settled
from tests.faults.replay import cohorts, failures
from tests.faults.steps import STEPS, arm, armed
from tests.processes import wait_until

NODES = ("n1", "n2", "n3", "n4", "n5")
Rows = list[Row]
PAYING = {"after-reserve": "1 open", "after-training": "1 open", "after-commit": "1 unused"}


@dataclass(frozen=True)
class Fault:
    """One fault, or one kind of it at several steps.

    Attributes:
        name: of its run, too.
        play: does it, checks what must hold, and returns the table's rows.
    """

    name: str
    play: Callable[[Federation], Rows]


def undisturbed(federation: Federation) -> Rows:
    """The control: nothing is done."""
    run = federation.play("undisturbed", rounds=3, timeout_s=60.0)
    run.finished()
    excess = settled(federation, run.folder, rounds=3)
    return [Row("none", "—", "the model that all nodes give", excess)]


def client_app(federation: Federation) -> Rows:
    """Apps die at each step, as many in a round as leave one node."""
    steps = (*STEPS[:-1], "after-reply")
    names = list(federation.homes)[: len(federation.homes) - 1]
    groups = [steps[first : first + len(names)] for first in range(0, len(steps), len(names))]
    run = federation.play("client-app", rounds=3 * len(groups) + 1, timeout_s=60.0)
    victims = dict[str, str]()
    for group in groups:
        run.wait_for_round(run.rounds() + 1)
        now = dict(zip(group, names, strict=False))
        kill(federation, {step: (name, 0) for step, name in now.items()})
        victims |= now
    run.finished()
    allowed = {name: list(victims.values()).count(name) for name in names}
    excess = settled(federation, run.folder, rounds=3 * len(groups) + 1, excess=allowed)
    assert set(failures(run.folder)) == {f"{name} internal" for name in victims.values()}
    assert len(failures(run.folder)) == len(steps) - 1  # the last had answered
    return [
        Row(
            f"ClientApp killed {words(step)}",
            "the coordinator: `internal`, at once" if step != steps[-1] else "nothing",
            "the cohort without that node" if step != steps[-1] else "the undisturbed model",
            PAYING.get(step, "none"),
        )
        for step in steps
    ] + [Row("all of these in one run", "each node is back in its next round", "each round's cohort", excess)]


def super_node(federation: Federation) -> Rows:
    """SuperNodes die while their apps are at a step; the supervisor starts them, and Flower lets them in after 50 s."""
    rows, names = [], list(federation.homes)[: len(federation.homes) - 1]
    for first in range(0, len(STEPS), len(names)):
        victims = dict(zip(names, STEPS[first : first + len(names)], strict=False))
        run = federation.play(f"super-node-{first}", rounds=4, timeout_s=15.0)
        run.wait_for_round(1)
        pids = {name: federation.process(federation.homes[name], "client.supernode").pid for name in victims}
        kill(federation, {step: (name, pids[name]) for name, step in victims.items()})
        run.finished()
        assert federation.online(list(federation.homes))
        excess = settled(federation, run.folder, rounds=4, excess=dict.fromkeys(victims, 2))
        by_node = dict(part.split(": ") for part in excess.split("; ") if ": " in part)
        rows += [
            Row(
                f"SuperNode killed {words(step)}",
                "the coordinator: `no reply`, then `absent`; back by itself after about a minute",
                "the cohorts without that node",
                by_node.get(name, "none"),
            )
            for name, step in victims.items()
        ]
    return rows


def short(federation: Federation) -> Rows:
    """For every change: two apps die, one having paid and one having committed; then the server app."""
    run = federation.play("short", rounds=7, timeout_s=60.0)
    first, second = federation.homes
    run.wait_for_round(1)
    kill(federation, {"after-reserve": (first, 0)})
    run.wait_for_round(2)  # or both nodes might be missing in one round
    kill(federation, {"after-commit": (second, 0)})
    run.wait_for_round(3)
    kill(federation, {"after-commit": (first, federation.server_apps()[0].pid)})
    status, said = run.ended()
    assert status == 1, said
    run = federation.resume("short")
    run.finished()
    excess = settled(federation, run.folder, rounds=7, excess={first: 1, second: 1})
    assert excess == f"{first}: 1 open; {second}: 1 unused"
    assert failures(run.folder) == [f"{first} internal", f"{second} internal"]
    return [Row("an app that has paid, one that has committed, and the server app, killed", sentence(said), "", excess)]


def kill(federation: Federation, victims: dict[str, tuple[str, int]]) -> None:
    """Have processes killed at steps of one round, by the node that reaches each, and wait until it is done."""
    for step, (name, process) in victims.items():
        arm(federation.homes[name], step, f"kill {process}")
    assert wait_until(lambda: not any(armed(federation.homes[name]) for name, _ in victims.values()))


def server_app(federation: Federation) -> Rows:
    """The server app dies while a node is at a step, five times in one run, each time resumed."""
    name, rounds = "server-app", len(STEPS) + 1
    run, first, said = federation.play(name, rounds=rounds, timeout_s=60.0), next(iter(federation.homes.values())), ""
    for step in STEPS:
        run.wait_for_round(run.rounds() + 1)
        assert wait_until(lambda: len(federation.server_apps()) == 1)
        arm(first, step, f"kill {federation.server_apps()[0].pid}")
        status, said = run.ended()
        assert status == 1, said
        run = federation.resume(name)
    run.finished()
    excess = settled(federation, run.folder, rounds=rounds)
    return [
        Row(f"ServerApp killed {words(step)}, resumed", sentence(said), "the undisturbed model", excess)
        for step in STEPS
    ] + [
        Row(
            "messages repeated (what a resumed run asks again)",
            "nothing",
            "the stored reply, byte for byte; the undisturbed model",
            excess,
        )
    ]


def super_link(federation: Federation) -> Rows:
    """The SuperLink dies while a node is at a step, five times in one run, which goes on by itself."""
    rounds = 2 * len(STEPS) + 2
    run, first = federation.play("super-link", rounds=rounds, timeout_s=30.0), next(iter(federation.homes.values()))
    for step in STEPS:
        run.wait_for_round(run.rounds() + 1)
        arm(first, step, f"kill {federation.process(federation.server, 'server.superlink').pid}")
        assert wait_until(lambda: not armed(first))
    run.finished()
    excess = settled(federation, run.folder, rounds=rounds, excess=dict.fromkeys(federation.homes, len(STEPS)))
    missed = failures(run.folder)
    return [
        Row(
            f"SuperLink killed {words(step)}",
            "the coordinator's terminal: `superlink ended with status -9, starts again in 1 s`",
            "the documented cohorts" if missed else "the undisturbed model",
            excess,
        )
        for step in STEPS
    ]


def two_of_five(federation: Federation) -> Rows:
    """Two machines lose power in a run and stay away; they are back in the next."""
    away = list(federation.homes)[-2:]
    run = federation.play("two-of-five", rounds=5, timeout_s=15.0)
    run.wait_for_round(1)
    for name in away:
        federation.kill_all(federation.homes[name])
    run.finished()
    for name in away:
        federation.start("node", federation.homes[name])
    assert federation.online(list(federation.homes))
    excess = settled(federation, run.folder, rounds=5, excess=dict.fromkeys(away, 1))
    return [
        Row("two nodes of five lost", "the coordinator: `no reply`, then `absent`", "the cohorts of three", excess),
    ]


def cut(seconds: float) -> Callable[[Federation], Rows]:
    """A network that is cut for a while, in a run; then the node is back."""

    def play(federation: Federation) -> Rows:
        name, relay = f"cut-{seconds:g}", federation.relays["n1"]
        run = federation.play(name, rounds=5, timeout_s=15.0)
        run.wait_for_round(1)
        relay.mode, began = "cut", time.monotonic()
        run.finished()
        time.sleep(max(0.0, seconds - (time.monotonic() - began)))
        relay.mode = "pass"
        healed = time.monotonic()
        assert federation.online(["n1"])
        back = time.monotonic() - healed
        excess = settled(federation, run.folder, rounds=5, excess={"n1": 1})
        again = federation.play(f"{name}-after", rounds=2, timeout_s=60.0)
        again.finished()
        settled(federation, again.folder, rounds=2)
        assert not failures(again.folder)
        sees = f"the coordinator: `no reply`, then `absent`; back by itself {back:.0f} s after the cut"
        return [Row(f"network cut for {seconds:g} s", sees, "the cohorts without that node", excess)]

    return play


def forgotten(federation: Federation) -> Rows:
    """A firewall forgets a node's connection: what is sent on it is lost without a word."""
    run = federation.play("forgotten", rounds=5, timeout_s=15.0)
    run.wait_for_round(1)
    began = time.monotonic()
    federation.relays["n1"].forget()
    run.finished()
    assert wait_until(lambda: "n1" not in federation.connected() or time.monotonic() - began > 90, 120)
    assert federation.online(["n1"])
    back = time.monotonic() - began
    excess = settled(federation, run.folder, rounds=5, excess={"n1": 1})
    again = federation.play("forgotten-after", rounds=2, timeout_s=60.0)
    again.finished()
    settled(federation, again.folder, rounds=2)
    assert not failures(again.folder)
    sees = f"the coordinator: `no reply`; the node connects anew within {back:.0f} s"
    return [Row("a firewall forgets the connection", sees, "the cohorts without that node", excess)]


def lost(federation: Federation) -> Rows:
    """A reply is lost on its way."""
    run = federation.play("lost", rounds=4, timeout_s=15.0)
    run.wait_for_round(1)
    arm(federation.homes["n2"], "before-send", "fail")
    run.finished()
    excess = settled(federation, run.folder, rounds=4, excess={"n2": 1})
    assert failures(run.folder) == ["n2 no reply"]
    return [
        Row("a reply lost", "the coordinator: `no reply` after the timeout", "the cohort without that node", excess)
    ]


def delayed(federation: Federation) -> Rows:
    """A node answers when the round is over."""
    run = federation.play("delayed", rounds=4, timeout_s=10.0)
    run.wait_for_round(1)
    arm(federation.homes["n3"], "before-reserve", "wait 15")
    run.finished()
    excess = settled(federation, run.folder, rounds=4, excess={"n3": 2})
    assert "n3 no reply" in failures(run.folder)
    return [
        Row("a reply delayed beyond its round", "the coordinator: `no reply`", "the cohort without that node", excess)
    ]


def full_disk_of_node(federation: Federation) -> Rows:
    """The disk with a node's ledger is full for two rounds."""
    if not may_mount():
        return [Row("full disk at a node", "not tried: mounting a small disk needs root", "—", "—")]
    ledgers = federation.homes["n2"] / "ledgers"
    with small_disk(ledgers, 4):
        run = federation.play("full-node", rounds=6, timeout_s=60.0)
        run.wait_for_round(1)
        filler = fill(ledgers)
        run.wait_for_round(run.rounds() + 2)
        filler.unlink()
        run.finished()
        excess = settled(federation, run.folder, rounds=6, excess={"n2": 1})
    assert set(failures(run.folder)) == {"n2 data"}
    assert "free some disk space" in (federation.homes["n2"] / "logs" / "apps.log").read_text()
    sees = "the coordinator: `data`; the hospital's log: `the ledger … must be writable, …; free some disk space`"
    return [Row("full disk at a node", sees, "the cohorts without that node", excess)]


def full_disk_of_server(federation: Federation) -> Rows:
    """The disk with the coordinator's runs is full in a run, which is resumed when there is room again."""
    if not may_mount():
        return [Row("full disk at the coordinator", "not tried: mounting a small disk needs root", "—", "—")]
    with small_disk(federation.server / "runs", 64):
        run = federation.play("full-server", rounds=4, timeout_s=60.0)
        run.wait_for_round(1)
        filler = fill(federation.server / "runs")
        status, said = run.ended()
        assert status != 0
        filler.unlink()
        run = federation.resume("full-server")
        run.finished()
        excess = settled(federation, run.folder, rounds=4)
    return [Row("full disk at the coordinator, then resumed", sentence(said), "the undisturbed model", excess)]


def weaker(federation: Federation) -> Rows:
    """The server asks for a plan that no node's policy allows."""
    config = federation.configuration(privacy={**PRIVACY, "clipping_norm": 100.0})
    before = [federation.type_here("node", "status", "--json", home=home) for home in federation.homes.values()]
    said = federation.run("server", "run", str(config), "--name", "weaker", home=federation.server, status=3)
    after = [federation.type_here("node", "status", "--json", home=home) for home in federation.homes.values()]
    assert before == after
    log = (federation.homes["n1"] / "logs" / "apps.log").read_text()
    assert "this node wants a clipping norm of at most" in log
    return [Row("a server that asks for a weaker plan", sentence(said), "no model: refused before a record is read")]


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
    run = federation.play("late", rounds=15, timeout_s=30.0)
    run.wait_for_round(1)  # it waits two minutes for all that it names, then goes on without
    relay.mode = "pass"
    run.finished()
    assert len(cohorts(run.folder)[0]) < len(cohorts(run.folder)[-1]) == len(federation.homes)
    excess = settled(federation, run.folder, rounds=15, excess={"n6": 1})
    rows.append(Row("a node joins late", "the coordinator: `nodes` 5, then 6", "each round's cohort", excess))
    return rows


def stranger(federation: Federation) -> Rows:
    """A node whose key the coordinator takes back, and then lets in again."""
    name, home = list(federation.homes.items())[-1]
    federation.run("server", "remove-node", name, home=federation.server)
    log = home / "logs" / "supernode.log"
    assert wait_until(lambda: not federation.processes(home, "client.supernode"))
    size = log.stat().st_size
    assert wait_until(lambda: log.stat().st_size > size)
    federation.run("server", "add-node", name, "--key", str(home / "node.key.pub"), home=federation.server)
    assert federation.online([name])
    run = federation.play("stranger", rounds=2, timeout_s=60.0)
    run.finished()
    excess = settled(federation, run.folder, rounds=2)
    assert not failures(run.folder)
    sees = "the hospital's terminal: `supernode ended with status 1, starts again in …`"
    return [Row("a key that is not registered", sees, "no connection, until it is registered", excess)]


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


def words(step: str) -> str:
    """A step in words."""
    return step.replace("-", " ")


FULL = (
    Fault("undisturbed", undisturbed),
    Fault("client-app", client_app),
    Fault("super-node", super_node),
    Fault("server-app", server_app),
    Fault("super-link", super_link),
    Fault("two-of-five", two_of_five),
    Fault("cut-30", cut(30)),
    Fault("cut-300", cut(300)),
    Fault("forgotten", forgotten),
    Fault("lost", lost),
    Fault("delayed", delayed),
    Fault("full-node", full_disk_of_node),
    Fault("full-server", full_disk_of_server),
    Fault("weaker", weaker),
    Fault("late", late),
    Fault("stranger", stranger),
)

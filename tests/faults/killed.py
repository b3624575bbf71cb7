"""Faults of processes: apps, SuperNodes, the server app, the SuperLink and whole machines end at once."""

from __future__ import annotations

from collections.abc import Mapping

from tests.faults.federation import Federation
from tests.faults.outcome import Row, Rows, sentence, settled
from tests.faults.replay import failures
from tests.faults.steps import STEPS, arm

PATIENT_S = 300.0  # of a round in which nobody is to be missed
LOST_S = 30.0  # of a round in which somebody will be missed
PAYING = {"after-reserve": "open", "after-training": "open", "after-commit": "unused"}


def undisturbed(federation: Federation) -> Rows:
    """The control: nothing is done."""
    run = federation.play("undisturbed", rounds=3, timeout_s=PATIENT_S)
    run.finished()
    excess = settled(federation, run.folder, rounds=3)
    assert not failures(run.folder)
    return [Row("none", "—", "the model that all nodes give", excess)]


def short(federation: Federation) -> Rows:
    """For every change: an app dies that has paid, one that has committed, and the server app."""
    first, second = federation.homes
    arm(federation.homes[first], "after-reserve", "kill 0", round_=2)
    arm(federation.homes[second], "after-commit", "kill 0", round_=3)
    federation.hold(first, 4, step="after-commit")
    run = federation.play("short", rounds=5, timeout_s=PATIENT_S)
    federation.reached(first)
    federation.server_apps()[0].kill()
    federation.go_on(first)
    status, said = run.ended()
    assert status == 1, said
    run = federation.resume("short")
    run.finished()
    excess = settled(federation, run.folder, rounds=5, excess={first: 1, second: 1})
    assert excess == f"{first}: 1 open; {second}: 1 unused"
    assert failures(run.folder) == [f"{first} internal", f"{second} internal"]
    return [Row("an app that has paid, one that has committed, and the server app, killed", sentence(said), "", excess)]


def client_app(federation: Federation) -> Rows:
    """Apps die at each step, in a round at most as many as leave one node."""
    names = list(federation.homes)[:-1]
    when = {step: (names[turn % len(names)], 2 + 2 * (turn // len(names))) for turn, step in enumerate(STEPS[:-1])}
    for step, (name, round_) in when.items():
        arm(federation.homes[name], step, "kill 0", round_=round_)
    last = max(round_ for _, round_ in when.values()) + 2
    federation.hold(names[0], last)
    run = federation.play("client-app", rounds=last + 1, timeout_s=PATIENT_S)
    federation.reached(names[0])
    arm(federation.homes[names[0]], "after-reply", "kill 0")
    federation.go_on(names[0])
    run.finished()
    excess = settled(federation, run.folder, rounds=last + 1, excess=_counted(when))
    assert sorted(failures(run.folder)) == sorted(f"{name} internal" for name, _ in when.values())
    return [
        Row(
            f"ClientApp killed {words(step)}",
            "the coordinator: `internal`, at once",
            "the cohort without that node",
            f"1 {PAYING[step]}" if step in PAYING else "none",
        )
        for step in when
    ] + [
        Row("ClientApp killed after reply", "nothing", "the undisturbed model", "none"),
        Row("all of these in one run", "each node is back in its next round", "each round's cohort", excess),
    ]


def super_node(federation: Federation) -> Rows:
    """SuperNodes die while their apps are at a step; the supervisor starts them, and Flower lets them in after 50 s."""
    rows, names = [], list(federation.homes)[:-1]
    for first in range(0, len(STEPS), len(names)):
        victims = dict(zip(names, STEPS[first : first + len(names)], strict=False))
        sent = [name for name, step in victims.items() if step == "after-send"]
        pids = {name: federation.process(federation.homes[name], "client.supernode").pid for name in victims}
        for name, step in victims.items():
            if name not in sent:
                arm(federation.homes[name], step, f"kill {pids[name]}", round_=2)
        for name in sent:
            federation.hold(name, 2)
        run = federation.play(f"super-node-{first}", rounds=3, timeout_s=LOST_S)
        for name in sent:  # the SuperNode does not know the round
            federation.reached(name)
            arm(federation.homes[name], "after-send", f"kill {pids[name]}")
            federation.go_on(name)
        run.finished()
        assert federation.online(list(federation.homes))
        excess = settled(federation, run.folder, rounds=3, excess=dict.fromkeys(victims, 2))
        missed = {line.split()[0] for line in failures(run.folder)}
        assert missed == set(victims)
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


def server_app(federation: Federation) -> Rows:
    """The server app dies while a node is at a step, five times in one run, each time resumed."""
    first, rounds, said = next(iter(federation.homes)), len(STEPS) + 1, ""
    for round_ in range(2, rounds + 1):
        federation.hold(first, round_)
    run = federation.play("server-app", rounds=rounds, timeout_s=PATIENT_S)
    for step in STEPS:
        federation.reached(first)
        arm(federation.homes[first], step, f"kill {federation.server_apps()[0].pid}")
        federation.go_on(first)
        status, said = run.ended()
        assert status == 1, said
        run = federation.resume("server-app")
    run.finished()
    excess = settled(federation, run.folder, rounds=rounds)
    assert not failures(run.folder)
    return [
        Row(f"ServerApp killed {words(step)}, resumed", sentence(said), "the undisturbed model", excess)
        for step in STEPS
    ] + [
        Row(
            "messages repeated (what a resumed run asks again)",
            "nothing",
            "the undisturbed model: committed replies are sent again",
            excess,
        )
    ]


def super_link(federation: Federation) -> Rows:
    """The SuperLink dies while a node is at a step, five times in one run, which goes on by itself."""
    first, rounds = next(iter(federation.homes)), 2 * len(STEPS) + 1
    for turn in range(len(STEPS)):
        federation.hold(first, 2 * turn + 2)
    run = federation.play("super-link", rounds=rounds, timeout_s=60.0)
    for step in STEPS:
        federation.reached(first)
        arm(federation.homes[first], step, f"kill {federation.process(federation.server, 'server.superlink').pid}")
        federation.go_on(first)
        federation.disarmed(first, step)
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
    for name in away:
        federation.hold(name, 2, step="after-reserve")
    run = federation.play("two-of-five", rounds=4, timeout_s=LOST_S)
    for name in away:
        federation.reached(name)
        federation.kill_all(federation.homes[name])
        federation.disarm(name)
    run.finished()
    for name in away:
        federation.start("node", federation.homes[name])
    assert federation.online(list(federation.homes))
    excess = settled(federation, run.folder, rounds=4, excess=dict.fromkeys(away, 1))
    assert excess == "; ".join(f"{name}: 1 open" for name in away)
    again = federation.play("two-of-five-after", rounds=2, timeout_s=PATIENT_S)
    again.finished()
    settled(federation, again.folder, rounds=2)
    assert not failures(again.folder)
    staying = len(federation.homes) - len(away)
    return [
        Row(
            f"two nodes of {staying + len(away)} lost in a round that they have paid",
            "the coordinator: `no reply`, then `absent`; both are back in the next run",
            f"the cohorts of {staying}",
            excess,
        ),
    ]


def words(step: str) -> str:
    """A step in words."""
    return step.replace("-", " ")


def _counted(when: Mapping[str, tuple[str, int]]) -> dict[str, int]:
    """How many rounds each node pays for in vain, if its app is killed at these steps."""
    paying = [name for step, (name, _) in when.items() if step in PAYING]
    return {name: paying.count(name) for name in paying}

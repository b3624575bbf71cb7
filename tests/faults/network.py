"""Faults of the network: it is cut, forgets connections, and loses, repeats or delays replies."""

from __future__ import annotations

import time
from collections.abc import Callable

from tests.faults.federation import Federation
from tests.faults.killed import LOST_S, PATIENT_S
from tests.faults.outcome import Row, Rows, settled
from tests.faults.replay import failures
from tests.faults.steps import arm
from tests.processes import wait_until


def cut(seconds: float) -> Callable[[Federation], Rows]:
    """A network that is cut for a while, in a run, when a node has its question; then the node is back."""

    def play(federation: Federation) -> Rows:
        name, relay = f"cut-{seconds:g}", federation.relays["n1"]
        federation.hold("n1", 2)
        run = federation.play(name, rounds=4, timeout_s=LOST_S)
        federation.reached("n1")
        relay.mode, began = "cut", time.monotonic()
        federation.go_on("n1")
        outlives = seconds > 2 * LOST_S  # the run, which ends without that node
        if outlives:
            run.finished()
        time.sleep(max(0.0, seconds - (time.monotonic() - began)))
        relay.mode, healed = "pass", time.monotonic()
        if not outlives:
            run.finished()
        assert federation.online(["n1"])
        back = time.monotonic() - healed
        excess = settled(federation, run.folder, rounds=4, excess={"n1": 2})
        assert "n1 no reply" in failures(run.folder)
        _again(federation, name)
        sees = f"the coordinator: `no reply`, then `absent`; back by itself at most {back:.0f} s after the cut"
        return [Row(f"network cut for {seconds:g} s", sees, "the cohorts without that node", excess)]

    return play


def forgotten(federation: Federation) -> Rows:
    """A firewall forgets a node's connection: what is sent on it is lost without a word."""
    federation.hold("n1", 2)
    run = federation.play("forgotten", rounds=4, timeout_s=LOST_S)
    federation.reached("n1")
    seen = federation.relays["n1"].served
    federation.relays["n1"].forget()
    federation.go_on("n1")
    run.finished()
    assert wait_until(lambda: federation.relays["n1"].served > seen)  # it connects anew
    assert federation.online(["n1"])
    excess = settled(federation, run.folder, rounds=4, excess={"n1": 2})
    _again(federation, "forgotten")
    sees = "the coordinator: `no reply`, then `absent`; the node connects anew by itself"
    return [Row("a firewall forgets the connection", sees, "the cohorts without that node", excess)]


def lost(federation: Federation) -> Rows:
    """A reply is lost on its way."""
    _send(federation, "lost", "fail")
    run = federation.server / "runs" / "lost"
    excess = settled(federation, run, rounds=3, excess={"n2": 1})
    assert failures(run) == ["n2 no reply"]
    assert excess == "n2: 1 unused"
    return [
        Row("a reply lost", "the coordinator: `no reply` after the timeout", "the cohort without that node", excess)
    ]


def twice(federation: Federation) -> Rows:
    """A reply comes two times."""
    _send(federation, "twice", "twice", timeout_s=PATIENT_S)
    run = federation.server / "runs" / "twice"
    excess = settled(federation, run, rounds=3)
    assert not failures(run)
    return [Row("a reply sent twice", "nothing", "the undisturbed model", excess)]


def delayed(federation: Federation) -> Rows:
    """A node answers when the round is over."""
    federation.hold("n2", 2)
    run = federation.play("delayed", rounds=4, timeout_s=LOST_S)
    run.wait_for_round(2)
    federation.go_on("n2")
    run.finished()
    excess = settled(federation, run.folder, rounds=4, excess={"n2": 2})
    assert failures(run.folder)[0] == "n2 no reply"
    return [
        Row("a reply delayed beyond its round", "the coordinator: `no reply`", "the cohort without that node", excess)
    ]


def _send(federation: Federation, name: str, order: str, timeout_s: float = LOST_S) -> None:
    """Play three rounds, with an order for the second reply of a node."""
    federation.hold("n2", 2)
    run = federation.play(name, rounds=3, timeout_s=timeout_s)
    federation.reached("n2")
    arm(federation.homes["n2"], "before-send", order)
    federation.go_on("n2")
    run.finished()


def _again(federation: Federation, name: str) -> None:
    """A run in which nobody is missing, afterwards."""
    run = federation.play(f"{name}-after", rounds=2, timeout_s=PATIENT_S)
    run.finished()
    settled(federation, run.folder, rounds=2)
    assert not failures(run.folder)

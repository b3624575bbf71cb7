"""One formula for each key of ``result.json``, whichever engine played the run."""

from __future__ import annotations

import simulations.result
from server import outcome
from server.result_facts import bytes_facts

LOG = [
    {"round": 1, "nodes": 3, "bytes_down": 300, "bytes_up": 300},
    {"round": 2, "nodes": 1, "bytes_down": 300, "bytes_up": 400},
    {"round": 3, "nodes": 0, "bytes_down": 300, "bytes_up": 0},
]


def test_bytes_are_those_of_a_node_in_a_round_that_it_answered() -> None:
    assert bytes_facts(LOG, 7) == {"per_round_per_node": 1600 // 4, "backbone_once": 7, "total": 1600}


def test_where_nobody_answered_there_is_no_mean() -> None:
    assert bytes_facts(LOG[2:], 0) == {"per_round_per_node": None, "backbone_once": 0, "total": 300}
    assert bytes_facts([], 0)["per_round_per_node"] is None


def test_both_engines_take_their_facts_from_here() -> None:
    for name in ("bytes_facts", "versions", "privacy_facts", "backbone_facts"):
        assert getattr(outcome, name) is getattr(simulations.result, name)

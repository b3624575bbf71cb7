"""Looking for messages: often while a run asks, seldom otherwise."""

from __future__ import annotations

from client.pace import ASKED_S, IDLE_S, LINGER_S, Pace


def test_a_message_quickens_the_looks_for_a_while() -> None:
    clock = [0.0]
    pace = Pace(lambda: clock[0])
    assert pace.wait_s(3.0) == IDLE_S
    pace.asked()
    assert pace.wait_s(3.0) == ASKED_S
    assert pace.wait_s(ASKED_S / 2) == ASKED_S / 2
    clock[0] += LINGER_S
    assert pace.wait_s(3.0) == IDLE_S

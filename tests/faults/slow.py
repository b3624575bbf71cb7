"""A backbone that is sent to a node over a slow line, which breaks off and falls silent on the way."""

from __future__ import annotations

import time
from contextlib import ExitStack

from common.backbones.controls import load_reference
from common.backbones.package import save
from server.sent_bytes import bytes_sent
from tests.faults.federation import Federation
from tests.faults.killed import PATIENT_S
from tests.faults.line import LOST, MBIT_PER_S, slow_line, why_not
from tests.faults.outcome import Row, Rows, settled
from tests.faults.relay import CHUNK
from tests.faults.replay import failures
from tests.processes import wait_until

BACKBONE = "torchvision/convnext_small:32@random-0"  # 198 MB
MOST_REPEATED = 1.1  # of the package: a piece may be on its way when the line breaks
BROKEN_S, SILENT_S = 30.0, 90.0
NAME = "slow-backbone"


def slow_backbone(federation: Federation) -> Rows:
    """At 30 % of it all connections break, and none is made for a while; at 60 % the line falls silent."""
    name = next(iter(federation.homes))
    packed, relay = federation.folder / NAME, federation.relays[name]
    digest = save(load_reference(BACKBONE), packed).digest
    size = sum(path.stat().st_size for path in packed.iterdir())
    approve = ("node", "approve", "backbone", "--digest", digest, "--size-limit", "300")
    federation.run(*approve, home=federation.homes[name])
    with ExitStack() as stack:
        reason = why_not()
        if reason:
            relay.delay_s, how = CHUNK * 8 / (MBIT_PER_S * 1e6), f"made slow above TCP, since {reason}"
        else:
            relay.detour = stack.enter_context(slow_line(relay.target, federation.folder / "line"))
            how = f"below TCP (`tc tbf`), which loses a packet in {1 / LOST:.0f} (`iptables`)"
        relay.reset()
        assert federation.online([name])
        run = federation.play(NAME, rounds=2, timeout_s=PATIENT_S, nodes=[name], backbone=f"package/{packed}")
        for share, seconds in ((0.3, BROKEN_S), (0.6, SILENT_S)):
            assert wait_until(lambda share=share: bytes_sent(run.folder) > share * size)  # type: ignore[misc]
            relay.mode = "cut"
            if seconds == BROKEN_S:
                relay.reset()
            time.sleep(seconds)
            relay.mode = "pass"
        run.finished()
        relay.detour, relay.delay_s = None, 0.0
        relay.reset()
    sent = bytes_sent(run.folder)
    assert size <= sent <= MOST_REPEATED * size
    excess = settled(federation, run.folder, rounds=2)
    assert not failures(run.folder)
    assert f"the backbone {digest} has come" in (federation.homes[name] / "logs" / "apps.log").read_text()
    assert federation.online([name])
    return [
        Row(
            f"a backbone of {size / 1e6:.0f} MB sent over a line of {MBIT_PER_S} Mbit/s, {how}; broken off at 30 % for "
            f"{BROKEN_S:.0f} s, silent at 60 % for {SILENT_S:.0f} s",
            f"the coordinator: `status` counts {sent / 1e6:.0f} MB; the hospital's log: `the backbone … has come`",
            "the undisturbed model: sending went on where it stopped",
            excess,
        )
    ]

"""``python -m tests.deployment.slow_link``: a backbone of 200 MB over a slow line that is cut twice; some minutes."""

from __future__ import annotations

import argparse
import asyncio
import json
import subprocess
import sys
import tempfile
import threading
import time
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import psutil

from client.node_config import NODE_TOML
from common.backbones.controls import load_reference
from common.backbones.package import save
from common.supervisor import supervisor_of
from server.sent_bytes import bytes_sent
from tests.deployment.hospitals import Hospitals, write_digits
from tests.faults.relay import CHUNK, Relay
from tests.processes import wait_until

BACKBONE = "torchvision/convnext_small:32@random-0"  # 198 MB
NAME, RUN = "north", "slow"
CUTS = ((0.3, "reset, dead for", 30.0), (0.6, "silent for", 90.0))
TOTAL_S = 3600.0


class SlowLine(Relay):
    """A relay that hands on so many bits a second each way, and counts the bytes."""

    def __init__(self, target: int, bits_per_s: float) -> None:
        super().__init__(target)
        self.bytes_handed_on = {"in": 0, "out": 0}
        self._bits_per_s = bits_per_s
        self._free_at = {"in": 0.0, "out": 0.0}

    async def _hand_on(self, number: int, reader: asyncio.StreamReader, writer: Any) -> None:
        way = "out" if writer.get_extra_info("peername")[1] == self.target else "in"
        with suppress(OSError):
            while piece := await reader.read(CHUNK):
                while self.mode == "cut":
                    await asyncio.sleep(0.1)
                now = time.monotonic()
                self._free_at[way] = max(now, self._free_at[way]) + len(piece) * 8 / self._bits_per_s
                await asyncio.sleep(self._free_at[way] - now)
                self.bytes_handed_on[way] += len(piece)
                writer.write(piece)
                await writer.drain()
        writer.close()


class Memory(threading.Thread):
    """The most memory that the processes below a supervisor had, shared pages shared out; by what they are."""

    def __init__(self, homes: dict[str, Path]) -> None:
        super().__init__(daemon=True)
        self.most_mb: dict[str, float] = {}
        self._homes = homes
        self.ended = threading.Event()

    def run(self) -> None:
        while not self.ended.wait(0.5):
            for side, home in self._homes.items():
                total = 0.0
                for kind, used in self._used(home):
                    total += used
                    self.most_mb[f"{side}: {kind}"] = max(self.most_mb.get(f"{side}: {kind}", 0.0), used)
                self.most_mb[f"{side}: all"] = max(self.most_mb.get(f"{side}: all", 0.0), total)

    def _used(self, home: Path) -> list[tuple[str, float]]:
        found = []
        above = supervisor_of(home)
        for process in [] if above is None else psutil.Process(above).children(recursive=True):
            with suppress(psutil.Error):
                words = process.cmdline()
                kind = next((word for word in words if word.startswith(("client.", "server.", "common."))), "other")
                parent = process.parent()
                forked = "(forked) " if parent is not None and parent.cmdline() == words else ""
                found.append((f"{forked}{kind}", process.memory_full_info().pss / 1e6))
        return found


def main() -> None:
    """Print seconds, bytes and memory."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--mbit", type=float, default=100.0, help="of the line, a second")
    parser.add_argument("--uncut", action="store_true", help="for comparison")
    chosen = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        made = Hospitals(Path(folder))
        try:
            _measure(made, chosen.mbit * 1e6, () if chosen.uncut else CUTS)
        finally:
            made.end()


def _measure(made: Hospitals, bits_per_s: float, cuts: tuple[tuple[float, str, float], ...]) -> None:
    packed = made.folder / "packed"
    digest = save(load_reference(BACKBONE), packed).digest
    size = sum(path.stat().st_size for path in packed.iterdir())
    made.coordinate()
    home = made.admit(NAME, write_digits(made.folder / "data", range(100)))
    made.run("node", "approve", "backbone", "--digest", digest, "--size-limit", "300", home=home)
    text = (home / NODE_TOML).read_text()
    port = int(json.loads((made.server / "federation.join").read_text())["address"].rpartition(":")[2])
    line = SlowLine(port, bits_per_s)
    with line:
        (home / NODE_TOML).write_text(text.replace(f":{port}", f":{line.port}"))
        made.start("node", home)
        made.online([NAME])
        time.sleep(20)
        quiet = dict(line.bytes_handed_on)
        memory = Memory({"node": home, "server": made.server})
        memory.start()
        config = made.configuration(
            federation={"nodes": 1, "rounds": 1}, model={"backbone": f"package/{packed}"}, privacy={"epsilon": 2.0}
        )
        run = made.server / "runs" / RUN
        began = time.monotonic()
        command = [sys.executable, "-m", "fedgraft", "server", "run", str(config), "--name", RUN]
        with (made.folder / "run.out").open("wb") as out:
            following = subprocess.Popen([*command, "--home", str(made.server)], stdout=out, stderr=out)
        place = home / "backbones"
        wait_until(lambda: place.is_dir() or following.poll() is not None, TOTAL_S)
        first = time.monotonic()
        print(f"package {size / 1e6:.1f} MB; line {bits_per_s / 1e6:g} Mbit/s, {size * 8 / bits_per_s:.0f} s at least")
        print(f"{first - began:.1f} s until the first piece is there", flush=True)
        for share, how, seconds in cuts if place.is_dir() else ():
            wait_until(partial(_has, run, share * size, following), TOTAL_S)
            print(f"{time.monotonic() - first:.1f} s: {bytes_sent(run) / 1e6:.1f} MB sent; {how} {seconds:g} s")
            line.mode = "cut"
            if how.startswith("reset"):
                line.reset()
            time.sleep(seconds)
            line.mode = "pass"
        wait_until(lambda: (place / digest).exists() or following.poll() is not None, TOTAL_S)
        arrived, sending = time.monotonic(), dict(memory.most_mb)
        ended = following.wait(TOTAL_S)
        memory.ended.set()
    print(f"{arrived - first:.1f} s until all of it is there; {time.monotonic() - arrived:.1f} s for the round then")
    print(
        f"run ended with {ended}; {bytes_sent(run) / 1e6:.1f} MB in pieces, {bytes_sent(run) / size:.3f} of the package"
    )
    handed = {way: number - quiet[way] for way, number in line.bytes_handed_on.items()}
    print(f"the line took {handed['in'] / 1e6:.1f} MB to the node, {handed['out'] / 1e6:.1f} MB from it, all included")
    for kind, most in sorted(memory.most_mb.items()):
        print(f"most memory, {kind}: {sending.get(kind, 0.0):.0f} MB while sending, {most:.0f} MB with the round")
    if ended:
        raise SystemExit((made.folder / "run.out").read_text())


def _has(run: Path, sent: float, following: subprocess.Popen[bytes]) -> bool:
    return bytes_sent(run) > sent or following.poll() is not None


if __name__ == "__main__":
    main()

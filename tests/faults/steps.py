"""A copy of the sources in which a process can be killed, held or cheated at an exact step, and noise has a seed.

The product has no hooks. The copy's bundle has a digest of its own, which the operators of the test's nodes approve.
"""

from __future__ import annotations

import shutil
from pathlib import Path

ROOT = Path(__file__).parents[2]
STEPS = ("before-reserve", "after-reserve", "after-training", "after-commit", "after-send")
SEED = 11
ARMED = "armed"
HELD = ".held"

_MODULE = '''"""What happens at a step of a round: nothing, unless ``armed`` holds a file of its name; and then once."""

from __future__ import annotations

import datetime
import os
import signal
import time
from pathlib import Path
from types import SimpleNamespace

LONGEST_S = 1800.0


def folder() -> Path:
    """Of the node or the coordinator."""
    return Path(os.environ.get("FEDGRAFT_NODE") or os.environ["FEDGRAFT_SERVER"])


def ahead() -> datetime.timedelta:
    """By how much this machine's clock is ahead of the true one, as the file ``clock`` says now."""
    try:
        return datetime.timedelta(seconds=float((folder() / "clock").read_text()))
    except FileNotFoundError:
        return datetime.timedelta()


def set_clocks() -> None:
    """Have Flower see that clock."""
    from flwr.supercore import date

    class Shown(datetime.datetime):
        @classmethod
        def now(cls, tz=None):
            return datetime.datetime.now(tz) + ahead()

    date.datetime = SimpleNamespace(**{**vars(datetime), "datetime": Shown})


def reached(step: str, round_: int = 0) -> str:
    """Do what was armed for this step, of any round or of this one; returns an order that is for the caller."""
    armed = folder() / "armed"
    for name in (f"{step}.{round_}", step):
        try:
            word, _, value = (armed / name).read_text().partition(" ")
        except FileNotFoundError:
            continue
        if word == "hold":
            (armed / name).rename(armed / f"{name}.held")
            deadline = time.monotonic() + LONGEST_S
            while (armed / f"{name}.held").exists() and time.monotonic() < deadline:
                time.sleep(0.05)
            continue
        (armed / name).unlink()
        if word == "kill":
            os.kill(int(value) or os.getpid(), signal.SIGKILL)
        elif word == "fail":
            raise OSError("lost on the way")
        else:
            return word
    return ""
'''

_SEEDED = f'(SeededRandomness({SEED}, config.node.name, round_, "{{}}"))'
_INSERTIONS = (
    (
        "client/training.py",
        "        spend = Spend(",
        '        reached("before-reserve", task.round)\n        spend = Spend(',
    ),
    (
        "client/training.py",
        "        records = node.records(task.offer.model)  #",
        '        reached("after-reserve", task.round)\n        records = node.records(task.offer.model)  #',
    ),
    (
        "client/training.py",
        "        update: Update = yield Asked(",
        '        reached("after-training", task.round)\n        update: Update = yield Asked(',
    ),
    (
        "client/training.py",
        "    return update\n",
        '    reached("after-commit", task.round)\n    return update\n',
    ),
    (
        "client/training.py",
        "from client import egress\n",
        "from client import egress\nfrom common.steps import reached\n",
    ),
    (
        "client/supernode.py",
        "            given[GET_FAB] =",
        "            given[2] = sending(given, reached)\n            given[GET_FAB] =",
    ),
    (
        "client/supernode.py",
        '        answer_all(**{**parts, "send": send})\n',
        '        answer_all(**{**parts, "send": send})\n        reached("after-send")\n',
    ),
    (
        "client/supernode.py",
        "from common.errors import ConfigError\n",
        "from common.errors import ConfigError\nfrom common.hostile import sending\n"
        "from common.steps import reached, set_clocks\n",
    ),
    (
        "common/warm_executor.py",
        "    finally:\n        sys.stdout.flush()\n",
        "    finally:\n"
        '        if "FEDGRAFT_NODE" in os.environ:\n'
        '            importlib.import_module("common.steps").reached("after-reply")\n'
        "        sys.stdout.flush()\n",
    ),
    (
        "client/own_node.py",
        "randomness=lambda _: (SystemRandomness(), SystemRandomness()),",
        f"randomness=lambda round_: ({_SEEDED.format('sampling')}, {_SEEDED.format('noise')}),",
    ),
    ("client/own_node.py", "import SystemRandomness\n", "import SeededRandomness\n"),
    ("client/supernode.py", "command = importlib", "set_clocks()\ncommand = importlib"),
    ("client/ledger.py", "datetime.now(UTC).isoformat", "(datetime.now(UTC) + ahead()).isoformat"),
    (
        "client/ledger.py",
        "from common.errors import",
        "from common.steps import ahead\nfrom common.errors import",
    ),
    ("client/clock.py", "lambda: datetime.now(UTC)", "lambda: datetime.now(UTC) + ahead()"),
    (
        "client/clock.py",
        "from common.errors import FederationError\n",
        "from common.errors import FederationError\nfrom common.steps import ahead\n",
    ),
    ("server/superlink.py", "    flower_superlink()\n", "    set_clocks()\n    flower_superlink()\n"),
    (
        "server/superlink.py",
        "from server.database import wait_longer\n",
        "from server.database import wait_longer\nfrom common.steps import set_clocks\n",
    ),
    ("common/warm_executor.py", '    """Ask a SuperLink or a', '    set_clocks()\n    """Ask a SuperLink or a'),
    (
        "common/warm_executor.py",
        "from common.task_end import tell_failed\n",
        "from common.steps import set_clocks\nfrom common.task_end import tell_failed\n",
    ),
)


def copy_sources(target: Path) -> Path:
    """Copy the product's sources to a new folder, with the steps and the seed put in; returns the folder."""
    for package in ("common", "client", "server"):
        shutil.copytree(ROOT / package, target / package, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "fedgraft.py", target)
    (target / "common" / "steps.py").write_text(_MODULE)
    shutil.copy(Path(__file__).with_name("hostile.py"), target / "common" / "hostile.py")
    for name, anchor, text in _INSERTIONS:
        path = target / name
        source = path.read_text()
        assert source.count(anchor) == 1, f"{name} has changed: {anchor!r} is there {source.count(anchor)} times"
        path.write_text(source.replace(anchor, text))
    return target


def arm(home: Path, step: str, order: str, *, round_: int | None = None) -> None:
    """Have an order carried out the next time that a node reaches a step.

    Args:
        home: of the node.
        step: one of ``STEPS``; ``before-send`` and ``after-reply`` (of the app, to its SuperNode) too.
        order: ``kill PID`` (0 is the process that reaches the step), ``fail``, ``hold`` (until ``release``), or at
            ``before-send`` one of those in ``hostile``.
        round_: of the run; None is the next one. Only the app's own steps know their round.
    """
    name = step if round_ is None else f"{step}.{round_}"
    (home / ARMED).mkdir(exist_ok=True)
    path = home / ARMED / f".{name}"
    path.write_text(order)
    path.rename(home / ARMED / name)


def armed(home: Path) -> list[str]:
    """Steps of a node that still wait to be reached, or are held."""
    folder = home / ARMED
    return sorted(path.name for path in folder.iterdir()) if folder.exists() else []


def held(home: Path) -> bool:
    """Whether a process of a node is held at a step."""
    return any(name.endswith(HELD) for name in armed(home))


def release(home: Path) -> None:
    """Let a node's process that is held go on."""
    for path in (home / ARMED).glob(f"*{HELD}"):
        path.unlink()

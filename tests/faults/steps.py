"""A copy of the sources in which a process can be killed, delayed or cheated at an exact step, and noise has a seed.

The product has no hooks. The copy's bundle has a digest of its own, which the operators of the test's nodes approve.
"""

from __future__ import annotations

import shutil
from pathlib import Path

ROOT = Path(__file__).parents[2]
STEPS = ("before-reserve", "after-reserve", "after-training", "after-commit", "after-send")
SEED = 11
ARMED = "armed"

_MODULE = '''"""What happens at a step of a round: nothing, unless ``armed`` holds a file of its name; and then once."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path


def reached(step: str) -> None:
    """Do what was armed for this step: ``kill PID`` (0 is this process), ``wait SECONDS`` or ``fail``."""
    folder = os.environ.get("FEDGRAFT_NODE") or os.environ["FEDGRAFT_SERVER"]
    order = Path(folder) / "armed" / step
    try:
        word, _, value = order.read_text().partition(" ")
        order.unlink()
    except FileNotFoundError:
        return
    if word == "kill":
        os.kill(int(value) or os.getpid(), signal.SIGKILL)
    elif word == "wait":
        time.sleep(float(value))
    else:
        raise OSError("lost on the way")
'''

_SEEDED = f'(SeededRandomness({SEED}, config.node.name, round_, "{{}}"))'
_INSERTIONS = (
    (
        "client/training.py",
        "        spend = Spend(",
        '        reached("before-reserve")\n        spend = Spend(',
    ),
    (
        "client/training.py",
        "        records = node.records(task.offer.model)  #",
        '        reached("after-reserve")\n        records = node.records(task.offer.model)  #',
    ),
    (
        "client/training.py",
        "        update = egress.release_update(head, task.head)\n",
        '        reached("after-training")\n        update = egress.release_update(head, task.head)\n',
    ),
    (
        "client/training.py",
        "    return update\n",
        '    reached("after-commit")\n    return update\n',
    ),
    (
        "client/training.py",
        "from client import egress\n",
        "from client import egress\nfrom common.steps import reached\n",
    ),
    (
        "client/supernode.py",
        "            given[GET_FAB] =",
        "            send = given[2]\n"
        '            given[2] = lambda *parts: (reached("before-send"), send(*parts))[1]\n'
        "            given[GET_FAB] =",
    ),
    (
        "client/supernode.py",
        "    start = command.start_client_internal\n",
        "    push = flower._push_messages\n\n"
        "    def pushed(**options: Any) -> None:\n"
        "        push(**options)\n"
        '        reached("after-send")\n\n'
        "    flower._push_messages = pushed\n"
        "    start = command.start_client_internal\n",
    ),
    (
        "client/supernode.py",
        "from common.errors import ConfigError\n",
        "from common.errors import ConfigError\nfrom common.steps import reached\n",
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
)


def copy_sources(target: Path) -> Path:
    """Copy the product's sources to a new folder, with the steps and the seed put in; returns the folder."""
    for package in ("common", "client", "server"):
        shutil.copytree(ROOT / package, target / package, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "fedgraft.py", target)
    (target / "common" / "steps.py").write_text(_MODULE)
    for name, anchor, text in _INSERTIONS:
        path = target / name
        source = path.read_text()
        assert source.count(anchor) == 1, f"{name} has changed: {anchor!r} is there {source.count(anchor)} times"
        path.write_text(source.replace(anchor, text))
    return target


def arm(home: Path, step: str, order: str) -> None:
    """Have an order carried out the next time that a node reaches a step.

    Args:
        home: of the node.
        step: one of ``STEPS``; ``before-send`` and ``after-reply`` (of the app, to its SuperNode) too.
        order: ``kill PID`` (0 is the process that reaches the step), ``wait SECONDS``, or ``fail``.
    """
    (home / ARMED).mkdir(exist_ok=True)
    path = home / ARMED / f".{step}"
    path.write_text(order)
    path.rename(home / ARMED / step)


def armed(home: Path) -> list[str]:
    """Steps of a node that still wait to be reached."""
    folder = home / ARMED
    return sorted(path.name for path in folder.iterdir()) if folder.exists() else []

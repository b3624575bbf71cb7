"""Programs import what they compute with and no more: each would take seconds and half a gigabyte for it."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest

HEAVY = ("torch", "scipy", "sklearn", "dp_accounting", "transformers", "torchvision", "opacus")
NO_TORCH_NEEDED = ("scipy", "sklearn", "dp_accounting", "matplotlib", "opacus", "sqlalchemy")
NOT_OF_TORCH = ("torch._dynamo", "torch._meta_registrations", "triton")
LOOK = f"import sys; found = [name for name in {HEAVY} if name in sys.modules]; sys.exit(', '.join(found) or 0)"
STARTING = "; ".join(
    (
        "from client import isolation, node_config, node_folder",
        "from common import ports, runtime_secret, supervisor",
        "from server import coordinator_folder, new_ca, programs",
    )
)
GATE = """
import numpy as np
from flwr.app import Message, MessageType, RecordDict
from flwr.supercore.task_identity import TaskIdentity

import client.supernode
from client.last_look import Speaker, permitted
from common import wire

TaskIdentity.run_id, TaskIdentity.node_id, TaskIdentity.task_id = 1, 1, 1
head = {"weight": np.ones((2, 3), np.float32)}
question = Message(RecordDict({wire.ARRAYS: wire.encode_head(head)}), dst_node_id=1, message_type=MessageType.TRAIN)
question.metadata.__dict__["_message_id"] = "asked"
reply = Message(RecordDict({wire.ARRAYS: wire.encode_head(head)}), reply_to=question)
let = permitted(wire.decode_reply(reply, wire.read_values), question, Speaker("st-mary", 100))
assert wire.encode_reply(let, question).content == reply.content
"""


@pytest.mark.parametrize(
    "code",
    ["import client.supernode", "import client.signer", "import client.relay", "import server.superlink", STARTING],
)
def test_a_program_that_computes_nothing_imports_nothing_that_computes(code):
    assert said_of(code) == (0, "")


def test_the_supernode_looks_at_an_update_without_torch():
    assert said_of(GATE) == (0, "")


def test_an_import_that_computes_is_noticed():
    assert said_of("import common.wire, scipy") == (1, "scipy\n")


def test_a_simulation_leaves_to_another_process_what_needs_no_torch(tmp_path):
    """The accountant and what draws the report, a third of what there is to import; PyTorch's compiler is nobody's.

    As many steps as here have a worker forked, beside the process for these.
    """
    np.savez(
        tmp_path / "d.npz",
        images=np.random.default_rng(0).integers(0, 256, (60, 32, 32, 3), dtype=np.uint8),
        labels=np.arange(60) % 3,
    )
    (tmp_path / "c.toml").write_text(
        "federation = {nodes = 8, rounds = 2, seed = 0}\ntraining = {local_steps = 25}\n"
        'data = {source = "d.npz"}\nmodel = {backbone = '
        '"torchvision/resnet18:32@random-0"}\nprivacy = {epsilon = 8.0, delta = 1e-3, sampling_rate = 0.5, '
        'clipping_norm = 1.0, unit = "record", trust = "local"}\n'
    )
    run = ["simulate", str(tmp_path / "c.toml"), "--out", str(tmp_path / "run"), "--baselines", "none"]
    code = f"import fedgraft; fedgraft.main({run})\n{LOOK.replace(str(HEAVY), str(NO_TORCH_NEEDED + NOT_OF_TORCH))}"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "run" / "report.html").exists()


def said_of(code: str) -> tuple[int, str]:
    done = subprocess.run([sys.executable, "-c", f"{code}\n{LOOK}"], capture_output=True, text=True, check=False)
    return done.returncode, done.stderr

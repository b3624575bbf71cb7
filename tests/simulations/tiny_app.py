"""A Flower app that does next to nothing: for trying the machinery around the real one."""

from __future__ import annotations

from pathlib import Path

import tomli_w

from common.bundle import flower_app
from common.config import RunConfig

NODES = 2
SERVER = """
import json, os, time
from pathlib import Path
from flwr.app import ConfigRecord, Message, RecordDict
from flwr.serverapp import ServerApp

app = ServerApp()

@app.main()
def main(grid, context):
    folder, task = Path(os.environ["FEDGRAFT_RUN_FOLDER"]), context.run_config["data.source"]
    while len(nodes := sorted(grid.get_node_ids())) < 2:
        time.sleep(0.05)
    for number in range(1, context.run_config["federation.rounds"] + 1):
        content = RecordDict({"ask": ConfigRecord({"round": number})})
        messages = [Message(content=content, message_type="query", dst_node_id=node) for node in nodes]
        replies = [dict(reply.content["answer"]) for reply in grid.send_and_receive(messages)]
        epsilon = context.run_config["privacy.epsilon"]
        entry = {"round": number, "replies": replies, "server": __file__, "epsilon": epsilon}
        with (folder / "rounds.jsonl").open("a") as file:
            file.write(json.dumps(entry) + "\\n")
    if task == "crash":
        raise RuntimeError("the server has had enough")
"""
CLIENT = """
import os, sys
from flwr.app import ConfigRecord, Message, RecordDict
from flwr.clientapp import ClientApp

app = ClientApp()

@app.query()
def query(message, context):
    ray = sys.modules.get("ray")
    answer = {
        "partition": context.node_config["partition-id"],
        "on_ray": ray is not None and ray.is_initialized(),
        "folder": os.environ["FEDGRAFT_RUN_FOLDER"],
        "client": __file__,
    }
    return Message(content=RecordDict({"answer": ConfigRecord(answer)}), reply_to=message)
"""


def write_app(folder: Path) -> None:
    """Write the app, with our configuration keys, into a new folder."""
    for name, source in (("server", SERVER), ("client", CLIENT)):
        (folder / name).mkdir(parents=True)
        (folder / name / "__init__.py").touch()  # else the installed package of that name wins
        (folder / name / "app.py").write_text(source)
    project = {"name": "tiny", "version": "0.1", "description": "A test", "license": "Apache-2.0"}
    table = flower_app() | {"fab-include": ["/server/*.py", "/client/*.py"]}
    (folder / "pyproject.toml").write_text(tomli_w.dumps({"project": project, "tool": {"flwr": {"app": table}}}))


def configuration(source: str) -> RunConfig:
    """Return a configuration whose data source tells the tiny server what to do."""
    return RunConfig.model_validate(
        {
            "federation": {"nodes": NODES, "rounds": 2},
            "data": {"source": source},
            "model": {"backbone": "embedded/glyph"},
            "training": {},
            "privacy": {
                "epsilon": 3.0,
                "delta": 1e-5,
                "clipping_norm": "auto",
                "sampling_rate": 1.0,
                "unit": "record",
                "trust": "local",
            },
            "evaluation": {},
        }
    )

"""A node's configuration, without a node: the shortest one, and what ``fedgraft node init`` writes."""

from __future__ import annotations

import json
from pathlib import Path

from client.node_config import NODE_TOML, NodeConfig, parse_node_config
from client.node_folder import TEMPLATE

NODE = """
[node]
name = "north"
[server]
address = "127.0.0.1:1"
[data]
source = "."
id = "records"
declared_size = 20
classes = ["a", "b"]
[privacy]
max_epsilon = 1.0
delta = 1e-5
"""


def node_config(folder: Path, **values: object) -> NodeConfig:
    """Of a node in this folder, with some fields of the template as they are given."""
    fields: dict[str, object] = {
        "name": "north",
        "id": "north-data",
        "address": "h:1",
        "source": "x",
        "size": 10,
        "classes": ["a", "b"],
        "epsilon": 1.0,
        "delta": 1e-5,
        "unit": "record",
    }
    text = TEMPLATE.format(**{key: json.dumps(value) for key, value in {**fields, **values}.items()})
    return parse_node_config(text, folder / NODE_TOML)

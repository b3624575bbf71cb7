"""The Flower ClientApp of a node: decode, call, encode. It decides nothing.

Every exception is caught here, because Flower sends the text of an uncaught one to the server.
"""

from __future__ import annotations

import logging
from collections.abc import Callable

from flwr.app import Context, Message
from flwr.clientapp import ClientApp

from client import egress, training
from client.home import Node, open_node
from client.journal import words_for
from client.last_look import Speaker, permitted
from client.statistics import release_statistics
from common import places, wire
from common.errors import FederationError
from common.grafting import threads
from common.messages import Reply

log = logging.getLogger("fedgraft.node")
app = ClientApp()


@app.query(wire.HELLO_ACTION)
def hello(message: Message, context: Context) -> Message:
    """Answer the server's offer with name and declared size, or refuse it."""
    return _answer(message, context, lambda node: training.accept_offer(wire.decode_offer(message), node))


@app.query(wire.STATISTICS_ACTION)
def statistics(message: Message, context: Context) -> Message:
    """Release what a candidate backbone is scored by, noised and paid for."""
    return _answer(message, context, lambda node: release_statistics(wire.decode_statistics_task(message), node))


@app.query(wire.BACKBONE_ACTION)
def backbone(message: Message, context: Context) -> Message:
    """Take a piece of a backbone that the operator approved by its digest."""
    return _answer(message, context, lambda node: node.receive(wire.decode_part(message)))


@app.train()
def train(message: Message, context: Context) -> Message:
    """Do one private round."""
    return _answer(message, context, lambda node: training.train_round(wire.decode_train_task(message), node))


@app.evaluate()
def evaluate(message: Message, context: Context) -> Message:
    """Score a head on the node's own records, if its metrics policy allows it."""
    return _answer(message, context, lambda node: training.evaluate(wire.decode_evaluate_task(message), node))


def _answer(message: Message, context: Context, work: Callable[[Node], Reply]) -> Message:
    name = "node"
    try:
        node = open_node(context.run_id, context.run_config, context.node_config)
        name = node.name
        with threads(1):
            speaker = Speaker(node.name, node.declared_size, exact=node.simulated and node.policy.metrics == "exact")
            return wire.encode_reply(permitted(work(node), message, speaker), message)
    except FederationError as error:
        log.warning("%s refuses: %s", name, words_for(error, simulated=places.node_folder() is None))
        reply = egress.refuse(error)
    except Exception as error:
        log.error("%s failed: %s", name, words_for(error, simulated=places.node_folder() is None))
        reply = egress.refuse(error)
    return wire.encode_reply(reply, message)

"""The Flower ClientApp of a node: decode, call, encode. It decides nothing.

Every exception is caught here, because Flower sends the text of an uncaught one to the server.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from functools import partial
from typing import TypeVar

from flwr.app import Context, Message
from flwr.clientapp import ClientApp

from client import egress, training
from client.backbone_receiving import Receiver, open_receiver
from client.journal import words_for
from client.last_look import Said, all_permitted
from client.node import Node
from client.open_node import open_node
from client.statistics import release_statistics
from client.summing import answer_stage
from client.timing import Pad
from common import paths, wire
from common.errors import FederationError
from common.grafting import threads
from common.lockstep import Asked, Steps, one_step, to_the_end
from common.messages import Reply

log = logging.getLogger("fedgraft.node")
app = ClientApp()
Place = TypeVar("Place", Node, Receiver)


@app.query(wire.HELLO_ACTION)
def hello(message: Message, context: Context) -> Message:
    """Answer the server's offer with name and declared size, or refuse it."""
    return _answer(message, context, lambda node: training.accept_offer(wire.decode_offer(message), node))


@app.query(wire.STATISTICS_ACTION)
def statistics(message: Message, context: Context) -> Message:
    """Release what a candidate backbone is scored by, noised and paid for."""
    return _answer(message, context, lambda node: release_statistics(wire.decode_statistics_task(message), node), Pad())


@app.query(wire.BACKBONE_ACTION)
def backbone(message: Message, context: Context) -> Message:
    """Take a piece of a backbone that the operator approved by its digest; no record is opened for that."""
    return _answer_of(open_receiver, message, lambda receiver: receiver.receive(wire.decode_part(message)))


@app.train()
def train(message: Message, context: Context) -> Message:
    """Do one private round."""
    return to_the_end(train_in_steps(message, context))


def train_in_steps(message: Message, context: Context) -> Steps[Message]:
    """Do one private round, in steps that an engine may let many nodes take together."""
    pad = Pad()
    opened = _opener(context, pad)
    return _in_steps(opened, message, lambda node: training.round_in_steps(wire.decode_train_task(message), node), pad)


@app.train(wire.SUM_ACTION)
def summed(message: Message, context: Context) -> Message:
    """Take part in one stage of a sum over nodes."""
    return _answer(message, context, lambda node: answer_stage(wire.decode_sum_task(message), node), Pad())


@app.evaluate()
def evaluate(message: Message, context: Context) -> Message:
    """Score a head on the node's own records, if its metrics policy allows it."""
    return _answer(message, context, lambda node: training.evaluate(wire.decode_evaluate_task(message), node), Pad())


def _answer(message: Message, context: Context, work: Callable[[Node], Reply], pad: Pad | None = None) -> Message:
    return _answer_of(_opener(context, pad), message, work, pad)


def _opener(context: Context, pad: Pad | None) -> Callable[[], Node]:
    def opened() -> Node:
        node = open_node(context.run_id, context.run_config, context.node_config)
        if pad is not None:
            pad.interval_s = node.answer_after_s
        return node

    return opened


def _answer_of(
    opened: Callable[[], Place], message: Message, work: Callable[[Place], Reply], pad: Pad | None = None
) -> Message:
    return to_the_end(_in_steps(opened, message, lambda place: one_step(partial(work, place)), pad))


def _in_steps(
    opened: Callable[[], Place], message: Message, work: Callable[[Place], Steps[Reply]], pad: Pad | None = None
) -> Steps[Message]:
    name = "node"
    try:
        place = opened()
        name = place.speaker.name
        with threads(1):
            reply = yield from work(place)
            allowed = yield Asked(all_permitted, Said(reply, message, place.speaker))
            answer = wire.encode_reply(allowed, message)
    except FederationError as error:
        log.warning("%s refuses: %s", name, words_for(error, simulated=paths.node_folder() is None))
        answer = wire.encode_reply(egress.refuse(error), message)
    except Exception as error:
        log.error("%s failed: %s", name, words_for(error, simulated=paths.node_folder() is None))
        answer = wire.encode_reply(egress.refuse(error), message)
    if pad is not None and 0 < pad.interval_s < pad.hold():
        log.warning("%s needed more than privacy.answer_after_s, and answered at a later multiple; raise it", name)
    return answer

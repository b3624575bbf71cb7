"""The in-process engine: Flower's Grid, played by this very process.

The real ServerApp talks to the real ClientApp through it. What the server sends is serialised, once for all nodes that
it goes to, and read once in each process that plays nodes; a reply holds bytes, which nobody can change, and is handed
over as it is, or serialised between processes. There is no daemon, no thread and no Ray. In a long run, forked
processes play some of the nodes (``simulations.workers``).
"""

from __future__ import annotations

import gc
import itertools
import uuid
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Self

from flwr.app import Context, Error, Message, MessageType, RecordDict
from flwr.app.message.message import make_message
from flwr.clientapp import ClientApp
from flwr.common.constant import SUPERLINK_NODE_ID, ErrorCode
from flwr.common.serde import message_from_proto, message_to_proto, recorddict_from_proto, recorddict_to_proto
from flwr.common.serde_utils import metadata_from_proto, metadata_to_proto
from flwr.proto.message_pb2 import Message as MessageProto
from flwr.proto.recorddict_pb2 import RecordDict as RecordDictProto
from flwr.serverapp import Grid
from flwr.supercore.run import Run
from flwr.supercore.task_identity import TaskIdentity

import client.app
import server.app
from client.open_ledgers import OpenLedgers, room_for_files
from client.simulated_node import simulated_in_process
from common import wire
from common.config import RunConfig, to_flat
from common.grafting import threads
from common.lockstep import Steps, together
from common.privacy import known
from simulations.workers import Worker, workers_for

RUN_ID = 1
FIRST_NODE_ID = 1000
TRAINING = (MessageType.TRAIN, wire.TRAIN_SUM)
AT_ONCE = 32  # messages handed to a worker at a time


class InProcessGrid(Grid):
    """All nodes of a federation on this machine, asked some at a time; with workers, a context manager."""

    def __init__(
        self,
        app: ClientApp,
        config: RunConfig,
        partitions: Sequence[int],
        run_folder: Path,
        ledgers: OpenLedgers | None = None,
        workers: int = 0,
    ) -> None:
        """Set the nodes up.

        Args:
            app: the ClientApp that every node runs.
            config: of the run; nodes and server receive it as Flower's run_config.
            partitions: numbers of the nodes that take part.
            run_folder: where the simulated nodes keep their ledgers.
            ledgers: of this run and no other, kept open between rounds; without, each message opens its own.
            workers: processes that play a share of the nodes, from the first training message on.
        """
        self._app = app
        self._run = Run.create_empty(RUN_ID)
        self._run_folder = run_folder
        self._ledgers = OpenLedgers(0) if ledgers is None else ledgers  # an empty one is false
        self._flat = to_flat(config)
        self._node_ids = [FIRST_NODE_ID + partition for partition in partitions]
        self._states: dict[int, RecordDict] = {}  # of the nodes that keep something
        self._replies: dict[str, Message] = {}
        self._wanted, self._workers = workers, list[Worker]()

    def __enter__(self) -> Self:
        """Return itself."""
        return self

    def __exit__(self, *_: object) -> None:
        """End the workers."""
        for worker in self._workers:
            worker.close()

    def set_run(self, run: Run) -> None:
        """Set the run that messages belong to."""
        self._run = run

    @property
    def run(self) -> Run:
        """The run that messages belong to."""
        return self._run

    def create_message(
        self, content: RecordDict, message_type: str, dst_node_id: int, group_id: str, ttl: float | None = None
    ) -> Message:
        """Make a message, as ``Message`` does."""
        return Message(content, dst_node_id, message_type, ttl=ttl, group_id=group_id)

    def get_node_ids(self) -> Iterable[int]:
        """Ids of all nodes."""
        return list(self._node_ids)

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        """Deliver messages; the nodes work at once, in the order given."""
        contents = _Contents()
        return [message_id for some in self._at_once(messages) for message_id in self._deliver(some, contents)]

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        """Hand out the replies to the messages of these ids, each once."""
        return [self._replies.pop(message_id) for message_id in message_ids if message_id in self._replies]

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> Iterable[Message]:
        """Deliver messages and return the replies; ``timeout`` has no meaning where nothing runs in parallel."""
        return self.pull_messages(self.push_messages(messages))

    def _at_once(self, messages: Iterable[Message]) -> Iterator[list[Message]]:
        """Messages in portions, as large as all processes together are given at a time."""
        waiting, most = iter(messages), AT_ONCE * (1 + self._wanted)
        while some := list(itertools.islice(waiting, most)):
            if len(self._workers) < self._wanted and some[0].metadata.message_type in TRAINING:
                self._fork()
            yield some

    def _fork(self) -> None:
        """Start the workers: late, so that they have all that was loaded, and with no ledger open in this process."""
        self._ledgers.close()
        known.hear()
        while len(self._workers) < self._wanted:
            self._workers.append(Worker(self._play_serialised, self._ledgers.close, self._workers))

    def _deliver(self, messages: Sequence[Message], contents: _Contents) -> list[str]:
        """Let everybody play a share; the replies are put in the order of the messages."""
        for message in messages:
            message.metadata.__dict__["_message_id"] = uuid.uuid4().hex  # as Flower's own grids do
        shares = self._shares(messages)
        for worker, share in zip(self._workers, shares[1:], strict=True):
            worker.begin(list(contents.serialised(messages[index] for index in share)))
        own = [contents.received(messages[index]) for index in shares[0]]
        replies = dict(zip(shares[0], self._play(own), strict=True))
        for worker, share in zip(self._workers, shares[1:], strict=True):
            came = map(MessageProto.FromString, worker.finish())
            replies.update(zip(share, map(message_from_proto, came), strict=True))
        ids = [message.metadata.message_id for message in messages]
        self._replies.update((message_id, replies[index]) for index, message_id in enumerate(ids))
        return ids

    def _shares(self, messages: Sequence[Message]) -> list[list[int]]:
        """Which messages this process plays, and which each worker; a node is always played by the same."""
        shares: list[list[int]] = [[] for _ in range(1 + len(self._workers))]
        for index, message in enumerate(messages):
            shares[message.metadata.dst_node_id % len(shares)].append(index)
        return shares

    def _play_serialised(self, messages: Sequence[bytes]) -> list[bytes]:
        """What a worker does; a message without a content has that of the one before it."""
        read, content = [], None
        for proto in map(MessageProto.FromString, messages):
            content = recorddict_from_proto(proto.content) if proto.HasField("content") else content
            read.append(make_message(metadata_from_proto(proto.metadata), content))
        return [message_to_proto(reply).SerializeToString() for reply in self._play(read)]

    def _play(self, messages: Sequence[Message]) -> list[Message]:
        """Let nodes take each step of their work together; which others there are changes nothing of a node's reply."""
        with simulated_in_process(self._run_folder, self._ledgers):
            return together([self._in_steps(message) for message in messages])

    def _in_steps(self, message: Message) -> Steps[Message]:
        node_id = message.metadata.dst_node_id
        context = Context(
            run_id=RUN_ID,
            node_id=node_id,
            node_config={"partition-id": node_id - FIRST_NODE_ID, "num-partitions": len(self._node_ids)},
            state=self._states.get(node_id) or RecordDict(),
            run_config=self._flat,
        )
        try:
            if self._app is client.app.app and message.metadata.message_type == MessageType.TRAIN:
                return (yield from client.app.train_in_steps(message, context))
            return self._app(message, context)
        except Exception as error:  # as Flower's runtimes do; fedgraft's own app lets none through
            return Message(Error(ErrorCode.CLIENT_APP_RAISED_EXCEPTION, str(error)), reply_to=message)
        finally:
            if context.state:
                self._states[node_id] = context.state


class _Contents:
    """What the messages of one push hold: a strategy sends all nodes one content, which is written and read once."""

    def __init__(self) -> None:
        self._sent: RecordDict | None = None
        self._proto = RecordDictProto()
        self._read: RecordDict | None = None

    def serialised(self, messages: Iterable[Message]) -> Iterator[bytes]:
        """Messages as bytes; one that holds what the one before it held goes without a content."""
        last: RecordDict | None = None
        for message in messages:
            proto = MessageProto(metadata=metadata_to_proto(message.metadata))
            if message.content is not last:
                last = message.content
                proto.content.CopyFrom(self._written(last))
            yield proto.SerializeToString()

    def received(self, message: Message) -> Message:
        """A message as its node receives it."""
        proto = self._written(message.content)
        if self._read is None:
            self._read = recorddict_from_proto(RecordDictProto.FromString(proto.SerializeToString()))
        return make_message(message.metadata, self._read)

    def _written(self, content: RecordDict) -> RecordDictProto:
        if content is not self._sent:
            self._sent, self._proto, self._read = content, recorddict_to_proto(content), None
        return self._proto


def run_in_process(
    config: RunConfig,
    run_folder: Path,
    partitions: Sequence[int],
    *,
    workers: int | None = None,
    last_round: int | None = None,
) -> None:
    """Run, or continue, a federation with the real apps on this machine.

    Args:
        config: of the run.
        run_folder: exists; checkpoints and ledgers go there.
        partitions: numbers of the nodes that take part.
        workers: processes beside this one that play nodes; None takes as many as are worth it.
        last_round: after which the run ends, under the plan of all rounds; None plays all.

    Raises:
        FederationError: as server and configuration raise it.
    """
    if workers is None:
        asked = config.federation.cohort or len(partitions)
        workers = workers_for(asked, asked * config.federation.rounds * config.training.local_steps)
    with ExitStack() as stack:
        stack.enter_context(task_identity())
        stack.enter_context(threads(1))
        stack.enter_context(all_kept())
        ledgers = stack.enter_context(OpenLedgers(room_for_files()))
        grid = InProcessGrid(client.app.app, config, partitions, run_folder, ledgers, workers)
        stack.enter_context(grid)
        context = Context(
            run_id=RUN_ID,
            node_id=SUPERLINK_NODE_ID,
            node_config={"run-folder": str(run_folder), "nodes": len(partitions)},
            state=RecordDict(),
            run_config=to_flat(config),
        )
        if last_round is not None:
            context.node_config["last-round"] = last_round
        server.app.app(grid, context)


@contextmanager
def all_kept() -> Iterator[None]:
    """Keep Python from looking, time and again, for garbage in what was loaded before."""
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()


@contextmanager
def task_identity() -> Iterator[None]:
    """Say who sends, which Flower's ``Message`` takes from a process-wide, private place (flwr is pinned for it)."""
    before = (TaskIdentity._run_id, TaskIdentity._node_id, TaskIdentity._task_id)
    TaskIdentity.run_id, TaskIdentity.node_id, TaskIdentity.task_id = RUN_ID, SUPERLINK_NODE_ID, 0
    try:
        yield
    finally:
        TaskIdentity._run_id, TaskIdentity._node_id, TaskIdentity._task_id = before

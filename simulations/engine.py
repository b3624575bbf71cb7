"""The in-process engine: Flower's Grid, played by this very process.

The real ServerApp talks to the real ClientApp through it. Every message is serialised both ways, so that nothing is
shared by reference and what is simulated is what is deployed; there is no daemon, no thread and no Ray.
"""

from __future__ import annotations

import uuid
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from flwr.app import Context, Error, Message, RecordDict
from flwr.clientapp import ClientApp
from flwr.common.constant import SUPERLINK_NODE_ID, ErrorCode
from flwr.common.serde import message_from_proto, message_to_proto, recorddict_to_proto
from flwr.common.serde_utils import metadata_to_proto
from flwr.proto.message_pb2 import Message as MessageProto
from flwr.proto.recorddict_pb2 import RecordDict as RecordDictProto
from flwr.serverapp import Grid
from flwr.supercore.run import Run
from flwr.supercore.task_identity import TaskIdentity

import client.app
import server.app
from client.home import simulated_in_process
from client.open_ledgers import OpenLedgers, room_for_files
from common.config import RunConfig, to_flat
from common.grafting import threads

RUN_ID = 1
FIRST_NODE_ID = 1000


class InProcessGrid(Grid):
    """All nodes of a federation in one process, asked one after the other."""

    def __init__(
        self,
        app: ClientApp,
        config: RunConfig,
        partitions: Sequence[int],
        run_folder: Path,
        ledgers: OpenLedgers | None = None,
    ) -> None:
        """Set the nodes up.

        Args:
            app: the ClientApp that every node runs.
            config: of the run; nodes and server receive it as Flower's run_config.
            partitions: numbers of the nodes that take part.
            run_folder: where the simulated nodes keep their ledgers.
            ledgers: of this run and no other, kept open between rounds; without, each message opens its own.
        """
        self._app = app
        self._run = Run.create_empty(RUN_ID)
        self._run_folder = run_folder
        self._ledgers = ledgers
        flat = to_flat(config)
        self._contexts = {
            FIRST_NODE_ID + partition: Context(
                run_id=RUN_ID,
                node_id=FIRST_NODE_ID + partition,
                node_config={"partition-id": partition, "num-partitions": len(partitions)},
                state=RecordDict(),
                run_config=flat,
            )
            for partition in partitions
        }
        self._replies: dict[str, Message] = {}

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
        return list(self._contexts)

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        """Deliver messages; the nodes work at once, in the order given."""
        return [message_id for message_id, _ in self._deliver(messages)]

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        """Hand out the replies to the messages of these ids, each once."""
        return [self._replies.pop(message_id) for message_id in message_ids if message_id in self._replies]

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> Iterable[Message]:
        """Deliver messages and return the replies; ``timeout`` has no meaning where nothing runs in parallel."""
        return self.pull_messages(self.push_messages(messages))

    def _deliver(self, messages: Iterable[Message]) -> Iterator[tuple[str, Message]]:
        contents: dict[int, tuple[RecordDict, RecordDictProto]] = {}  # a strategy sends all nodes one content
        for message in messages:
            key = id(message.content)
            if key not in contents:
                contents[key] = (message.content, recorddict_to_proto(message.content))
            message_id = uuid.uuid4().hex
            proto = MessageProto(metadata=metadata_to_proto(message.metadata), content=contents[key][1])
            proto.metadata.message_id = message_id
            reply = self._play(message_from_proto(proto))
            self._replies[message_id] = message_from_proto(
                MessageProto.FromString(message_to_proto(reply).SerializeToString())
            )
            yield message_id, reply

    def _play(self, message: Message) -> Message:
        context = self._contexts[message.metadata.dst_node_id]
        try:
            with simulated_in_process(self._run_folder, self._ledgers):
                return self._app(message, context)
        except Exception as error:  # as Flower's runtimes do; fedgraft's own app lets none through
            return Message(Error(ErrorCode.CLIENT_APP_RAISED_EXCEPTION, str(error)), reply_to=message)


def run_in_process(config: RunConfig, run_folder: Path, partitions: Sequence[int]) -> None:
    """Run, or continue, a federation with the real apps in this process.

    Args:
        config: of the run.
        run_folder: exists; checkpoints and ledgers go there.
        partitions: numbers of the nodes that take part.

    Raises:
        FederationError: as server and configuration raise it.
    """
    with task_identity(), threads(1), OpenLedgers(room_for_files()) as ledgers:
        grid = InProcessGrid(client.app.app, config, partitions, run_folder, ledgers)
        context = Context(
            run_id=RUN_ID,
            node_id=SUPERLINK_NODE_ID,
            node_config={"run-folder": str(run_folder), "nodes": len(partitions)},
            state=RecordDict(),
            run_config=to_flat(config),
        )
        server.app.app(grid, context)


@contextmanager
def task_identity() -> Iterator[None]:
    """Say who sends, which Flower's ``Message`` takes from a process-wide, private place (flwr is pinned for it)."""
    before = (TaskIdentity._run_id, TaskIdentity._node_id, TaskIdentity._task_id)
    TaskIdentity.run_id, TaskIdentity.node_id, TaskIdentity.task_id = RUN_ID, SUPERLINK_NODE_ID, 0
    try:
        yield
    finally:
        TaskIdentity._run_id, TaskIdentity._node_id, TaskIdentity._task_id = before

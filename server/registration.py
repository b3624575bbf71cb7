"""Who may join: nodes are let in, given another key and shut out, one command at a time, and no crash loses a key.

Flower knows a key by an id that it draws and tells once, and takes no key twice, also after its node was removed. So
what is about to be registered is written down first, with the ids that there were: after a crash the new one is found.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

from pydantic import ValidationError

from common import durable
from common.errors import ConfigError
from common.locks import alone
from common.node_names import check_node_name
from common.privacy.keys import fingerprint, load_public, openssh
from common.strict import Strict
from server.control import nodes_seen, register, unregister
from server.coordinator_folder import NODES, Place, Registered

PENDING, REMOVED = "nodes.pending.json", "nodes.removed.json"
GONE = "unregistered"


class Pending(Strict):
    """A registration that has begun.

    Attributes:
        name: of the node.
        fingerprint: of its key.
        before: Flower's ids of all nodes before it.
        key: the public key, OpenSSH.
    """

    name: str
    fingerprint: str
    before: list[int]
    key: str = ""


class Removed(Strict):
    """A key that is let in no longer.

    Attributes:
        name: of its node.
        node_id: Flower's.
        fingerprint: of the key.
        at: when, UTC.
    """

    name: str
    node_id: int
    fingerprint: str
    at: str


def admit(place: Place, name: str, key: Path, *, replace: bool = False) -> Registered:
    """Let a node in; or give one that is in another key, and shut the old one out.

    Raises:
        ConfigError: the name is no node's, taken, or not there to be replaced; or the key is none, or was used before.
        FederationError: the SuperLink cannot be reached.
    """
    check_node_name(name)
    whole = openssh(load_public(key))
    public = fingerprint(whole)
    with _changing(place):
        nodes = place.nodes()
        if replace and name in nodes and nodes[name].fingerprint == public:
            _shut_out(place, name, but=nodes[name].node_id)
            nodes[name] = nodes[name].model_copy(update={"key": whole})  # an older release did not keep it
            place.keep_nodes(nodes)
            return nodes[name]  # a replacement that was interrupted, or is repeated
        if name in nodes and not replace:
            raise ConfigError(
                f"a node {name!r} is registered already; give it another key with --replace, or choose another name"
            )
        if name not in nodes and replace:
            raise ConfigError(f"expected a registered node, there is no {name!r}; leave --replace out to let it in")
        pending = Pending(name=name, fingerprint=public, before=sorted(nodes_seen(place)), key=whole)
        durable.write_bytes(place.folder / PENDING, pending.model_dump_json().encode(), mode=0o600)
        try:
            node_id = register(place, name, key.resolve())
        except ConfigError:
            _settle(place)
            raise
        return _conclude(place, pending, node_id)


def remove(place: Place, name: str) -> None:
    """Shut a node out: from its next call on, of which there are several a second, the SuperLink refuses its key.

    Raises:
        ConfigError: there is none of this name.
        FederationError: the SuperLink cannot be reached.
    """
    with _changing(place):
        nodes = place.nodes()
        if name not in nodes:
            raise ConfigError(f"expected a registered node, there is no {name!r}; `fedgraft server nodes` lists them")
        _note_removed(place, name, nodes.pop(name))
        _shut_out(place, name)
        place.keep_nodes(nodes)


def removed_nodes(place: Place) -> list[Removed]:
    """The keys that were shut out, in their order.

    Raises:
        ConfigError: the file that lists them is damaged.
    """
    path = place.folder / REMOVED
    try:
        return [Removed.model_validate(one) for one in json.loads(path.read_bytes())] if path.exists() else []
    except (OSError, ValueError, TypeError) as error:
        raise ConfigError(f"expected the removed nodes in {path}, got a damaged file; restore it") from error


@contextmanager
def _changing(place: Place) -> Iterator[None]:
    """Alone, and with what a crash left half done finished."""
    with alone(place.folder / f"{NODES}.lock"):
        _settle(place)
        yield


def _settle(place: Place) -> None:
    path = place.folder / PENDING
    if not path.exists():
        return
    try:
        pending = Pending.model_validate_json(path.read_bytes())
    except (OSError, ValidationError) as error:
        raise ConfigError(f"expected a registration in {path}, got a damaged file; restore or remove it") from error
    seen = nodes_seen(place)
    new = [node_id for node_id in seen if node_id not in pending.before and seen[node_id] != GONE]
    if new:  # one: commands are alone
        _conclude(place, pending, new[0])
    path.unlink(missing_ok=True)


def _conclude(place: Place, pending: Pending, node_id: int) -> Registered:
    """Write down the node that the SuperLink knows now, and shut its old key out, where there was one."""
    nodes, entry = place.nodes(), _entry(pending, node_id)
    if pending.name in nodes and nodes[pending.name].node_id != node_id:
        _note_removed(place, pending.name, nodes[pending.name])
    place.keep_nodes({**nodes, pending.name: entry})
    _shut_out(place, pending.name, but=node_id)
    (place.folder / PENDING).unlink()
    return entry


def _entry(pending: Pending, node_id: int) -> Registered:
    return Registered(node_id=node_id, fingerprint=pending.fingerprint, key=pending.key)


def _note_removed(place: Place, name: str, entry: Registered) -> None:
    """Write down which key goes; the SuperLink is told afterwards, and again after a crash between the two."""
    listed = removed_nodes(place)
    if entry.node_id not in {one.node_id for one in listed}:
        at = datetime.now(UTC).isoformat(timespec="seconds")
        listed.append(Removed(name=name, node_id=entry.node_id, fingerprint=entry.fingerprint, at=at))
        durable.write_json(place.folder / REMOVED, [one.model_dump() for one in listed], mode=0o600)


def _shut_out(place: Place, name: str, but: int | None = None) -> None:
    """Have the SuperLink refuse every key of a name that was removed, but the one that is its key now."""
    gone = [one.node_id for one in removed_nodes(place) if one.name == name and one.node_id != but]
    seen = nodes_seen(place) if gone else {}
    for node_id in gone:
        if node_id in seen and seen[node_id] != GONE:
            unregister(place, node_id)

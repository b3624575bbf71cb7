"""Taking a coordinator's new join file: which CAs the node trusts from then on, shown before anything is written."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from client.approvals import read_approvals
from client.node_config import NodeConfig
from client.node_folder import Join
from common import durable
from common.errors import ConfigError
from common.validity import Validity, authorities_in, validity_of

ASK = "ask the coordinator for a new join file"


@dataclass(frozen=True)
class Change:
    """What a join file would change.

    Attributes:
        before: the CAs that the node trusts; empty where its file cannot be read.
        after: those of the join file.
        notes: what else differs, in sentences.
    """

    before: tuple[Validity, ...]
    after: tuple[Validity, ...]
    notes: tuple[str, ...]

    @property
    def same(self) -> bool:
        """Whether the node trusts just these CAs already."""
        return [one.fingerprint for one in self.before] == [one.fingerprint for one in self.after]


def compare(folder: Path, config: NodeConfig, join: Join) -> Change:
    """Say what a join file would change.

    Raises:
        ConfigError: it holds no CA that is valid now.
    """
    after = trusted(join.certificate.encode(), "the join file")
    if all(one.state == "fail" for one in after):
        raise ConfigError(f"expected a CA that is valid now in the join file: {after[0].words}")
    try:
        before = own_trust(folder, config)
    except ConfigError:
        before = ()
    notes = []
    if join.address != config.server.address:
        notes.append(
            f"the join file names {join.address}, node.toml {config.server.address}: correct server.address there"
        )
    if join.app_sha256 not in read_approvals(folder).apps:
        notes.append("the coordinator's app is not approved here: install their release, `fedgraft node approve app`")
    return Change(before, after, tuple(notes))


def trust(folder: Path, config: NodeConfig, join: Join) -> None:
    """Trust the CAs of a join file, and no others.

    Raises:
        ConfigError: it cannot be written; the node trusts those of before then.
    """
    durable.write_bytes(folder / config.server.certificate, join.certificate.encode())


def trusted(pem: bytes, name: str) -> tuple[Validity, ...]:
    """How long each CA in a file is valid; errors as in ``authorities_in``."""
    return tuple(validity_of(one, "the coordinator's CA", ASK) for one in authorities_in(pem, name))


def own_trust(folder: Path, config: NodeConfig) -> tuple[Validity, ...]:
    """How long each CA that a node trusts is valid.

    Raises:
        ConfigError: the file cannot be read, or holds something else.
    """
    path = folder / config.server.certificate
    try:
        return trusted(path.read_bytes(), str(path))
    except OSError as error:
        raise ConfigError(f"cannot read {path}: {error.strerror}; run `fedgraft node join FILE`") from error

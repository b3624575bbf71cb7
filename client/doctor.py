"""The doctor of a node: looks at everything that a round needs, and says of each what is well and what to do."""

from __future__ import annotations

import datetime
import importlib.metadata
import shutil
import socket
import ssl
import stat
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from cryptography import x509

from client.approvals import read_approvals
from client.node_config import NodeConfig, load_node_config
from client.node_folder import KEY, PAUSED, is_paused
from client.own_node import ledger_file, open_own_ledger
from client.own_records import OwnRecords
from common.backbones.controls import load_reference
from common.errors import FederationError
from common.privacy.keys import load_private

CONNECT_TIMEOUT_S = 10.0
SOON = datetime.timedelta(days=30)
LEAST_DISK = 2 * 2**30


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at.

    Attributes:
        subject: what.
        state: ``ok``, ``note`` (it works, but read this) or ``fail``.
        words: what was found, and what to do.
    """

    subject: str
    state: Literal["ok", "note", "fail"]
    words: str


def examine(folder: Path) -> Iterator[Finding]:
    """Look at everything, one after the other; what fails does not keep the rest from being looked at."""
    try:
        config = load_node_config(folder)
    except FederationError as error:
        yield Finding("node.toml", "fail", str(error))
        return
    yield Finding("node.toml", "ok", f"node {config.node.name}, data set {config.data.id}")
    checks: list[tuple[str, Callable[[Path, NodeConfig], Finding]]] = [
        ("folder", _folder),
        ("key", _key),
        ("certificate", _certificate),
        ("server", _server),
        ("data", _data),
        ("ledger", _ledger),
        ("backbones", _backbones),
        ("apps", _apps),
        ("disk", _disk),
        ("device", _device),
        ("versions", _versions),
    ]
    for subject, check in checks:
        try:
            yield check(folder, config)
        except FederationError as error:
            yield Finding(subject, "fail", str(error))


def _folder(folder: Path, _: NodeConfig) -> Finding:
    mode = stat.S_IMODE(folder.stat().st_mode)
    if mode & 0o077:
        return Finding("folder", "fail", f"others can look into {folder}; run chmod 700 {folder}")
    if is_paused(folder):
        return Finding("folder", "note", f"the node is paused ({PAUSED}); run `fedgraft node resume`")
    return Finding("folder", "ok", "for its owner only")


def _key(folder: Path, _: NodeConfig) -> Finding:
    load_private(folder / KEY)
    if stat.S_IMODE((folder / KEY).stat().st_mode) & 0o077:
        return Finding("key", "fail", f"others can read {folder / KEY}; run chmod 600 on it")
    return Finding("key", "ok", "ECDSA P-384, for its owner only")


def _certificate(folder: Path, config: NodeConfig) -> Finding:
    path = folder / config.server.certificate
    try:
        certificate = x509.load_pem_x509_certificate(path.read_bytes())
    except OSError as error:
        return Finding("certificate", "fail", f"cannot read {path}: {error.strerror}; copy it from the join file")
    except ValueError:
        return Finding("certificate", "fail", f"{path} is no certificate; run `fedgraft node init` with the join file")
    return _validity("certificate", certificate, "the coordinator's CA")


def _validity(subject: str, certificate: x509.Certificate, what: str) -> Finding:
    now = datetime.datetime.now(datetime.UTC)
    first, last = certificate.not_valid_before_utc, certificate.not_valid_after_utc
    if now < first:
        return Finding(subject, "fail", f"{what} is valid from {first:%Y-%m-%d} on; is this machine's clock right?")
    if now > last:
        return Finding(subject, "fail", f"{what} ended on {last:%Y-%m-%d}; ask the coordinator for a new one")
    state: Literal["ok", "note"] = "note" if last - now < SOON else "ok"
    return Finding(subject, state, f"{what} is valid until {last:%Y-%m-%d}, {(last - now).days} days")


def _server(folder: Path, config: NodeConfig) -> Finding:
    host, _, port = config.server.address.rpartition(":")
    try:
        context = ssl.create_default_context(cafile=folder / config.server.certificate)
        with (
            socket.create_connection((host, int(port)), CONNECT_TIMEOUT_S) as plain,
            context.wrap_socket(plain, server_hostname=host) as secured,
        ):
            encoded = secured.getpeercert(binary_form=True)
    except ssl.SSLCertVerificationError as error:
        return Finding(
            "server",
            "fail",
            f"{config.server.address} shows a certificate that is not to be trusted ({error.verify_message}); compare "
            "the clock and the join file with the coordinator",
        )
    except OSError as error:
        return Finding(
            "server", "fail", f"cannot reach {config.server.address} ({error}); ask whether a firewall lets this out"
        )
    assert encoded is not None
    return _validity("server", x509.load_der_x509_certificate(encoded), f"reached; the certificate of {host}")


def _data(folder: Path, config: NodeConfig) -> Finding:
    records = OwnRecords(folder, config)
    data = records.data  # all files are read, whatever the index says
    records.check_unit()
    words = f"{len(data)} records readable, task {data.task}, declared {config.data.declared_size}"
    if abs(len(data) - config.data.declared_size) > config.data.declared_size / 2:
        return Finding("data", "note", f"{words}: far apart, so that the noise is ill fitted; correct declared_size")
    return Finding("data", "ok", words)


def _ledger(folder: Path, config: NodeConfig) -> Finding:
    if not ledger_file(folder, config).exists():
        return Finding("ledger", "ok", "none yet: nothing was ever released")
    with open_own_ledger(folder, config) as ledger:
        ledger.verify()
        said = ledger.statement()
    words = f"intact, {said.entries} entries, epsilon {said.epsilon:.4g} of {said.epsilon_cap:g} spent"
    return Finding("ledger", "ok" if said.epsilon < said.epsilon_cap else "note", words)


def _backbones(folder: Path, _: NodeConfig) -> Finding:
    approved = read_approvals(folder).backbones
    for digest, reference in approved.items():
        if load_reference(reference).digest != digest:
            return Finding("backbones", "fail", f"{reference} is not what was approved; approve it anew or restore it")
    awaited = [f"{digest[:16]}… awaited from the server" for digest in read_approvals(folder).awaited]
    if not approved and not awaited:
        return Finding("backbones", "fail", "none is approved; run `fedgraft node approve backbone REFERENCE`")
    return Finding("backbones", "ok", ", ".join([*approved.values(), *awaited]))


def _apps(folder: Path, _: NodeConfig) -> Finding:
    approved = read_approvals(folder).apps
    if not approved:
        return Finding("apps", "fail", "none is approved; run `fedgraft node approve app`")
    return Finding("apps", "ok", ", ".join(f"{digest[:12]} ({note})" for digest, note in approved.items()))


def _disk(folder: Path, _: NodeConfig) -> Finding:
    free = shutil.disk_usage(folder).free
    words = f"{free / 2**30:.1f} GiB free"
    return Finding("disk", "ok" if free > LEAST_DISK else "fail", words + ("" if free > LEAST_DISK else "; make room"))


def _device(_: Path, __: NodeConfig) -> Finding:
    import torch

    if torch.cuda.is_available():
        return Finding("device", "ok", torch.cuda.get_device_name())
    return Finding("device", "ok", f"processor, {torch.get_num_threads()} threads; no GPU is needed")


def _versions(_: Path, __: NodeConfig) -> Finding:
    names = ("fedgraft", "flwr", "torch", "opacus")
    return Finding("versions", "ok", ", ".join(f"{name} {importlib.metadata.version(name)}" for name in names))

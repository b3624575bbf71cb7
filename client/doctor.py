"""The doctor of a node: looks at everything that a round needs, and says of each what is well and what to do."""

from __future__ import annotations

import importlib.metadata
import shutil
import socket
import ssl
import stat
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Literal

from cryptography import x509

from client.approvals import read_approvals
from client.clock import measure_skew
from client.contact import last_contact
from client.isolation import check_possible
from client.join import own_trust
from client.keys import KEY, PUBLIC_KEY, left_over
from client.node_config import NodeConfig, load_node_config
from client.node_folder import PAUSED, is_paused
from client.own_node import has_ledger, ledger_file, open_own_ledger
from client.own_records import OwnRecords, own_seal
from client.registered import is_registered
from client.sent_backbones import sent_reference
from client.sums_check import look_at_sums
from common.backbones.controls import load_reference
from common.data.patients import numbered
from common.errors import BackboneMismatchError, FederationError
from common.ports import split
from common.privacy.keys import load_private
from common.segments import check_segments
from common.supervisor import supervisor_of
from common.validity import validity_of

CONNECT_TIMEOUT_S = 10.0
RENEW = "ask the coordinator to renew it (fedgraft server init --renew)"
LEAST_DISK = 2 * 2**30
LEAST_LEDGER = 2**20  # its disk may be another
FAR_S = 2.0
LONG_AGO = timedelta(minutes=2)

State = Literal["ok", "note", "fail"]


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at.

    Attributes:
        subject: what.
        state: ``ok``, ``note`` (it works, but read this) or ``fail``.
        words: what was found, and what to do.
    """

    subject: str
    state: State
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
        ("clock", _clock),
        ("registered", _registered),
        ("contact", _contact),
        ("data", _data),
        ("cache", _cache),
        ("ledger", _ledger),
        ("backbones", _backbones),
        ("apps", _apps),
        ("sums", _sums),
        ("isolation", _isolation),
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
    if left_over(folder):
        return Finding("key", "fail", "a rotation was interrupted; run `fedgraft node rotate-key` to finish it")
    return Finding("key", "ok", "ECDSA P-384, for its owner only")


def _certificate(folder: Path, config: NodeConfig) -> Finding:
    found = own_trust(folder, config)
    states = {one.state for one in found}
    state: State = "fail" if states == {"fail"} else "note" if states != {"ok"} else "ok"
    return Finding("certificate", state, "; ".join(one.words for one in found))


def _server(folder: Path, config: NodeConfig) -> Finding:
    host, port = split(config.server.address)
    own_trust(folder, config)
    try:
        context = ssl.create_default_context(cafile=folder / config.server.certificate)
        with (
            socket.create_connection((host, port), CONNECT_TIMEOUT_S) as plain,
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
    shown = validity_of(x509.load_der_x509_certificate(encoded), f"reached; the certificate of {host}", RENEW)
    return Finding("server", shown.state, shown.words)


def _reachable(config: NodeConfig) -> bool:
    try:
        with socket.create_connection(split(config.server.address), CONNECT_TIMEOUT_S):
            return True
    except OSError:
        return False


def _clock(folder: Path, config: NodeConfig) -> Finding:
    if not _reachable(config):
        return Finding("clock", "note", "not measured: the coordinator cannot be reached")
    own_trust(folder, config)
    certificate = (folder / config.server.certificate).read_bytes()
    found = measure_skew(config.server.address, certificate, folder / KEY)
    if found.ahead_s is None:
        return Finding("clock", "fail", "more than an hour from the coordinator's; set this machine's clock (NTP)")
    way = "ahead of" if found.ahead_s > 0 else "behind"
    words = (
        f"{abs(found.ahead_s):.1f} s {way} the coordinator's, to within {found.exact_to_s:.1f} s, by the signed times "
        "that it accepts"
    )
    if not found.accepted:
        return Finding("clock", "fail", f"{words}; it refuses this node: set this machine's clock (NTP)")
    far = abs(found.ahead_s) > FAR_S + found.exact_to_s
    cure = "; set this machine's clock (NTP) before it is 5 s ahead, or 5 minutes behind" if far else ""
    return Finding("clock", "note" if far else "ok", words + cure)


def _registered(folder: Path, config: NodeConfig) -> Finding:
    if not _reachable(config):
        return Finding("registered", "note", "not asked: the coordinator cannot be reached")
    own_trust(folder, config)
    if is_registered(config.server.address, (folder / config.server.certificate).read_bytes(), folder / KEY):
        return Finding("registered", "ok", "the coordinator knows this node's key")
    cure = f"send it {PUBLIC_KEY}; if it was removed there, make a new one first (fedgraft node rotate-key)"
    return Finding("registered", "fail", f"the coordinator does not let this node's key in; {cure}")


def _contact(folder: Path, _: NodeConfig) -> Finding:
    last, running = last_contact(folder), supervisor_of(folder) is not None
    if last is None:
        words = "the coordinator has never answered this node"
        return Finding("contact", "note" if running else "ok", words + ("" if running else "; it does not run"))
    ago = datetime.now(UTC) - last
    words = f"the coordinator last answered {last:%Y-%m-%d %H:%M:%S} UTC"
    if running and ago > LONG_AGO:
        return Finding("contact", "note", f"{words}, though the node runs; see logs/supernode.log")
    return Finding("contact", "ok", words if running else f"{words}; the node does not run")


def _data(folder: Path, config: NodeConfig) -> Finding:
    records = OwnRecords(folder, config)
    data = records.data  # all files are read, whatever the index says
    records.check_unit()
    patients = numbered(data.patient) if config.privacy.unit == "patient" else None
    units = len(data) if patients is None else int(patients.max(initial=-1)) + 1
    of = "" if patients is None else f" of {units} patients"
    withdrawn = len(records.everything) - len(data)
    left_out = f", {withdrawn} withdrawn" if withdrawn else ""
    words = f"{len(data)} records{of} readable{left_out}, task {data.task}, declared {config.data.declared_size}"
    if abs(units - config.data.declared_size) > config.data.declared_size / 2:
        return Finding("data", "note", f"{words}: far apart, so that the noise is ill fitted; correct declared_size")
    return Finding("data", "ok", words)


def _cache(folder: Path, config: NodeConfig) -> Finding:
    seal = own_seal(folder, config)
    check_segments(folder / "cache" / "features", seal)
    if seal is None:
        return Finding("cache", "note", "features are kept unencrypted; set data.cache_key where the disk is not")
    if (folder / Path(str(config.data.cache_key)).expanduser()).resolve().is_relative_to(folder.resolve()):
        return Finding("cache", "note", "encrypted, but the key lies in the node's folder: who copies one has both")
    return Finding("cache", "ok", "encrypted")


def _ledger(folder: Path, config: NodeConfig) -> Finding:
    if not has_ledger(folder, config):
        return Finding("ledger", "ok", "none yet: nothing was ever released")
    with open_own_ledger(folder, config) as ledger:
        ledger.verify()
        said = ledger.statement()
    wanted = config.privacy.max_epsilon
    if wanted > said.epsilon_cap:
        sign_off = f"run `fedgraft node ledger raise-cap {wanted!r}`"
        return Finding("ledger", "fail", f"the cap is {said.epsilon_cap:g}, node.toml has {wanted:g}; {sign_off}")
    words = f"intact, {said.entries} entries, epsilon {said.epsilon:.4g} of {said.epsilon_cap:g} spent"
    return Finding("ledger", "ok" if said.epsilon < said.epsilon_cap else "note", words)


def _backbones(folder: Path, _: NodeConfig) -> Finding:
    approvals = read_approvals(folder)
    named, found = dict(approvals.backbones), list(approvals.backbones.values())
    for digest in approvals.sent:
        try:
            named[digest] = sent_reference(folder, digest)
            found.append(f"{digest[:12]} (sent)")
        except BackboneMismatchError:
            found.append(f"{digest[:12]} (not sent yet)")
    for digest, reference in named.items():
        if load_reference(reference).digest != digest:
            return Finding("backbones", "fail", f"{reference} is not what was approved; approve it anew or restore it")
    if not found:
        return Finding("backbones", "fail", "none is approved; run `fedgraft node approve backbone REFERENCE`")
    return Finding("backbones", "ok", ", ".join(found))


def _apps(folder: Path, _: NodeConfig) -> Finding:
    approved = read_approvals(folder).apps
    if not approved:
        return Finding("apps", "fail", "none is approved; run `fedgraft node approve app`")
    return Finding("apps", "ok", ", ".join(f"{digest[:12]} ({note})" for digest, note in approved.items()))


def _sums(folder: Path, config: NodeConfig) -> Finding:
    return Finding("sums", *look_at_sums(folder, config))


def _isolation(folder: Path, config: NodeConfig) -> Finding:
    """What stands between the app and the network, tried."""
    check_possible(folder, config)
    words = {
        "none": 'the app shares this machine\'s network; node.isolation = "process" takes it away',
        "process": "the app has no network, and changes no file but its own; tried just now",
        "container": "the app is expected in a container of its own, which checks that it has no network",
    }
    return Finding("isolation", "note" if config.node.isolation == "none" else "ok", words[config.node.isolation])


def _disk(folder: Path, config: NodeConfig) -> Finding:
    ledgers = ledger_file(folder, config).parent
    free = shutil.disk_usage(folder).free
    if ledgers.exists() and (left := shutil.disk_usage(ledgers).free) < LEAST_LEDGER:
        return Finding("disk", "fail", f"{left / 2**20:.1f} MiB free where the ledger is, {ledgers}; make room")
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

"""A report's files: ``REPORT.html`` for people, ``REPORT.json`` for machines, and, if it is signed, its ``.sig``."""

from __future__ import annotations

import hashlib
import json
import tempfile
from dataclasses import dataclass
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric import ec

from common.durable import write_bytes
from common.errors import ConfigError
from common.privacy import keys
from simulations.audits.audit_report.audit import Audit
from simulations.audits.audit_report.machine import FORMAT, to_bytes
from simulations.audits.audit_report.page import Seal, page
from simulations.audits.audit_report.signature import signature_path, write_signature
from simulations.report.svg import theme


@dataclass(frozen=True)
class Place:
    """Where a report will be written, and by whom it will be signed.

    Attributes:
        page: the HTML file; the others lie beside it.
        key: the auditor's; None leaves it unsigned.
    """

    page: Path
    key: ec.EllipticCurvePrivateKey | None = None

    @property
    def machine(self) -> Path:
        """The file for machines."""
        return self.page.with_suffix(".json")


def place_needed(path: Path | None, private_key: Path | None) -> None:
    """Refuse a key without a report to sign.

    Raises:
        ConfigError: there is a key, but no path.
    """
    if path is None and private_key is not None:
        raise ConfigError("--key signs a report, but no --report was asked for; add --report OUT.html")


def open_place(path: Path, private_key: Path | None) -> Place:
    """Make sure, before any work, that a report can be written and signed.

    Args:
        path: of the page, ending in ``.html``.
        private_key: of the auditor, see ``common.privacy.keys``.

    Raises:
        ConfigError: the path or the key is not usable, or a file there is none of an audit's report.
    """
    if path.suffix != ".html":
        raise ConfigError(f"--report must end in .html, got {path}; the file for machines is written beside it")
    place = Place(path, None if private_key is None else keys.load_private(private_key))
    for file in (path, place.machine, signature_path(place.machine)):
        if file.exists() and not file.is_file():
            raise ConfigError(f"--report must name a file, but {file} is a folder; name another")
    _check_replaced(place)
    if not path.parent.is_dir():
        raise ConfigError(f"--report must lie in a folder that is there, but {path.parent} is not; make it first")
    try:
        with tempfile.TemporaryFile(dir=path.parent):
            return place
    except OSError as error:
        raise ConfigError(
            f"--report must lie in a folder that can be written, {path.parent} cannot ({error.strerror}); name another"
        ) from error


def _check_replaced(place: Place) -> None:
    """Refuse to replace anything but an earlier report: its page is known by the file for machines beside it."""
    signature = signature_path(place.machine)
    ours = _format(place.machine) == FORMAT
    known = {
        place.machine: ours,
        place.page: ours,
        signature: _format(signature).startswith("fedgraft audit signature"),
    }
    for file, fine in known.items():
        if file.exists() and file.stat().st_size and not fine:
            raise ConfigError(
                f"--report must replace nothing but an earlier report of an audit, but {file} is something else; name "
                "another file"
            )


def _format(file: Path) -> str:
    """The ``format`` that a JSON file names; empty where there is none."""
    try:
        value = json.loads(file.read_bytes())
    except (OSError, ValueError, RecursionError):
        return ""
    return str(value.get("format", "")) if isinstance(value, dict) else ""


def write_report(audit: Audit, place: Place) -> None:
    """Write the report's files, readable by their owner only.

    Raises:
        ConfigError: the disk is full, or the folder cannot be written any more.
    """
    machine = to_bytes(audit)
    signer = None if place.key is None else keys.fingerprint(keys.openssh(place.key.public_key()))
    seal = Seal(place.machine.name, hashlib.sha256(machine).hexdigest(), signer)
    with theme():
        text = page(audit, seal).encode()
    write_bytes(place.machine, machine, mode=0o600)
    write_bytes(place.page, text, mode=0o600)
    if place.key is None:
        signature_path(place.machine).unlink(missing_ok=True)  # an older one would not fit
    else:
        write_signature(place.key, place.machine, machine, text)

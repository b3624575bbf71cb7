"""The auditor's signature over a report: a file beside it, ``REPORT.json.sig``.

It is JSON with ``format``, ``public_key`` (OpenSSH) and ``signatures``: ``json`` and ``html``, each base64 of an ECDSA
signature (P-384, SHA-384, DER) over that file's bytes as they are.
"""

from __future__ import annotations

import base64
import json
from dataclasses import dataclass
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric import ec

from common.durable import write_bytes
from common.errors import ConfigError, PrivacyError
from common.privacy import keys

FORMAT = "fedgraft audit signature 1"


@dataclass(frozen=True)
class Verified:
    """A report whose signature fits.

    Attributes:
        signer: fingerprint of the key.
        files: what was checked, the page only where it lies beside the file for machines.
        alarm: whether the report raises one.
        verdict: of the report.
    """

    signer: str
    files: tuple[Path, ...]
    alarm: bool
    verdict: str


def signature_path(report: Path) -> Path:
    """Where the signature of ``REPORT.json`` lies."""
    return report.with_name(report.name + ".sig")


def write_signature(key: ec.EllipticCurvePrivateKey, report: Path, machine: bytes, page: bytes) -> None:
    """Sign both files of a report.

    Args:
        key: the auditor's.
        report: of the file for machines.
        machine: its bytes.
        page: those of the page.

    Raises:
        ConfigError: the signature cannot be written.
    """
    signed = {"json": keys.sign(key, machine), "html": keys.sign(key, page)}
    value = {
        "format": FORMAT,
        "public_key": keys.openssh(key.public_key()),
        "signatures": {name: base64.b64encode(one).decode() for name, one in signed.items()},
    }
    write_bytes(signature_path(report), (json.dumps(value, indent=1) + "\n").encode(), mode=0o600)


def verify_report(report: Path, public_key: Path) -> Verified:
    """Check that a key signed a report, and that its files are still what was signed.

    Args:
        report: the file for machines; the page is looked for beside it.
        public_key: an OpenSSH ``.pub`` file that came from the auditor, not with the report.

    Raises:
        PrivacyError: nobody signed it, another key did, or a file was changed since.
        ConfigError: a file or the key cannot be read.
    """
    key, machine = keys.load_public(public_key), _read(report)
    signer, signatures = _read_signature(signature_path(report), report)
    if signer != keys.openssh(key):
        raise PrivacyError(
            f"{report} must be signed by the key {keys.fingerprint(keys.openssh(key))} of {public_key}, but "
            f"{keys.fingerprint(signer)} signed it; ask the auditor which key is theirs"
        )
    _check(key, signatures["json"], machine, report)
    page = report.with_suffix(".html")
    if page.is_file():
        _check(key, signatures["html"], _read(page), page)
    value = json.loads(machine)
    files = (report, page) if page.is_file() else (report,)
    return Verified(keys.fingerprint(signer), files, bool(value["alarm"]), str(value["verdict"]))


def _check(key: ec.EllipticCurvePublicKey, signature: bytes, data: bytes, path: Path) -> None:
    if not keys.fits(key, signature, data):
        raise PrivacyError(
            f"the signature must fit {path}, but it does not, so the file or its signature was changed after signing; "
            "ask the auditor for another copy"
        )


def _read_signature(path: Path, report: Path) -> tuple[str, dict[str, bytes]]:
    if not path.is_file():
        raise PrivacyError(f"{report} must be signed, but there is no {path.name} beside it; ask the auditor for it")
    try:
        value = json.loads(_read(path))
        if value["format"] != FORMAT:
            raise ValueError(value["format"])
        signer = keys.openssh(keys.parse_public(str(value["public_key"]).encode(), f"the key in {path}"))
        found = {name: base64.b64decode(value["signatures"][name], validate=True) for name in ("json", "html")}
    except (LookupError, TypeError, ValueError) as error:
        raise PrivacyError(
            f"expected a signature with format {FORMAT!r} in {path}, found something else; ask the auditor for it again"
        ) from error
    return signer, found


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise ConfigError(f"a report must be readable, got {path} ({error.strerror}); name another file") from error

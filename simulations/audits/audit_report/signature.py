"""The auditor's signature over a report: a file beside it, ``REPORT.json.sig``.

It is JSON with ``format``, ``public_key`` (OpenSSH), ``digests`` (``html`` and ``json``: SHA-256 of each file, in hex)
and ``signature``: base64 of one ECDSA signature (P-384, SHA-384, DER) over the line ``fedgraft audit signature 2`` and
the canonical JSON of ``digests``, so that the two files belong together.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric import ec

from common.durable import write_bytes
from common.errors import ConfigError, PrivacyError
from common.privacy import keys
from common.privacy.canonical import canonical_json

FORMAT = "fedgraft audit signature 2"


@dataclass(frozen=True)
class Verified:
    """A report whose signature fits.

    Attributes:
        signer: fingerprint of the key.
        files: what was checked, the page only where it lies beside the file for machines.
        missing: the page, where it does not lie there and so was not checked; else None.
        alarm: whether the report raises one.
        verdict: of the report.
    """

    signer: str
    files: tuple[Path, ...]
    missing: Path | None
    alarm: bool
    verdict: str


def signature_path(report: Path) -> Path:
    """Where the signature of ``REPORT.json`` lies."""
    return report.with_name(report.name + ".sig")


def write_signature(key: ec.EllipticCurvePrivateKey, report: Path, machine: bytes, page: bytes) -> None:
    """Sign both files of a report together.

    Args:
        key: the auditor's.
        report: of the file for machines.
        machine: its bytes.
        page: those of the page.

    Raises:
        ConfigError: the signature cannot be written.
    """
    digests = {"html": _digest(page), "json": _digest(machine)}
    value = {
        "format": FORMAT,
        "public_key": keys.openssh(key.public_key()),
        "digests": digests,
        "signature": base64.b64encode(keys.sign(key, signed_bytes(digests))).decode(),
    }
    write_bytes(signature_path(report), (json.dumps(value, indent=1) + "\n").encode(), mode=0o600)


def signed_bytes(digests: Mapping[str, str]) -> bytes:
    """What the signature is over: a tag, and the digests of both files."""
    return f"{FORMAT}\n{canonical_json(dict(digests))}".encode()


def verify_report(report: Path, public_key: Path) -> Verified:
    """Check that a key signed a report, and that its files are still what was signed.

    Args:
        report: the file for machines; the page is looked for beside it.
        public_key: an OpenSSH ``.pub`` file that came from the auditor, not with the report.

    Raises:
        PrivacyError: nobody signed it, another key did, a file was changed since, or the page is another report's.
        ConfigError: a file or the key cannot be read, or the page was given instead of the file for machines.
    """
    if report.suffix == ".html":
        raise ConfigError(
            f"audit verify expects the report's file for machines, got its page {report}; give "
            f"{report.with_suffix('.json')}, and the page beside it is checked too"
        )
    key, machine = keys.load_public(public_key), _read(report)
    signed = _read_signature(signature_path(report), report)
    if signed.signer != keys.openssh(key):
        raise PrivacyError(
            f"{report} must be signed by the key {keys.fingerprint(keys.openssh(key))} of {public_key}, but "
            f"{keys.fingerprint(signed.signer)} signed it; ask the auditor which key is theirs"
        )
    if not keys.fits(key, signed.signature, signed_bytes(signed.digests)):
        raise _misfit(signature_path(report))
    page = report.with_suffix(".html")
    files = (report, page) if page.is_file() else (report,)
    for path, name in zip(files, ("json", "html"), strict=False):
        if _digest(machine if path == report else _read(path)) != signed.digests[name]:
            raise _misfit(path)
    value = json.loads(machine)
    missing = None if page in files else page
    return Verified(keys.fingerprint(signed.signer), files, missing, bool(value["alarm"]), str(value["verdict"]))


@dataclass(frozen=True)
class _Signed:
    """A signature's file."""

    signer: str
    digests: Mapping[str, str]
    signature: bytes


def _misfit(path: Path) -> PrivacyError:
    return PrivacyError(
        f"the signature must fit {path}, but it does not, so the file or its signature was changed after signing, or "
        "they are of different reports; ask the auditor for another copy"
    )


def _read_signature(path: Path, report: Path) -> _Signed:
    if not path.is_file():
        raise PrivacyError(f"{report} must be signed, but there is no {path.name} beside it; ask the auditor for it")
    try:
        value = json.loads(_read(path))
        if value["format"] != FORMAT:
            raise ValueError(value["format"])
        signer = keys.openssh(keys.parse_public(str(value["public_key"]).encode(), f"the key in {path}"))
        digests = {name: value["digests"][name] for name in ("html", "json")}
        if not all(re.fullmatch("[0-9a-f]{64}", digest) for digest in digests.values()):
            raise ValueError("no digests")
        return _Signed(signer, digests, base64.b64decode(value["signature"], validate=True))
    except (LookupError, TypeError, ValueError, RecursionError) as error:
        raise PrivacyError(
            f"expected a signature with format {FORMAT!r} in {path}, found something else; ask the auditor for it again"
        ) from error


def _digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise ConfigError(f"a report must be readable, got {path} ({error.strerror}); name another file") from error

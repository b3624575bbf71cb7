"""How long a certificate is valid, and by what its holder is told apart; the same words on both sides."""

from __future__ import annotations

import datetime
from dataclasses import dataclass
from typing import Literal

from cryptography import x509
from cryptography.hazmat.primitives.hashes import SHA256

from common.errors import ConfigError

SOON = datetime.timedelta(days=30)


@dataclass(frozen=True)
class Validity:
    """What there is to say of a certificate.

    Attributes:
        state: ``ok``, ``note`` (it ends soon) or ``fail`` (it is not valid now).
        words: until when, and what to do.
        days: left; negative when it has ended.
        fingerprint: SHA-256, as ``openssl x509 -fingerprint -sha256`` prints it.
    """

    state: Literal["ok", "note", "fail"]
    words: str
    days: int
    fingerprint: str


def validity_of(certificate: x509.Certificate, what: str, cure: str, now: datetime.datetime | None = None) -> Validity:
    """Say until when a certificate is valid.

    Args:
        certificate: to look at.
        what: it is, in a sentence.
        cure: what to do where it has ended, or soon will.
        now: UTC; by default the clock's.
    """
    now = now or datetime.datetime.now(datetime.UTC)
    first, last = certificate.not_valid_before_utc, certificate.not_valid_after_utc
    print_, days = fingerprint_of(certificate), (last - now).days
    if now < first:
        words = f"{what} is valid from {first:%Y-%m-%d} on; is this machine's clock right?"
        return Validity("fail", words, days, print_)
    if now > last:
        return Validity("fail", f"{what} ended on {last:%Y-%m-%d}; {cure}", days, print_)
    words = f"{what} is valid until {last:%Y-%m-%d}, {days} days"
    return (
        Validity("note", f"{words}; {cure}", days, print_) if last - now < SOON else Validity("ok", words, days, print_)
    )


def fingerprint_of(certificate: x509.Certificate) -> str:
    """SHA-256 of a certificate, in pairs of digits, to be read by telephone."""
    return certificate.fingerprint(SHA256()).hex(":").upper()


def authorities_in(pem: bytes, name: str) -> list[x509.Certificate]:
    """Read the certificates of CAs.

    Args:
        pem: one or more, one after the other.
        name: of where they came from, for errors.

    Raises:
        ConfigError: there is none, or one is no CA's.
    """
    try:
        found = x509.load_pem_x509_certificates(pem)
        facts = [one.extensions.get_extension_for_class(x509.BasicConstraints).value for one in found]
    except (ValueError, x509.ExtensionNotFound) as error:
        raise ConfigError(f"expected a CA's certificate in {name}, got something else; ask the coordinator") from error
    if not all(fact.ca for fact in facts):
        raise ConfigError(f"expected CAs' certificates in {name}, one is of something else; ask the coordinator")
    return found

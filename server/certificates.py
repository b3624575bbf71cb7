"""The federation's certificates: a CA of its own, and the server certificate that it signs.

Nodes trust this CA and nothing else; they prove who they are by keys that the coordinator registered, not by
certificates.
"""

from __future__ import annotations

import datetime
import ipaddress
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from common import durable
from common.errors import ConfigError
from common.ports import bare

CA_DAYS, SERVER_DAYS = 3650, 825
LOOPBACK = ("localhost", "127.0.0.1")
_EARLIER = datetime.timedelta(hours=1)  # clocks differ


@dataclass(frozen=True)
class Certificates:
    """Where the files are.

    Attributes:
        ca: certificate of the CA, which nodes need; public.
        ca_key: its private key; needed only to renew the server's certificate.
        server: certificate of the server.
        server_key: its private key.
    """

    ca: Path
    ca_key: Path
    server: Path
    server_key: Path


def certificates_in(folder: Path) -> Certificates:
    """Where a coordinator keeps its certificates."""
    return Certificates(folder / "ca.crt", folder / "ca.key", folder / "server.crt", folder / "server.key")


def make_certificates(folder: Path, names: Sequence[str], *, now: datetime.datetime | None = None) -> Certificates:
    """Make a CA, unless there is one, and a server certificate for these names.

    Args:
        folder: exists.
        names: host names and addresses that the server is reached by; the loopback is added.
        now: UTC; by default the clock's.

    Raises:
        ConfigError: no name, one that is none, or files that cannot be read or written.
    """
    now = now or datetime.datetime.now(datetime.UTC)
    files = certificates_in(folder)
    alternatives = [alternative_name(name) for name in dict.fromkeys([*names, *LOOPBACK])]
    if not names:
        raise ConfigError("expected at least one name that nodes reach the server by, got none; give --name HOST")
    if not files.ca.exists():
        make_ca(files, now)
    authority, authority_key = _read_ca(files)
    key = ec.generate_private_key(ec.SECP384R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, names[0][:64])])
    usage = x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH])
    certificate = (
        _builder(subject, authority.subject, key.public_key(), now, SERVER_DAYS)
        .add_extension(x509.SubjectAlternativeName(alternatives), critical=False)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(usage, critical=False)
        .add_extension(_identifier_of(authority), critical=False)
        .sign(authority_key, hashes.SHA384())
    )
    durable.write_bytes(files.server_key, _private(key), mode=0o600)
    durable.write_bytes(files.server, certificate.public_bytes(serialization.Encoding.PEM))
    return files


def read_certificate(path: Path) -> x509.Certificate:
    """Read a certificate in PEM.

    Raises:
        ConfigError: it is missing, or no certificate.
    """
    try:
        return x509.load_pem_x509_certificate(path.read_bytes())
    except OSError as error:
        raise ConfigError(f"expected a certificate at {path}, got: {error.strerror}; make or copy it") from error
    except ValueError as error:
        raise ConfigError(f"expected a certificate in PEM at {path}, got something else; copy it anew") from error


def next_ca_in(folder: Path) -> Certificates:
    """Where a coordinator keeps the CA that it is about to use, see ``server.new_ca``."""
    return replace(certificates_in(folder), ca=folder / "ca-next.crt", ca_key=folder / "ca-next.key")


def make_ca(files: Certificates, now: datetime.datetime | None = None) -> None:
    """Make a CA; its certificate comes last."""
    now = now or datetime.datetime.now(datetime.UTC)
    key = ec.generate_private_key(ec.SECP384R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "fedgraft federation CA")])
    usage = x509.KeyUsage(
        digital_signature=False,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=True,
        crl_sign=True,
        encipher_only=False,
        decipher_only=False,
    )
    certificate = (
        _builder(name, name, key.public_key(), now, CA_DAYS)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(usage, critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .sign(key, hashes.SHA384())
    )
    durable.write_bytes(files.ca_key, _private(key), mode=0o600)
    durable.write_bytes(files.ca, certificate.public_bytes(serialization.Encoding.PEM))


def _read_ca(files: Certificates) -> tuple[x509.Certificate, ec.EllipticCurvePrivateKey]:
    authority = read_certificate(files.ca)
    try:
        key = serialization.load_pem_private_key(files.ca_key.read_bytes(), password=None)
    except (OSError, ValueError, TypeError) as error:
        raise ConfigError(f"expected the CA's private key at {files.ca_key}, cannot read it; restore it") from error
    if not isinstance(key, ec.EllipticCurvePrivateKey) or key.public_key() != authority.public_key():
        raise ConfigError(f"expected {files.ca_key} to be the key of {files.ca}, it is another; restore both")
    return authority, key


def _builder(
    subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePublicKey, now: datetime.datetime, days: int
) -> x509.CertificateBuilder:
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - _EARLIER)
        .not_valid_after(now + datetime.timedelta(days=days))
    )


def _identifier_of(authority: x509.Certificate) -> x509.AuthorityKeyIdentifier:
    found = authority.extensions.get_extension_for_class(x509.SubjectKeyIdentifier).value
    return x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(found)


def alternative_name(name: str) -> x509.GeneralName:
    """A host name or an address as a certificate holds it.

    Raises:
        ConfigError: it is neither.
    """
    try:
        return x509.IPAddress(ipaddress.ip_address(bare(name)))
    except ValueError:
        pass
    labels = name.split(".")
    if not name.isascii() or not all(part.replace("-", "").isalnum() for part in labels):
        raise ConfigError(f"expected a host name or an address, got {name!r}; give it without scheme and port")
    return x509.DNSName(name)


def _private(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )

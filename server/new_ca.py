"""Another CA for the federation, in two steps, so that no hospital is locked out in between.

First the next CA is made, and the join file names both: hospitals that take it trust both, while the server goes on
under the old one. When they have, the server's certificate is made under the next CA, which the join file names alone.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from common import durable
from common.errors import ConfigError
from common.supervisor import supervisor_of
from common.validity import Validity, fingerprint_of, validity_of
from server.certificates import make_ca, make_certificates, next_ca_in, read_certificate
from server.coordinator_folder import Place, write_join

RENEW = "run `fedgraft server init --renew`, then restart the server"
RENEW_CA = "run `fedgraft server new-ca`"


def prepare_ca(place: Place, app_sha256: str) -> str:
    """Make the next CA, unless it is made, and put it into the join file; returns its fingerprint."""
    following = next_ca_in(place.certificates.ca.parent)
    if not following.ca.exists():
        make_ca(following)
    write_join(place, app_sha256)
    return fingerprint_of(read_certificate(following.ca))


def switch_ca(place: Place, app_sha256: str) -> str:
    """Put the next CA in the place of the old one; returns its fingerprint. Interrupted, it is typed again.

    Raises:
        ConfigError: none was prepared, or the server runs.
    """
    files, following = place.certificates, next_ca_in(place.certificates.ca.parent)
    if not following.ca.exists():
        raise ConfigError("expected the next CA, none is prepared; run `fedgraft server new-ca` without --switch first")
    if supervisor_of(place.folder) is not None:
        raise ConfigError("expected the server to be stopped; run `fedgraft server stop`, then this again")
    durable.write_bytes(files.ca_key, following.ca_key.read_bytes(), mode=0o600)
    durable.write_bytes(files.ca, following.ca.read_bytes())
    make_certificates(files.ca.parent, place.config.names)
    following.ca.unlink()
    following.ca_key.unlink()
    write_join(place, app_sha256)
    return fingerprint_of(read_certificate(files.ca))


@dataclass(frozen=True)
class Shown:
    """A certificate of the coordinator, as its commands show it.

    Attributes:
        name: ``server``, ``CA`` or ``next CA``.
        validity: of it.
    """

    name: str
    validity: Validity

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {"name": self.name, **vars(self.validity)}


def certificates_of(place: Place) -> list[Shown]:
    """How long the coordinator's certificates are valid; what cannot be read says so."""
    files, following = place.certificates, next_ca_in(place.certificates.ca.parent)
    listed = [("server", files.server, RENEW), ("CA", files.ca, RENEW_CA)]
    if following.ca.exists():
        listed.append(("next CA", following.ca, RENEW_CA))
    found = []
    for name, path, cure in listed:
        try:
            found.append(Shown(name, validity_of(read_certificate(path), "it", cure)))
        except ConfigError as error:
            found.append(Shown(name, Validity("fail", str(error), 0, "")))
    return found

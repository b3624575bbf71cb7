"""Keys of simulated nodes, which anybody can derive: a simulation keeps no secret from whoever runs it.

No real node has such a key: a real roster is what operators exchanged (``client.peers``).
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import lru_cache, partial

from cryptography.hazmat.primitives.asymmetric import ec

from common.privacy.canonical import sha256_hex
from common.privacy.keys import openssh, sign
from common.secagg.roster import Roster
from common.secagg.signatures import Sign


def simulated_sign(name: str) -> Sign:
    """The signature of a simulated node."""
    return partial(sign, _key(name))


def simulated_roster(names: Iterable[str]) -> Roster:
    """The keys of simulated nodes."""
    return _roster(tuple(sorted(names)))


@lru_cache(maxsize=64)
def _roster(names: tuple[str, ...]) -> Roster:
    return Roster({name: openssh(_key(name).public_key()) for name in names})


@lru_cache(maxsize=1024)
def _key(name: str) -> ec.EllipticCurvePrivateKey:
    return ec.derive_private_key(int(sha256_hex("fedgraft simulated key 1", name), 16), ec.SECP384R1())

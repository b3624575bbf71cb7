"""A federation for secure aggregation: real nodes with real keys and records, and a transport that loses messages."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from functools import cache, cached_property, partial
from pathlib import Path

import numpy as np
from cryptography.hazmat.primitives.asymmetric import ec
from numpy.typing import NDArray

from client.secagg_node import SumNode
from common.privacy.keys import openssh, sign
from common.secagg.messages import Stage
from common.secagg.roster import Roster
from common.secagg.session import Session, SumRun, SumTerms
from common.secagg.signatures import Sign

PLAN = "ab" * 32
Change = Callable[[str, bytes], bytes]


@cache
def node_key(name: str) -> ec.EllipticCurvePrivateKey:
    return ec.generate_private_key(ec.SECP384R1())


def signer(name: str) -> Sign:
    return partial(sign, node_key(name))


def roster_of(names: Collection[str]) -> Roster:
    return Roster({name: openssh(node_key(name).public_key()) for name in names})


def names_of(count: int) -> list[str]:
    return [f"node-{number:03}" for number in range(count)]


def run_of(nodes: int, *, dropouts: int = 0, colluders: int = 0, bits: int = 20, length: int = 5) -> SumRun:
    terms = SumTerms(nodes=nodes, dropouts=dropouts, colluders=colluders, modulus_bits=bits, length=length)
    return SumRun(run_id="run", plan_digest=PLAN, terms=terms)


@dataclass
class Sums:
    """Nodes, a transport, and what went over it.

    Attributes:
        folder: of the records.
        run: what all nodes accepted.
        names: of the nodes.
        durable: whether records survive a power cut, too.
        seen: stage and node to its reply, whether it arrived or not.
        asked: stage and node to its request.
        computed: how often each node computed its vector.
    """

    folder: Path
    run: SumRun
    names: list[str]
    durable: bool = False
    seen: dict[tuple[Stage, str], bytes] = field(default_factory=dict)
    asked: dict[tuple[Stage, str], bytes] = field(default_factory=dict)
    computed: dict[str, int] = field(default_factory=dict)

    @cached_property
    def peers(self) -> Roster:
        return roster_of(self.names)

    def session(self, round: int = 1, attempt: int = 1) -> Session:
        return Session.of(self.run, round, self.peers, attempt=attempt)

    def node(self, name: str) -> SumNode:
        """The node as a new process would open it."""
        return SumNode(name, signer(name), self.peers, self.folder / name, durable=self.durable)

    def vector(self, name: str) -> NDArray[np.int64]:
        generator = np.random.default_rng(self.names.index(name))
        return generator.integers(-1000, 1001, self.run.terms.length)

    def answer(self, stage: Stage, name: str, request: bytes) -> bytes:
        def values() -> NDArray[np.int64]:
            self.computed[name] = self.computed.get(name, 0) + 1
            return self.vector(name)

        return self.node(name).answer(stage, request, self.run, values)

    def ask(
        self,
        lost: Mapping[Stage, Collection[str]] | None = None,
        deaf: Mapping[Stage, Collection[str]] | None = None,
    ) -> Callable[[Stage, Mapping[str, bytes]], dict[str, bytes]]:
        """A transport that loses the replies of some nodes, and the requests to others, at each stage."""

        def send(stage: Stage, requests: Mapping[str, bytes]) -> dict[str, bytes]:
            replies = {}
            for name, request in requests.items():
                if name in (deaf or {}).get(stage, ()):
                    continue
                self.asked[stage, name] = request
                self.seen[stage, name] = self.answer(stage, name, request)
                if name not in (lost or {}).get(stage, ()):
                    replies[name] = self.seen[stage, name]
            return replies

        return send

    def plain_sum(self, names: Collection[str]) -> NDArray[np.int64]:
        total = np.zeros(self.run.terms.length, np.int64)
        for name in names:
            total += self.vector(name)
        return total
